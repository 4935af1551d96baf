# SPDX-License-Identifier: Apache-2.0
"""Data-out and data-in of handlers, and the numbers that bound a transfer."""

from __future__ import annotations

from collections.abc import Sequence

from lun_backends import block_device
from target.scsi import sense
from target.scsi.task import Status, Task

MAX_TRANSFER_BYTES = 32 << 20
"""MAXIMUM TRANSFER LENGTH (VPD B0h) in bytes: every READ(10) of 512-byte blocks fits, and a command's memory is bounded."""

OPTIMAL_TRANSFER_BYTES = 1 << 20
"""OPTIMAL TRANSFER LENGTH in bytes; a long command works in steps of this length, and after each tests for an abort."""

MAX_WRITE_SAME_BYTES = 1 << 30
"""MAXIMUM WRITE SAME LENGTH in bytes: one command takes a worker thread for some seconds, with copy-on-write."""

MAX_UNMAP_BYTES = 512 << 20
"""MAXIMUM UNMAP LBA COUNT in bytes; libiscsi's conformance suite refuses more than 2**20 blocks as insane."""

MAX_UNMAP_DESCRIPTORS = 256

MAX_COMPARE_AND_WRITE_BLOCKS = 255


class Aborted(Exception):
    """The task was aborted while it ran; its remaining steps are not done.

    `cleared`: PREEMPT AND ABORT aborted the task, and its initiator gets an answer.  Otherwise task management aborted
    it, and there is no answer.
    """

    def __init__(self, *, cleared: bool) -> None:
        super().__init__("cleared" if cleared else "aborted")
        self.cleared = cleared


def go_on(task: Task) -> None:
    """Raise Aborted if the task was aborted; a long command calls this between its steps."""
    if task.aborted or task.cleared:
        raise Aborted(cleared=not task.aborted)


def good(task: Task) -> None:
    """End with GOOD and no data."""
    task.data_in = ()
    task.sense = b""
    task.status = Status.GOOD


def reply(task: Task, data: bytes | bytearray, allocation_length: int) -> None:
    """End with GOOD and `data`, cut to the CDB's ALLOCATION LENGTH (SPC-4 4.2.5.6)."""
    length = min(len(data), allocation_length)
    buffers: Sequence[memoryview] = ()
    if length:
        buffers = task.allocate(length)
        start = 0
        for buffer in buffers:
            buffer[:] = data[start : start + len(buffer)]
            start += len(buffer)
    task.data_in = buffers
    task.sense = b""
    task.status = Status.GOOD


def trim(buffers: Sequence[memoryview], length: int) -> list[memoryview]:
    """Return the first `length` bytes of a scatter list."""
    kept = []
    for buffer in buffers:
        if length <= 0:
            break
        kept.append(buffer[:length])
        length -= len(buffer)
    return kept


def skip(buffers: Sequence[memoryview], length: int) -> list[memoryview]:
    """Return a scatter list without its first `length` bytes."""
    kept = []
    for buffer in buffers:
        if length < len(buffer):
            kept.append(buffer[length:])
        length = max(0, length - len(buffer))
    return kept


def data_out(task: Task, length: int, *, exact: bool = False) -> Sequence[memoryview]:
    """Return exactly the `length` bytes of data-out that the CDB asks for.

    If the initiator announced more, the rest is not used, and `residual_out` says so to the fabric.  If it announced
    less, the command ends with INVALID FIELD IN COMMAND INFORMATION UNIT and does nothing (FCP-4 9.4.2 b).  With
    `exact`, more is refused as well, for commands where a different length means that initiator and target disagree
    about the command.
    """
    given = block_device.total_length(task.data_out)
    if given == length:
        return task.data_out
    task.residual_out = length - given
    if given < length or exact:
        raise sense.illegal_request(sense.Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    return trim(task.data_out, length)


def blocks_out(task: Task, length: int, block_size: int) -> Sequence[memoryview]:
    """Return the `data_out` of a plain write, which may be shorter than the CDB asks for.

    If the initiator announced fewer, but whole blocks, these are written.  The rest is a residual overflow (RFC 7143
    11.4.5.1: the transfer ends at the end of the initiator's buffer).
    """
    given = block_device.total_length(task.data_out)
    if given >= length or given % block_size:
        return data_out(task, length)
    task.residual_out = length - given
    return task.data_out


def joined(task: Task, length: int) -> bytes:
    """Return `data_out` as one piece, for parameter lists."""
    return b"".join(data_out(task, length))


def first_difference(left: bytes | memoryview, right: bytes | memoryview) -> int | None:
    """Return the offset of the first byte in which two strings of equal length differ; None if they are equal."""
    if left == right:
        return None
    low, high = 0, len(left)
    while high - low > 1:  # the first difference is in [low, high): halve it, comparing at the speed of memcmp
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
