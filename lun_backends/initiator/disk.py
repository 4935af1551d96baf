# SPDX-License-Identifier: Apache-2.0
"""A LUN of another host as a block device: READ(16), WRITE(16), and what else the LUN has (SBC-4 5).

Sense data is exact here.  `Disk` is a primary, or with `write_once=True` one of wolun's write-once LUNs:

| sense data                       | becomes                                                                    |
| -------------------------------- | -------------------------------------------------------------------------- |
| BLANK CHECK                      | `BlankBlock` or `BlockWritten` at INFORMATION; on a primary `MediumError`  |
| DATA PROTECT 27h/07h             | `SpaceExhausted`                                                           |
| DATA PROTECT                     | `WriteProtected`                                                           |
| ILLEGAL REQUEST 21h/00h          | `OutOfRange`                                                               |
| everything else                  | `MediumError`                                                              |

A transfer longer than the LUN or the path allows becomes several commands, one after another.  A write-once LUN takes
all or nothing of each command.  So a longer write may be refused although a part of it is stored.

With `patience` (seconds), a read, write, flush or question that gets no answer is sent again until that time has passed.
This is right for writes, because the caller waits: no other write to the block can come in between.  A write-once LUN may
then answer BLANK CHECK although this very write stored the block.  `TaskAborted` is sent again as well.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, TypeVar

from lun_backends import block_device
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.initiator import inquiry, unit
from lun_backends.initiator.unit import CheckCondition, Unit

_CDB = struct.Struct(">BBQIBB")
_READ, _WRITE, _SYNCHRONIZE_CACHE, _WRITE_SAME, _SERVICE_ACTION_IN = 0x88, 0x8A, 0x91, 0x93, 0x9E
_READ_CAPACITY, _GET_LBA_STATUS = 0x10, 0x12
_FUA, _UNMAP, _NDOB = 0x08, 0x08, 0x01
_DESCRIPTOR = struct.Struct(">QIB3x")
_DESCRIPTORS = 256  # of GET LBA STATUS for each command
_STATUS_LENGTH = 8 + 16 * _DESCRIPTORS
_MAPPED = 0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries
_ZEROES = 1 << 20  # bytes that a write of zeroes sends at a time

_T = TypeVar("_T")


class Disk(block_device.BlockDevice):
    """The block device behind a unit.  `close` closes the unit."""

    write_once: ClassVar[bool] = False
    read_only: ClassVar[bool] = False

    def __init__(
        self,
        lun: Unit,
        *,
        write_once: bool = False,
        read_only: bool = False,
        patience: float = 0.0,
        timeout: float = unit.TIMEOUT,
    ) -> None:
        """Ask the unit for its size and its limits.  Raise the errors of Unit.execute."""
        self.unit = lun
        self.write_once = write_once  # type: ignore[misc] # a class variable elsewhere, an option of each instance here
        self._patience, self._timeout = patience, timeout
        capacity = self._patiently(lambda: read_capacity(lun))
        self.block_size, self.size = capacity.block_size, capacity.blocks * capacity.block_size
        if capacity.physical_block_size > capacity.block_size:
            self.physical_block_size = capacity.physical_block_size
        limits = self._patiently(lambda: inquiry.block_limits(lun))
        mode = self._patiently(lambda: _mode(lun))
        self.read_only = read_only or bool((mode or 0) & 0x80)  # type: ignore[misc] # WP; likewise
        self._dpofua = None if mode is None else bool(mode & 0x10)
        self._shift = self.block_size.bit_length() - 1
        if write_once:
            self.grain = limits.granularity << self._shift
        path = lun.max_transfer >> self._shift
        self._step = min(limits.max_transfer or path, path) << self._shift
        provisioning = self._patiently(lambda: inquiry.provisioning(lun))
        self._discards = provisioning.unmap_by_write_same and provisioning.unmapped_reads_zeroes and not write_once
        self._same_step = (limits.max_write_same or 1 << 15) << self._shift

    def readv(self, offset: int, buffers: Buffers) -> None:
        for start, piece in self._pieces(offset, buffers):
            length = block_device.total_length(piece)
            read = functools.partial(self.unit.execute_into, self._cdb(_READ, 0, start, length), piece, self._timeout)
            got = self._do(read, start, length)
            if got != length:
                raise block_device.MediumError(start >> self._shift, False, f"the unit sent {got} of {length} bytes")

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._check_writable()
        for start, piece in self._pieces(offset, buffers):
            cdb = self._cdb(_WRITE, _FUA if fua and self._fua() else 0, start, block_device.total_length(piece))
            self._write(cdb, piece, start, block_device.total_length(piece))
        if fua and not self._fua():
            self.flush()

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> Sequence[block_device.BlockWritten | None]:
        """Write as `WriteOnce.put_many`, one command after another: each is committed when it returns."""
        return block_device.write_each(self, requests)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._check_writable()
        if discard and self.write_once:
            raise block_device.NotSupported("discarding")
        self._check_range(offset, length)
        if self._discards:
            for start in range(offset, offset + length, self._same_step):
                count = min(self._same_step, offset + length - start)
                flags = _NDOB | (_UNMAP if discard else 0)
                self._write(self._cdb(_WRITE_SAME, flags, start, count), (), start, count)
            if fua:
                self.flush()
            return
        zeroes = memoryview(bytes(min(length, _ZEROES)))
        for start in range(offset, offset + length, _ZEROES):
            self.writev(start, [zeroes[: min(_ZEROES, offset + length - start)]], fua=fua)

    def flush(self) -> None:
        self._do(
            lambda: self.unit.execute(self._cdb(_SYNCHRONIZE_CACHE, 0, 0, 0), timeout=self._timeout), 0, 0, writing=True
        )

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check_range(offset, length)
        unwritten = ExtentKind.BLANK if self.write_once else ExtentKind.HOLE
        position, end = offset, offset + length
        waiting: Extent | None = None
        while position < end:
            for start, stop, mapped in self._status(position, end):
                kind = ExtentKind.DATA if mapped else unwritten
                if waiting is not None and waiting.kind is kind:
                    start = waiting.offset
                elif waiting is not None:
                    yield waiting
                waiting = Extent(start, stop - start, kind)
                position = stop
        if waiting is not None:
            yield waiting

    def used_bytes(self) -> int:
        """Return 0, because the device takes no space on this host's disk."""
        return 0

    def close(self) -> None:
        self.unit.close()

    def _status(self, position: int, end: int) -> Iterator[tuple[int, int, bool]]:
        lba = position >> self._shift
        try:
            found = self._do(lambda: lba_status(self.unit, lba, self._timeout), position, end - position)
        except block_device.MediumError:
            if self.write_once:
                raise
            yield position, end, True  # a unit that does not know its holes has none
            return
        for start, blocks, mapped in found:
            stop = min((start + blocks) << self._shift, end)
            if stop <= position:
                break
            yield position, stop, mapped
            position = stop
            if position == end:
                return

    def _cdb(self, operation: int, flags: int, offset: int, length: int) -> bytes:
        return _CDB.pack(operation, flags, offset >> self._shift, length >> self._shift, 0, 0)

    def _pieces(self, offset: int, buffers: Buffers) -> Iterator[tuple[int, Buffers]]:
        length = block_device.total_length(buffers)
        self._check_range(offset, length)
        if length <= self._step:
            if length:
                yield offset, buffers
            return
        for start in range(0, length, self._step):
            yield offset + start, block_device.slice_buffers(buffers, start, min(self._step, length - start))

    def _check_range(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise block_device.OutOfRange(max(offset, self.size) >> self._shift)

    def _fua(self) -> bool:
        """Return whether the unit knows FUA (DPOFUA)."""
        if self._dpofua is None:
            mode = self._patiently(lambda: _mode(self.unit))
            self._dpofua = None if mode is None else bool(mode & 0x10)
        return bool(self._dpofua)

    def _check_writable(self) -> None:
        if self.read_only:
            raise block_device.WriteProtected

    def _write(self, cdb: bytes, data: Buffers, offset: int, length: int) -> None:
        self._do(lambda: self.unit.execute(cdb, data, timeout=self._timeout), offset, length, writing=True)

    def _do(self, command: Callable[[], _T], offset: int, length: int, *, writing: bool = False) -> _T:
        try:
            return self._patiently(command)
        except CheckCondition as refused:
            raise self._error(refused, offset, length, writing=writing) from refused

    def _patiently(self, command: Callable[[], _T]) -> _T:
        end, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while True:
            try:
                return command()
            except block_device.NoAnswer:
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _error(
        self, refused: CheckCondition, offset: int, length: int, *, writing: bool
    ) -> block_device.BlockDeviceError:
        sense, first = refused.sense, offset >> self._shift
        lba = sense.information
        if lba is None or not first <= lba < max(first + 1, (offset + length) >> self._shift):
            # Without the exact block, BLANK CHECK proves nothing about any block.
            if sense.key == unit.BLANK_CHECK:
                return block_device.MediumError(
                    first, writing, f"the unit ended the command with {sense}, without a block"
                )
            lba = first
        match sense.key, sense.asc:
            case unit.BLANK_CHECK, _ if self.write_once:
                return block_device.BlockWritten(lba) if writing else block_device.BlankBlock(lba)
            case unit.DATA_PROTECT, unit.SPACE_ALLOCATION_FAILED_WRITE_PROTECT:
                return block_device.SpaceExhausted(lba)
            case unit.DATA_PROTECT, _:
                return block_device.WriteProtected()
            case unit.ILLEGAL_REQUEST, unit.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE:
                return block_device.OutOfRange(lba)
        return block_device.MediumError(lba, writing, f"the unit ended the command with {sense}")


class Capacity:
    """READ CAPACITY(16): blocks, and bytes in a logical and in a physical block."""

    def __init__(self, data: bytes) -> None:
        """Decode the parameter data (SBC-4 5.20.2)."""
        last, self.block_size, exponent = struct.unpack_from(">QIxB", data.ljust(32, b"\0"))
        self.blocks = last + 1
        self.physical_block_size = self.block_size << (exponent & 0x0F)


def read_capacity(lun: Unit) -> Capacity:
    """Return the size of a unit.  Raise the errors of Unit.execute, and CannotSend for a unit that is no disk."""
    capacity = Capacity(lun.execute(_CDB.pack(_SERVICE_ACTION_IN, _READ_CAPACITY, 0, 32, 0, 0), in_length=32))
    if capacity.block_size not in (512, 4096):
        raise unit.CannotSend(
            f"{lun.address} has blocks of {capacity.block_size} bytes: name a disk with blocks of 512 or 4096"
        )
    return capacity


def lba_status(lun: Unit, lba: int, timeout: float = unit.TIMEOUT) -> list[tuple[int, int, bool]]:
    """Return (LBA, blocks, whether they are mapped) from `lba` on, without gaps (GET LBA STATUS, SBC-4 5.6); not empty.

    The first begins at `lba` or before.  Raise the errors of Unit.execute, and MediumError for an answer about other
    blocks.
    """
    answer = lun.execute(
        _CDB.pack(_SERVICE_ACTION_IN, _GET_LBA_STATUS, lba, _STATUS_LENGTH, 0, 0),
        in_length=_STATUS_LENGTH,
        timeout=timeout,
    )
    length = min(int.from_bytes(answer[:4]) + 4, len(answer))
    found: list[tuple[int, int, bool]] = []
    for start, blocks, status in _DESCRIPTOR.iter_unpack(answer[8 : max(8, length - (length - 8) % 16)]):
        follows = start == found[-1][0] + found[-1][1] if found else start <= lba < start + blocks
        if not follows or not blocks:
            break
        found.append((start, blocks, status & 0x0F == _MAPPED))
    if not found:
        raise block_device.MediumError(lba, False, "GET LBA STATUS returned other blocks")
    return found


def _mode(lun: Unit) -> int | None:
    """Return the DEVICE-SPECIFIC PARAMETER of MODE SENSE(6) (SBC-4 6.5.1); 0 if the unit does not tell, None if it is reserved."""
    try:
        data = lun.execute(b"\x1a\x08\x3f\x00\xff\x00", in_length=0xFF)
    except CheckCondition:
        return 0
    except block_device.ReservationConflict:
        return None  # exclusive access: this nexus has to register first
    return data[2] if len(data) > 2 else 0
