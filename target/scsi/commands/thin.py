# SPDX-License-Identifier: Apache-2.0
"""Logical block provisioning: UNMAP, WRITE SAME, GET LBA STATUS (SBC-4 4.7, 5.6, 5.30, 5.53 ff.)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lun_backends.block_device import ExtentKind, WouldBlock
from target.scsi import sense, transfer
from target.scsi.commands import block as block_commands
from target.scsi.logical_unit import ItlNexus, LogicalUnit
from target.scsi.task import Task

_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")
_STATUS_DESCRIPTOR = struct.Struct(">QIBB2x")
MAPPED, DEALLOCATED = 0, 1

MAX_STATUS_DESCRIPTORS = 8192
"""The most descriptors in one answer of GET LBA STATUS, whatever the allocation length."""

_ZERO_STEP = 64 << 20  # bytes zeroed between two looks at `task.aborted`


def _zero(unit: LogicalUnit, task: Task, lba: int, count: int, *, discard: bool) -> None:
    """Zero blocks step by step.  Stop if the task was aborted."""
    step = _ZERO_STEP >> unit.shift
    while count:
        transfer.go_on(task)
        blocks = min(count, step)
        unit.device.write_zeroes(lba << unit.shift, blocks << unit.shift, discard=discard)
        lba += blocks
        count -= blocks


def write_same_range(unit: LogicalUnit, cdb: bytes | memoryview) -> tuple[int, int]:
    """Return LBA and number of blocks of a WRITE SAME, checked; a NUMBER OF LOGICAL BLOCKS of 0 means up to the end."""
    lba, count = block_commands.cdb_range(cdb)
    unit.check_range(lba, count)
    count = count or unit.blocks - lba
    if count > transfer.MAX_WRITE_SAME_BYTES >> unit.shift:
        raise sense.invalid_field(10 if cdb[0] == 0x93 else 7)
    return lba, count


def write_same(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run WRITE SAME(10) and (16) with UNMAP and NDOB."""
    unit, cdb = itl.unit, task.cdb
    lba, count = write_same_range(unit, cdb)
    no_data_out = cdb[0] == 0x93 and cdb[1] & 0x01
    block = bytes(unit.block_size) if no_data_out else b"".join(transfer.data_out(task, unit.block_size, exact=True))
    if nowait:
        raise WouldBlock
    discard = bool(cdb[1] & 0x08)
    if discard or not any(block):
        # UNMAP unmaps, whatever data was sent.  SBC-4 4.7.3.4.3 asks to write data other than zeroes.  But LIO and tgtd
        # unmap, libiscsi's suite (WriteSame10.UnmapUntilEnd) expects this, and an initiator that sets UNMAP does not
        # care about the data.
        _zero(unit, task, lba, count, discard=discard)
    else:
        blocks = min(count, transfer.OPTIMAL_TRANSFER_BYTES >> unit.shift)
        pattern = memoryview(block * blocks)
        while count:
            transfer.go_on(task)
            piece = pattern[: min(count, blocks) << unit.shift]
            unit.device.writev(lba << unit.shift, [piece])
            unit.counters.bytes_written += len(piece)
            lba += len(piece) >> unit.shift
            count -= len(piece) >> unit.shift
    transfer.good(task)


def unmap(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run UNMAP: check every descriptor before unmapping the first."""
    unit = itl.unit
    length = int.from_bytes(task.cdb[7:9])
    parameters = transfer.joined(task, length)
    if not length:
        transfer.good(task)
        return
    if length < 8:
        raise sense.parameter_list_length()
    descriptors_length = int.from_bytes(parameters[2:4])
    if descriptors_length > length - 8:
        raise sense.parameter_list_length()
    count = descriptors_length // 16  # an incomplete last descriptor is ignored (SBC-4 5.30.2)
    if count > transfer.MAX_UNMAP_DESCRIPTORS:
        raise sense.invalid_parameter(2)
    ranges = list(_UNMAP_DESCRIPTOR.iter_unpack(parameters[8 : 8 + 16 * count]))
    total = 0
    for index, (lba, blocks) in enumerate(ranges):
        if blocks:  # a count of 0 is no error at any LBA (SBC-4 5.30.2)
            unit.check_range(lba, blocks)
        total += blocks
        if total > transfer.MAX_UNMAP_BYTES >> unit.shift:
            raise sense.invalid_parameter(8 + 16 * index + 8)
    if nowait:
        raise WouldBlock
    for lba, blocks in ranges:
        _zero(unit, task, lba, blocks, discard=True)
    transfer.good(task)


def _status(unit: LogicalUnit, lba: int) -> Iterator[tuple[int, int, int]]:
    """Yield (LBA, blocks, provisioning status) from `lba` to the end; adjacent extents of one status are merged."""
    start, blocks, status = lba, 0, MAPPED
    for extent in unit.device.extents(lba << unit.shift, (unit.blocks - lba) << unit.shift):
        extent_status = MAPPED if extent.kind is ExtentKind.DATA else DEALLOCATED
        if extent_status != status:
            if blocks:
                yield start, blocks, status
            start, blocks, status = start + blocks, 0, extent_status
        blocks += extent.length >> unit.shift
        while blocks > 0xFFFFFFFF:  # the largest count of the descriptor's field
            yield start, 0xFFFFFFFF, status
            start, blocks = start + 0xFFFFFFFF, blocks - 0xFFFFFFFF
    if blocks:
        yield start, blocks, status


def get_lba_status(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run GET LBA STATUS: holes and blank blocks are deallocated, and all other blocks are mapped."""
    unit = itl.unit
    lba, allocation_length = struct.unpack_from(">QI", task.cdb, 2)
    if lba >= unit.blocks:
        raise sense.out_of_range(lba)
    if nowait:
        raise WouldBlock
    room = min(max((allocation_length - 8) // 16, 1), MAX_STATUS_DESCRIPTORS)
    descriptors = bytearray()
    for start, blocks, status in _status(unit, lba):
        descriptors += _STATUS_DESCRIPTOR.pack(start, blocks, status, 0)
        if len(descriptors) == 16 * room:
            break
        transfer.go_on(task)
    transfer.reply(task, struct.pack(">I4x", len(descriptors) + 4) + descriptors, allocation_length)
