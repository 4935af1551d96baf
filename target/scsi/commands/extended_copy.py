# SPDX-License-Identifier: Apache-2.0
"""EXTENDED COPY(LID1) and RECEIVE COPY RESULTS (SPC-4 6.4, 6.20 ff.): copies between units of this target.

The data does not leave the target.  Like any other write, it goes through the block device of the destination, and so
through copy-on-write (rule 5, lun_backends/README.md).  It is written only if the unit would admit a write of this
nexus.

The target understands identification target descriptors (E4h) with a name of INQUIRY page 83h, of units that the nexus
reaches, and block to block segments (02h).  It checks all descriptors before it copies the first block.  The parameter
list:

| byte | |
| --- | --- |
| 0      | LIST IDENTIFIER |
| 1      | LIST ID USAGE (bits 4-3): 0 hold the status for RECEIVE COPY STATUS, 2 discard it, 3 no identifier |
| 2-3    | TARGET DESCRIPTOR LIST LENGTH |
| 8-11   | SEGMENT DESCRIPTOR LIST LENGTH |
| 12-15  | INLINE DATA LENGTH |
| 16-    | target descriptors of 32 bytes, segment descriptors of 28 |
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from lun_backends import block_device
from lun_backends.block_device import WouldBlock
from target.scsi import sense, transfer
from target.scsi.command_set import takes_copies
from target.scsi.commands import inquiry
from target.scsi.logical_unit import CopyStatus, ItlNexus, LogicalUnit
from target.scsi.reservations.persistent_reservation import Permission
from target.scsi.sense import Asc, CheckCondition, Sense, SenseKey
from target.scsi.task import Status, Task

MAX_TARGETS = 16
MAX_SEGMENTS = 64
MAX_LIST_BYTES = 4096
MAX_SEGMENT_BYTES = 256 << 20
MAX_COPIES = 8  # at once, of all initiators
HELD_STATUSES = 16  # of one nexus

_RUNNING = threading.BoundedSemaphore(MAX_COPIES)

_HEADER = 16
_TARGET_BYTES, _SEGMENT_BYTES = 32, 28
_TARGET_TYPE, _SEGMENT_TYPE = 0xE4, 0x02
_SEGMENT = struct.Struct(">BBHHHxxHQQ")
_DC, _CAT = 0x02, 0x01
_HOLD, _NO_IDENTIFIER = 0, 3


@dataclass(frozen=True, slots=True)
class _Segment:
    source: ItlNexus
    destination: ItlNexus
    source_lba: int
    destination_lba: int
    blocks: int  # of the source, or with DC of the destination; the two have the same block size


def _aborted(asc: Asc) -> CheckCondition:
    return CheckCondition(Sense(SenseKey.COPY_ABORTED, asc))


def _illegal(asc: Asc) -> CheckCondition:
    return sense.illegal_request(asc)


def _find(itl: ItlNexus, descriptor: bytes, start: int) -> ItlNexus | None:
    """Return this nexus's relation to the unit that a target descriptor names; None if it reaches no such unit."""
    if descriptor[0] != _TARGET_TYPE:
        raise _illegal(Asc.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE)
    if descriptor[1] & 0x1F:  # PERIPHERAL DEVICE TYPE
        raise sense.invalid_parameter(start + 1)
    length = descriptor[7]
    if length > 20:
        raise sense.invalid_parameter(start + 7)
    code_set, kind, name = descriptor[4] & 0x0F, descriptor[5] & 0x3F, descriptor[8 : 8 + length]
    for other in (itl, *itl.nexus.reached):
        if inquiry.is_called(other.unit, code_set, kind, name):
            if int.from_bytes(descriptor[29:32]) != other.unit.block_size:
                raise sense.invalid_parameter(start + 29)
            return other
    return None


