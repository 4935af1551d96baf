# SPDX-License-Identifier: Apache-2.0
"""A write-once LUN of another host, reached through a local block device (`/dev/disk/by-id/…`) without the page cache.

Linux gives the reader of a block device an errno, not sense data, and some errnos have several causes:

| the device answers                     | errno       | becomes                                                   |
| -------------------------------------- | ----------- | --------------------------------------------------------- |
| BLANK CHECK, but also HARDWARE ERROR   | EREMOTEIO   | what GET LBA STATUS says: `BlankBlock`, `BlockWritten` with |
| and ILLEGAL REQUEST                    |             | the exact block; `MediumError` if it does not explain it   |
| DATA PROTECT, 27h/07h                  | ENOSPC      | `SpaceExhausted`                                          |
| MEDIUM ERROR                           | ENODATA     | `MediumError`                                             |
| RESERVATION CONFLICT                   | EBADE       | `ReservationConflict`                                     |
| nothing, the path is gone              | EIO         | `MediumError`                                             |

A broken device must never look blank: a reader would go on to the primary and show new data as old.  So EREMOTEIO alone
proves nothing.  A block is blank only if the device itself *says* so (GET LBA STATUS, SBC-4 5.6, sent through SG_IO).
`initiator.disk.Disk(..., write_once=True)` sends its commands itself, and so has sense data and needs no such question.

All or nothing holds for each SCSI command, and Linux splits writes of more than `queue/max_sectors_kb`.  So a larger
write may be refused although a part of it is stored.  Copy-on-write accepts that, because its data is the pre-image
either way.

The device keeps the write-once rule and durability: a write has returned when the host that owns the LUN has committed
it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from lun_backends import block_device, flat
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.files import backing_file
from lun_backends.initiator import disk, inquiry, sg_io, unit

_UNKNOWN_GRAIN = 1 << 20  # if the LUN names no granularity, its store may have a checksum for each chunk only


class _TargetFailure(block_device.BlockDeviceError):
    """EREMOTEIO: the device refused for a reason that only the device knows."""


class _Device(flat.Flat):
    """The block device as it is, with EREMOTEIO as an error of its own."""

    def _check_direct(self, fd: int) -> None:
        """Do nothing: the block that would be read for the check may be blank."""

    def _error(self, error: OSError, offset: int, *, writing: bool) -> block_device.BlockDeviceError:
        if error.errno == errno.EREMOTEIO:
            return _TargetFailure()
        if error.errno == errno.ENODATA:
            return block_device.MediumError(offset // self.block_size, writing, "the device reports a medium error")
        return super()._error(error, offset, writing=writing)


class RemoteWriteOnce(block_device.BlockDevice):
    """The write-once LUN behind the block device at `path`.  Raises backing_file.CannotOpen.

    Every call waits for the network, so nothing is ever done without waiting.
    """

    write_once: ClassVar[bool] = True

    def __init__(self, path: Path, *, block_size: int = 512, size: int | None = None, read_only: bool = False) -> None:
        self._device = _Device(path, block_size=block_size, direct=True, read_only=read_only, size=size)
        self.path = path
        self.size = self._device.size
        self.block_size = block_size
        self.read_only = read_only  # type: ignore[misc] # a class variable elsewhere, an option of each instance here
        self.reason: str | None = None
        self._shift = block_size.bit_length() - 1
        try:
            self._unit: unit.Unit = sg_io.SgIo(path)
        except backing_file.CannotOpen:
            self._device.close()
            raise
        try:
            next(self.extents(0, block_size))
            self.grain = inquiry.block_limits(self._unit).granularity * block_size or _UNKNOWN_GRAIN
        except block_device.BlockDeviceError as error:
            self.close()
            raise backing_file.CannotOpen(
                path, str(error), "give a write-once LUN; it answers GET LBA STATUS"
            ) from error

    def readv(self, offset: int, buffers: Buffers) -> None:
        for last_try in (False, True):
            try:
                self._device.readv(offset, buffers)
                return
            except _TargetFailure as failure:
                length = block_device.total_length(buffers)
                self._raise_if(ExtentKind.BLANK, offset, length)
                # All is written now.  It may have been blank at the first try, so a second try must succeed.
                if last_try:
                    raise self._unexplained(offset, writing=False) from failure

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        try:
            self._device.writev(offset, buffers, fua=fua)
        except _TargetFailure as failure:
            self._raise_if(ExtentKind.DATA, offset, block_device.total_length(buffers))
            raise self._unexplained(offset, writing=True) from failure

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> Sequence[block_device.BlockWritten | None]:
        """Write as `WriteOnce.put_many`, one command after another: each is committed when it returns."""
        return block_device.write_each(self, requests)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        if discard:
            raise block_device.NotSupported("discarding")
        step = min(length, 1 << 20)
        zeroes = memoryview(bytes(step))
        for start in range(offset, offset + length, step or 1):
            self.writev(start, [zeroes[: min(step, offset + length - start)]], fua=fua)

    def flush(self) -> None:
        self._device.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if offset + length > self.size:
            raise block_device.OutOfRange(max(offset, self.size) >> self._shift)
        position, end = offset, offset + length
        waiting: Extent | None = None
        while position < end:
            for extent in self._status(position, end):
                if waiting is not None and waiting.kind is extent.kind:
                    extent = Extent(waiting.offset, waiting.length + extent.length, extent.kind)
                elif waiting is not None:
                    yield waiting
                waiting = extent
            assert waiting is not None
            position = waiting.offset + waiting.length
        if waiting is not None:
            yield waiting

    def used_bytes(self) -> int:
        """Return 0, because the device takes no space on this host's disk."""
        return 0

    def close(self) -> None:
        self._device.close()
        self._unit.close()

    def _raise_if(self, kind: ExtentKind, offset: int, length: int) -> None:
        """Raise BlankBlock or BlockWritten for the first block of that kind in the range, if there is one."""
        for extent in self.extents(offset, length):
            if extent.kind is kind:
                lba = extent.offset >> self._shift
                raise block_device.BlankBlock(lba) if kind is ExtentKind.BLANK else block_device.BlockWritten(lba)

    def _unexplained(self, offset: int, *, writing: bool) -> block_device.MediumError:
        return block_device.MediumError(offset >> self._shift, writing, "the device refused for a reason of its own")

    def _status(self, position: int, end: int) -> Iterator[Extent]:
        """Yield the extents that one GET LBA STATUS reports for the range, at least one.

        Raises MediumError, ReservationConflict, DeviceClosed.
        """
        lba = position >> self._shift
        try:
            found = disk.lba_status(self._unit, lba)
        except (unit.CheckCondition, unit.CannotSend, block_device.NoAnswer) as error:
            raise block_device.MediumError(lba, False, f"GET LBA STATUS failed: {error}") from error
        for start, blocks, mapped in found:
            # A descriptor may begin before the block that was asked for.
            stop = min((start + blocks) << self._shift, end)
            if stop <= position:
                raise block_device.MediumError(lba, False, "GET LBA STATUS returned other blocks")
            yield Extent(position, stop - position, ExtentKind.DATA if mapped else ExtentKind.BLANK)
            position = stop
            if position == end:
                return
