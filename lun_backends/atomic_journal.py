# SPDX-License-Identifier: Apache-2.0
"""A journal that makes writes to a block device atomic: a crash or power cut leaves all of a write, or nothing of it.

The data goes to a journal file first, then to the device, and then the journal is invalidated.  Each of the three steps
is on stable storage before the next begins.  If a crash leaves a valid journal, its data is written to the device when
the journal is opened, before the device is served.  That data cannot be old.  No other write begins while the journal
is valid, and the journal is durably invalid before the next write begins.

| byte of the file | |
| --- | --- |
| 0-7    | `WOLUNATM`; anything else: the journal is empty |
| 8-15   | byte offset in the device, little-endian like all numbers here |
| 16-19  | length of the data |
| 20-23  | CRC32C of the data |
| 24-27  | CRC32C of bytes 0 to 23 |
| 4096-  | the data |

A concurrent read may see a part of such a write, as of any other write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import crc32c

from lun_backends import block_device
from lun_backends.files import small_file

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<8sQII")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"WOLUNATM"
_DATA_OFFSET = 4096

MAX_BYTES = 1 << 20
"""The longest atomic write in bytes.  Its data is written twice, and held in memory for recovery after a crash."""


class AtomicJournal:
    """The journal of one device in the file at `path`; thread-safe."""

    def __init__(self, path: Path, device: block_device.BlockDevice) -> None:
        """Finish the write that a crash interrupted.  Raises OSError, BlockDeviceError."""
        self._path = path
        self._device = device
        self._lock = threading.Lock()
        if path.exists():  # most devices never see an atomic write
            with self._file() as fd:
                self._finish(fd)

    @contextlib.contextmanager
    def _file(self) -> Iterator[int]:
        """Open the journal.  If there is none, make it first, with a durable name."""
        new = not self._path.exists()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if new:
                small_file.sync_directory(self._path.parent)
            yield fd
        finally:
            os.close(fd)

    def _finish(self, fd: int) -> None:
        header = os.pread(fd, _HEADER.size + _CHECKSUM.size, 0)
        if len(header) < _HEADER.size + _CHECKSUM.size:
            return
        magic, offset, length, checksum = _HEADER.unpack_from(header)
        (own,) = _CHECKSUM.unpack_from(header, _HEADER.size)
        if magic != _MAGIC or own != crc32c.crc32c(header[: _HEADER.size]) or length > MAX_BYTES:
            return
        data = os.pread(fd, length, _DATA_OFFSET)
        if len(data) < length or crc32c.crc32c(data) != checksum:
            return  # the crash came while the journal was written, so the device has nothing of it
        self._device.writev(offset, [memoryview(data)], fua=True)
        _invalidate(fd)
        log.warning("%s: finished a write of %d bytes at %d that was interrupted", self._path, length, offset)

    def writev(self, offset: int, buffers: block_device.Buffers) -> None:
        """Write all of `buffers`, or nothing.  The data is on stable storage on return.

        Raise the errors of `BlockDevice.writev`, and MediumError if the journal fails.
        """
        length = block_device.total_length(buffers)
        checksum = 0
        for buffer in buffers:
            checksum = crc32c.crc32c(buffer, checksum)
        header = _HEADER.pack(_MAGIC, offset, length, checksum)
        header += _CHECKSUM.pack(crc32c.crc32c(header))
        try:
            with self._lock, self._device.exclusive() as held, self._file() as fd:
                try:
                    written = os.pwritev(fd, [header.ljust(_DATA_OFFSET, b"\0"), *buffers], 0)
                    if written != _DATA_OFFSET + length:
                        raise OSError(f"{written} bytes written of {_DATA_OFFSET + length}")
                    os.fdatasync(fd)
                    held.writev(offset, buffers, fua=True)
                finally:
                    # In any case: after a crash, this write must not undo the next one.
                    self._forget(fd)
        except OSError as error:
            reason = f"{self._path}: {error}"
            raise block_device.MediumError(offset // self._device.block_size, True, reason) from error

    def _forget(self, fd: int) -> None:
        """Invalidate the journal, at worst by removing it.  Raises OSError."""
        try:
            _invalidate(fd)
        except OSError:
            try:
                self._path.unlink(missing_ok=True)
            except OSError:
                log.critical("%s can neither be emptied nor removed: remove it before the next start", self._path)
            raise


def _invalidate(fd: int) -> None:
    os.pwrite(fd, bytes(_HEADER.size), 0)
    os.fdatasync(fd)