def _segment(descriptor: bytes, start: int, targets: list[ItlNexus | None]) -> _Segment:
    code, flags, length, source, destination, blocks, source_lba, destination_lba = _SEGMENT.unpack(descriptor)
    if code != _SEGMENT_TYPE:
        raise _illegal(Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE)
    if flags & ~(_DC | _CAT):
        raise sense.invalid_parameter(start + 1)
    if length != _SEGMENT_BYTES - 4:
        raise sense.invalid_parameter(start + 2)
    source_itl, destination_itl = (targets[index] if index < len(targets) else None for index in (source, destination))
    if source_itl is None or destination_itl is None:
        raise _aborted(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
    if source_itl.unit.block_size != destination_itl.unit.block_size:  # padding is not supported
        raise sense.invalid_parameter(start + 6)
    for itl, lba in ((source_itl, source_lba), (destination_itl, destination_lba)):
        if lba >= itl.unit.blocks or lba + blocks > itl.unit.blocks:
            raise _aborted(Asc.NO_ADDITIONAL_SENSE_INFORMATION)
    return _Segment(source_itl, destination_itl, source_lba, destination_lba, blocks)


def _parse(itl: ItlNexus, data: bytes) -> list[_Segment]:
    """Check the segments and return them.  Raises CheckCondition."""
    if len(data) < _HEADER:
        raise sense.parameter_list_length()
    targets_length = int.from_bytes(data[2:4])
    segments_length, inline_length = struct.unpack_from(">II", data, 8)
    if targets_length + segments_length > MAX_LIST_BYTES:
        raise sense.parameter_list_length()
    if inline_length:
        raise _illegal(Asc.INLINE_DATA_LENGTH_EXCEEDED)
    if _HEADER + targets_length + segments_length > len(data) or targets_length % _TARGET_BYTES:
        raise sense.parameter_list_length()
    if targets_length > MAX_TARGETS * _TARGET_BYTES:
        raise _illegal(Asc.TOO_MANY_TARGET_DESCRIPTORS)
    if segments_length > MAX_SEGMENTS * _SEGMENT_BYTES:
        raise _illegal(Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
    first = _HEADER + targets_length
    end = first + segments_length
    targets = [_find(itl, data[start : start + _TARGET_BYTES], start) for start in range(_HEADER, first, _TARGET_BYTES)]
    segments = []
    for start in range(first, end, _SEGMENT_BYTES):
        if data[start] != _SEGMENT_TYPE:  # other types have other lengths: refuse the type before the length
            raise _illegal(Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE)
        if start + _SEGMENT_BYTES > end:
            raise sense.parameter_list_length()
        segments.append(_segment(data[start : start + _SEGMENT_BYTES], start, targets))
    return segments


@contextlib.contextmanager
def _let_in(itl: ItlNexus, home: LogicalUnit, task: Task, access: Permission) -> Iterator[None]:
    """Run the task on another unit than its own: that unit admits the task, and a drain of that unit waits for it."""
    unit = itl.unit
    if unit is home:
        yield
        return
    unit.running[task] = itl
    try:
        left = unit.reservations.left_to(itl)
        if itl.removed:
            raise _aborted(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
        if left is not Permission.EVERYTHING and left is not access:
            raise block_device.ReservationConflict
        yield
    finally:
        del unit.running[task]
        if unit.draining:
            unit.task_ended(task)


def _copy(segment: _Segment, home: LogicalUnit, task: Task) -> None:
    source, destination = segment.source.unit, segment.destination.unit
    if segment.destination.write_protected:
        raise sense.write_protected()
    if not takes_copies(destination.kind):
        raise _illegal(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
    length = segment.blocks << source.shift
    start, to = segment.source_lba << source.shift, segment.destination_lba << destination.shift
    step = transfer.OPTIMAL_TRANSFER_BYTES
    # If the ranges overlap upwards, copy the end first, so that no block is overwritten before it is read.
    offsets = range(0, length, step)
    backwards = source is destination and start < to < start + length
    scratch = memoryview(bytearray(min(step, length)))
    with _let_in(segment.source, home, task, Permission.READ), _let_in_destination(segment, home, task):
        for offset in reversed(offsets) if backwards else offsets:
            transfer.go_on(task)
            piece = scratch[: min(step, length - offset)]
            source.device.readv(start + offset, [piece])
            destination.device.writev(to + offset, [piece])
            source.counters.bytes_read += len(piece)
            destination.counters.bytes_written += len(piece)
        if not destination.write_cache:
            destination.device.flush()


@contextlib.contextmanager
def _let_in_destination(segment: _Segment, home: LogicalUnit, task: Task) -> Iterator[None]:
    if segment.destination.unit is segment.source.unit and segment.destination.unit is not home:
        if segment.destination.unit.reservations.left_to(segment.destination) is not Permission.EVERYTHING:
            raise block_device.ReservationConflict
        yield
        return
    with _let_in(segment.destination, home, task, Permission.EVERYTHING):
        yield


def extended_copy(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run EXTENDED COPY(LID1): copy the segments one after the other.  End with GOOD once all are copied."""
    length = int.from_bytes(task.cdb[10:14])
    if length > _HEADER + MAX_LIST_BYTES:
        raise sense.parameter_list_length()
    data = transfer.joined(task, length)
    if nowait:
        raise WouldBlock
    if not length:
        transfer.good(task)
        return
    segments = _parse(itl, data)
    if not _RUNNING.acquire(blocking=False):
        task.data_in = ()
        task.sense = b""
        task.status = Status.TASK_SET_FULL  # the initiator sends it again
        return
    done = copied = 0
    try:
        for segment in segments:
            _copy(segment, itl.unit, task)
            done += 1
            copied += segment.blocks << segment.source.unit.shift
    finally:
        _RUNNING.release()
        usage = data[1] >> 3 & 3
        if usage == _HOLD:
            itl.hold_copy_status(data[0], CopyStatus(done, copied, done < len(segments)), HELD_STATUSES)
    transfer.good(task)


def copy_status(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run RECEIVE COPY STATUS(LID1) for a copy whose status was held."""
    status = itl.copy_statuses.get(task.cdb[2])
    if status is None:
        raise sense.invalid_field(2)
    # The transfer count has 32 bits: in units of KiB (01h) the largest copy fits.
    data = struct.pack(">IBHBI", 8, 2 if status.failed else 1, status.segments, 1, status.bytes >> 10)
    transfer.reply(task, data, int.from_bytes(task.cdb[10:14]))


def operating_parameters(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run RECEIVE COPY OPERATING PARAMETERS (SPC-4 6.21)."""
    data = bytearray(46)
    struct.pack_into(">I", data, 0, len(data) - 4)
    struct.pack_into(">HHIIIII", data, 8, MAX_TARGETS, MAX_SEGMENTS, MAX_LIST_BYTES, MAX_SEGMENT_BYTES, 0, 0, 0)
    struct.pack_into(">HBB", data, 34, MAX_COPIES, MAX_COPIES, itl.unit.shift)
    data[43:46] = bytes((2, _SEGMENT_TYPE, _TARGET_TYPE))  # in ascending order
    transfer.reply(task, data, int.from_bytes(task.cdb[10:14]))
