# SPDX-License-Identifier: Apache-2.0
"""READ, WRITE, PRE-FETCH, SYNCHRONIZE CACHE and READ CAPACITY (SBC-4 clause 5).

The `fast_` handlers are the hot path: plain READ and WRITE of 10 and 16 bytes with no flag set, a range that exists,
and data of the right length.  Every other case goes to the checked handler of the same opcode, which starts again,
slowly.

This module does not copy data: the device reads into the fabric's buffers and writes from them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from lun_backends import atomic_journal, block_device
from lun_backends.block_device import BlankBlock, WouldBlock
from target.scsi import sense, transfer
from target.scsi.logical_unit import ItlNexus, LogicalUnit
from target.scsi.sense import CheckCondition
from target.scsi.task import Status, Task
from target.scsi.unit_kind import UnitKind

_RANGE_6 = struct.Struct(">IBx")  # the opcode is part of the first number
_RANGE_10 = struct.Struct(">2xIxHx")
_RANGE_12 = struct.Struct(">2xII2x")
_RANGE_16 = struct.Struct(">2xQI2x")
_ATOMIC = struct.Struct(">2xQHH2x")

_FAST_10 = struct.Struct(">xBIxHB").unpack_from  # flags, LBA, (group number), count, control
_FAST_16 = struct.Struct(">xBQIxB").unpack_from

FUA = 0x08


def cdb_range(cdb: bytes | memoryview) -> tuple[int, int]:
    """Return LBA and number of blocks of a READ- or WRITE-like CDB of any length."""
    match cdb[0] >> 5:
        case 0:
            lba, count = _RANGE_6.unpack_from(cdb)
            return lba & 0x1FFFFF, count or 256  # SBC-4 5.15: 0 means 256 blocks
        case 4:
            lba, count = _RANGE_16.unpack_from(cdb)
        case 5:
            lba, count = _RANGE_12.unpack_from(cdb)
        case _:
            lba, count = _RANGE_10.unpack_from(cdb)
    return lba, count


def transfer_range(unit: LogicalUnit, cdb: bytes | memoryview) -> tuple[int, int]:
    """Return `cdb_range`, checked against the unit's capacity and the MAXIMUM TRANSFER LENGTH."""
    lba, count = cdb_range(cdb)
    unit.check_range(lba, count)
    if count > unit.max_transfer:
        raise sense.invalid_field({4: 10, 5: 6}.get(cdb[0] >> 5, 7))
    return lba, count


def has_fua(cdb: bytes | memoryview) -> bool:
    """Return whether a READ or WRITE forces unit access; those of 6 bytes cannot."""
    return cdb[0] >= 0x20 and bool(cdb[1] & FUA)


def blank_read(
    unit: LogicalUnit, blank: BlankBlock, lba: int, buffers: Sequence[memoryview], nowait: bool
) -> CheckCondition:
    """Return BLANK CHECK for a read from `lba` on, with the blocks before the first blank one as its data."""
    leading: Sequence[memoryview] = ()
    if blank.lba > lba:
        leading = transfer.trim(buffers, (blank.lba - lba) << unit.shift)
        try:
            if not nowait:
                unit.device.readv(lba << unit.shift, leading)
            elif not unit.device.read_now(lba << unit.shift, (blank.lba - lba) << unit.shift, leading):
                raise WouldBlock
        except block_device.BlockDeviceError:
            leading = ()  # the sense data is enough
    return CheckCondition(sense.from_error(blank), leading)


