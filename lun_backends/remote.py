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

All or nothing holds for each SCSI command, and Linux splits writes of more than `queue/max_sectors_kb`.  So a larger
write may be refused although a part of it is stored.  Copy-on-write accepts that, because its data is the pre-image
either way.

The device keeps the write-once rule and durability: a write has returned when the host that owns the LUN has committed
it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from lun_backends import block_device, flat
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.files import backing_file, os_error

SG_IO = 0x2285
SG_DXFER_FROM_DEV = -3
_TIMEOUT = 30_000  # milliseconds; Linux gives other commands as much
_DESCRIPTORS = 256  # of GET LBA STATUS per command
_ANSWER = 8 + 16 * _DESCRIPTORS
_CDB = struct.Struct(">BBQIBB")
_DESCRIPTOR = struct.Struct(">QIBB2x")
_DEALLOCATED = 1


class _SgIoHeader(ctypes.Structure):
    """The struct sg_io_hdr of include/scsi/sg.h."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


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
        # SG_IO needs a descriptor, and that of Flat is private.
        try:
            self._control = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            next(self.extents(0, block_size))
        except OSError as error:
            self._device.close()
            raise backing_file.CannotOpen(path, os_error.reason(error), "check the device") from error
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
        results: list[block_device.BlockWritten | None] = []
        for offset, buffers in requests:
            try:
                self.writev(offset, buffers)
            except block_device.BlockWritten as written:
                # Append a new exception.  The raised one refers to its traceback and frames, and these refer to the
                # results. This circle would keep all buffers, up to the initiator's, until the garbage collector runs.
                results.append(block_device.BlockWritten(written.lba))
            else:
                results.append(None)
        return results

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
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

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
        answer = self._command(_CDB.pack(0x9E, 0x12, lba, _ANSWER, 0, 0), lba)
        length = min(int.from_bytes(answer[:4]) + 4, _ANSWER)
        if length < 24:
            raise block_device.MediumError(lba, False, "GET LBA STATUS returned no descriptor")
        for start, blocks, status, _ in _DESCRIPTOR.iter_unpack(answer[8 : length - (length - 8) % 16]):
            # A descriptor may begin before the block that was asked for.
            stop = min((start + blocks) << self._shift, end)
            if start << self._shift > position or stop <= position:
                raise block_device.MediumError(lba, False, "GET LBA STATUS returned other blocks")
            kind = ExtentKind.BLANK if status & 0x0F == _DEALLOCATED else ExtentKind.DATA
            yield Extent(position, stop - position, kind)
            position = stop
            if position == end:
                return

    def _command(self, cdb: bytes, lba: int) -> bytes:
        """Run a SCSI command that returns up to `_ANSWER` bytes, again after every unit attention."""
        for _ in range(8):
            command = ctypes.create_string_buffer(cdb, len(cdb))
            answer = ctypes.create_string_buffer(_ANSWER)
            sense = ctypes.create_string_buffer(64)
            header = _SgIoHeader(
                interface_id=ord("S"),
                dxfer_direction=SG_DXFER_FROM_DEV,
                cmd_len=len(cdb),
                mx_sb_len=len(sense),
                dxfer_len=_ANSWER,
                dxferp=ctypes.addressof(answer),
                cmdp=ctypes.addressof(command),
                sbp=ctypes.addressof(sense),
                timeout=_TIMEOUT,
            )
            try:
                fcntl.ioctl(self._control, SG_IO, header)
            except OSError as error:
                if self._control < 0:
                    raise block_device.DeviceClosed from error
                raise block_device.MediumError(lba, False, os_error.reason(error)) from error
            if header.status == 0x18:
                raise block_device.ReservationConflict
            if not header.status and not header.host_status:
                return answer.raw[: _ANSWER - header.resid]
            if header.status != 0x02 or _sense_key(sense.raw) != 0x6:
                break
        reason = f"GET LBA STATUS failed: status {header.status:02x}h, host status {header.host_status:02x}h"
        raise block_device.MediumError(lba, False, reason)


def _sense_key(sense: bytes) -> int:
    """Return the SENSE KEY of fixed or descriptor format sense data (SPC-4 4.5)."""
    return sense[1 if sense[0] & 0x7F in (0x72, 0x73) else 2] & 0x0F
