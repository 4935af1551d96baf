# SPDX-License-Identifier: Apache-2.0
"""Commands that look before they write: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, ORWRITE (SBC-4 5.3, 5.9, 5.33 ff., 5.48 ff.).

They read the blocks that they compare or change, so none runs on an event loop.  A difference ends with MISCOMPARE, and
INFORMATION is the offset of the first byte that differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from lun_backends import block_device
from lun_backends.block_device import WouldBlock
from target.scsi import sense, transfer
from target.scsi.commands import block
from target.scsi.logical_unit import ItlNexus, LogicalUnit
from target.scsi.task import Task


def _compare(unit: LogicalUnit, task: Task, lba: int, count: int, expected: Sequence[memoryview] | None) -> None:
    """Read the blocks step by step.  Raise MISCOMPARE if they differ from `expected`; None: only read them."""
    step = min(count << unit.shift, transfer.OPTIMAL_TRANSFER_BYTES)
    scratch = memoryview(bytearray(step))
    compared = b"" if expected is None else b"".join(expected)
    end = count << unit.shift
    for start in range(0, end, max(step, 1)):
        transfer.go_on(task)
        piece = scratch[: min(step, end - start)]
        unit.device.readv((lba << unit.shift) + start, [piece])
        if expected is not None:
            different = transfer.first_difference(piece, memoryview(compared)[start : start + len(piece)])
            if different is not None:
                raise sense.miscompare(start + different)


def _byte_check(unit: LogicalUnit, task: Task, count: int) -> Sequence[memoryview] | None:
    """Return the data to compare the blocks with, by BYTCHK (SBC-4 table 154); None if there is none."""
    match task.cdb[1] >> 1 & 3:
        case 0:
            return None
        case 1:
            return transfer.data_out(task, count << unit.shift)
        case 3:
            return list(transfer.data_out(task, unit.block_size)) * count if count else ()
        case _:
            raise sense.invalid_field(1, 2)


def verify(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run VERIFY(10), (12), (16); BYTCHK 3 compares every block with the one block sent."""
    unit = itl.unit
    lba, count = block.transfer_range(unit, task.cdb)
    expected = _byte_check(unit, task, count)
    if nowait:
        raise WouldBlock
    _compare(unit, task, lba, count, expected)
    transfer.good(task)


def write_and_verify(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run WRITE AND VERIFY(10), (12), (16): write to stable storage, read again and, with BYTCHK 1, compare."""
    unit = itl.unit
    lba, count = block.transfer_range(unit, task.cdb)
    check = task.cdb[1] >> 1 & 3
    if check > 1:
        raise sense.invalid_field(1, 2)
    data = transfer.blocks_out(task, count << unit.shift, unit.block_size)
    if nowait:
        raise WouldBlock
    if data:
        length = block_device.total_length(data)
        unit.device.writev(lba << unit.shift, data, fua=True)
        unit.counters.bytes_written += length
        _compare(unit, task, lba, length >> unit.shift, data if check else None)
    transfer.good(task)


def compare_and_write_range(cdb: bytes | memoryview) -> tuple[int, int]:
    """Return LBA and number of blocks of a COMPARE AND WRITE."""
    return int.from_bytes(cdb[2:10]), cdb[13]


def check_compare_and_write(unit: LogicalUnit, cdb: bytes | memoryview) -> None:
    """Check the range of a COMPARE AND WRITE."""
    unit.check_range(*compare_and_write_range(cdb))


def compare_and_write(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run COMPARE AND WRITE, atomically.  Every other write to the device waits."""
    unit, cdb = itl.unit, task.cdb
    lba, count = compare_and_write_range(cdb)
    unit.check_range(lba, count)
    length = count << unit.shift
    if not count and task.data_out:  # 256 blocks do not fit the field, which holds 0 then
        raise sense.invalid_field(13)
    data = transfer.data_out(task, 2 * length, exact=True)
    if nowait:
        raise WouldBlock
    if count:
        both = memoryview(b"".join(data))
        current = memoryview(bytearray(length))
        with unit.device.exclusive() as held:
            held.readv(lba << unit.shift, [current])
            different = transfer.first_difference(current, both[:length])
            if different is not None:
                raise sense.miscompare(different)
            held.writev(lba << unit.shift, [both[length:]], fua=block.has_fua(cdb))
        unit.counters.bytes_written += length
    transfer.good(task)


def orwrite(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run ORWRITE(16): set the bits that were sent, atomically.  Every other write to the device waits."""
    unit, cdb = itl.unit, task.cdb
    lba, count = block.transfer_range(unit, cdb)
    length = count << unit.shift
    data = transfer.data_out(task, length)
    if nowait:
        raise WouldBlock
    if count:
        current = memoryview(bytearray(length))
        with unit.device.exclusive() as held:
            held.readv(lba << unit.shift, [current])
            bits = int.from_bytes(current) | int.from_bytes(b"".join(data))
            held.writev(lba << unit.shift, [memoryview(bits.to_bytes(length))], fua=block.has_fua(cdb))
        unit.counters.bytes_written += length
    transfer.good(task)