def fast_read_10(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run a plain READ(10)."""
    flags, lba, count, control = _FAST_10(task.cdb)
    _fast_read(itl, task, nowait, flags | control, lba, count)


def fast_read_16(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run a plain READ(16)."""
    flags, lba, count, control = _FAST_16(task.cdb)
    _fast_read(itl, task, nowait, flags | control, lba, count)


def _fast_read(itl: ItlNexus, task: Task, nowait: bool, flags: int, lba: int, count: int) -> None:
    unit = itl.unit
    if flags or not 0 < count <= unit.max_transfer or lba + count > unit.blocks:
        unit.commands.checked[task.cdb[0]](itl, task, nowait)
        return
    length = count << unit.shift
    buffers = task.allocate(length)
    try:
        if not nowait:
            unit.device.readv(lba << unit.shift, buffers)
        elif not unit.device.read_now(lba << unit.shift, length, buffers):
            raise WouldBlock
    except BlankBlock as blank:
        raise blank_read(unit, blank, lba, buffers, nowait) from None
    unit.counters.bytes_read += length
    task.data_in = buffers
    task.sense = b""
    task.status = 0


def fast_write_10(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run a plain WRITE(10)."""
    flags, lba, count, control = _FAST_10(task.cdb)
    _fast_write(itl, task, nowait, flags | control, lba, count)


def fast_write_16(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run a plain WRITE(16)."""
    flags, lba, count, control = _FAST_16(task.cdb)
    _fast_write(itl, task, nowait, flags | control, lba, count)


def _fast_write(itl: ItlNexus, task: Task, nowait: bool, flags: int, lba: int, count: int) -> None:
    unit = itl.unit
    length = count << unit.shift
    data = task.data_out
    given = len(data[0]) if len(data) == 1 else sum(map(len, data))
    if flags or not 0 < count <= unit.max_transfer or lba + count > unit.blocks or given != length:
        unit.commands.checked[task.cdb[0]](itl, task, nowait)
        return
    if not nowait:
        unit.device.writev(lba << unit.shift, data)
    elif not unit.device.write_now(lba << unit.shift, length, data):
        raise WouldBlock
    unit.counters.bytes_written += length
    task.data_in = ()
    task.sense = b""
    task.status = 0


def read(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run READ(6), (10), (12), (16) in all their forms.  FUA first makes cached data stable (SBC-4 5.16)."""
    unit, cdb = itl.unit, task.cdb
    lba, count = transfer_range(unit, cdb)
    if has_fua(cdb):
        if nowait:
            raise WouldBlock
        unit.device.flush()
    buffers: Sequence[memoryview] = ()
    if count:
        buffers = task.allocate(count << unit.shift)
        try:
            if not nowait:
                unit.device.readv(lba << unit.shift, buffers)
            elif not unit.device.read_now(lba << unit.shift, count << unit.shift, buffers):
                raise WouldBlock
        except BlankBlock as blank:
            raise blank_read(unit, blank, lba, buffers, nowait) from None
        unit.counters.bytes_read += count << unit.shift
    transfer.good(task)
    task.data_in = buffers


def write(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run WRITE(6), (10), (12), (16) in all their forms."""
    unit, cdb = itl.unit, task.cdb
    lba, count = transfer_range(unit, cdb)
    data = transfer.blocks_out(task, count << unit.shift, unit.block_size)
    if data:
        fua = has_fua(cdb)
        length = block_device.total_length(data)
        if not nowait:
            unit.device.writev(lba << unit.shift, data, fua=fua)
        elif fua or not unit.device.write_now(lba << unit.shift, length, data):
            raise WouldBlock
        unit.counters.bytes_written += length
    transfer.good(task)


def atomic_range(unit: LogicalUnit, cdb: bytes | memoryview) -> tuple[int, int]:
    """Return LBA and number of blocks of a WRITE ATOMIC(16), checked."""
    lba, boundary, count = _ATOMIC.unpack_from(cdb)
    unit.check_range(lba, count)
    if boundary:  # MAXIMUM ATOMIC BOUNDARY SIZE is 0
        raise sense.invalid_field(10)
    if count > atomic_journal.MAX_BYTES >> unit.shift:
        raise sense.invalid_field(12)
    return lba, count


def write_atomic(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run WRITE ATOMIC(16) (SBC-4 5.40): all of it or nothing, through any crash, and on stable storage when it ends."""
    unit = itl.unit
    lba, count = atomic_range(unit, task.cdb)
    data = transfer.data_out(task, count << unit.shift)
    if nowait:
        raise WouldBlock
    if count:
        assert unit.journal is not None  # only a unit with a journal has this command
        unit.journal.writev(lba << unit.shift, data)
        unit.counters.bytes_written += count << unit.shift
    transfer.good(task)


def pre_fetch(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run PRE-FETCH(10) and (16): check the range, and leave reading ahead to the page cache.

    CONDITION MET says that the cache has room for the blocks (SBC-4 5.13), which is true of the page cache.
    """
    itl.unit.check_range(*cdb_range(task.cdb))
    transfer.good(task)
    task.status = Status.CONDITION_MET


def synchronize_cache(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run SYNCHRONIZE CACHE(10) and (16): flush the whole device, whatever the range.

    IMMED is accepted, but GOOD still waits until the data is stable, which is more than the initiator asks for.
    """
    itl.unit.check_range(*cdb_range(task.cdb))
    if nowait:
        raise WouldBlock
    itl.unit.device.flush()
    transfer.good(task)


def read_capacity_10(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run READ CAPACITY(10): FFFFFFFFh sends the initiator of a large unit to READ CAPACITY(16) (SBC-4 5.20)."""
    unit = itl.unit
    transfer.reply(task, struct.pack(">II", min(unit.blocks - 1, 0xFFFFFFFF), unit.block_size), 8)


def read_capacity_16(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run READ CAPACITY(16) (SBC-4 5.21).

    All units are thin (LBPME), so that initiators use GET LBA STATUS: on a view it lets an export stay sparse, on a
    write-once unit it reports the written blocks.  A write-once unit does not set LBPRZ, because a read of a blank
    block fails instead of returning zeroes.
    """
    unit = itl.unit
    (allocation_length,) = struct.unpack_from(">I", task.cdb, 10)
    thin = 0x8000 if unit.kind is UnitKind.WRITE_ONCE else 0xC000
    data = struct.pack(">QIBBH", unit.blocks - 1, unit.block_size, 0, unit.physical_exponent, thin)
    transfer.reply(task, data.ljust(32, b"\0"), allocation_length)
