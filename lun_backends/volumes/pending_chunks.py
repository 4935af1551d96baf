# SPDX-License-Identifier: Apache-2.0
"""The file of the chunks that a rollback still has to settle.  Once a manifest relies on it, chunks only leave it.

The file has one bit per chunk, in sectors of 512 bytes.  The last four bytes of a sector are the CRC32C of the rest; a
sector without chunks is all zeroes, so the file is sparse.  Sectors are written whole, and a disk writes a sector whole
or not at all.  So after a power cut, each sector has its old or its new content.  Both are right, because a chunk is
taken out only when its content in the primary is durable.  Settling a chunk twice does no harm unless an initiator has
written to it, and no initiator may write to it before it is taken out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import crc32c

from lun_backends import block_device, tracking
from lun_backends.files import os_error, storage_io

_SECTOR = 512
_BITS = 508 * 8  # chunks in a sector
_CRC = struct.Struct("<I")
_READ = 4096 * _SECTOR  # bytes read at a time


@dataclass(eq=False)
class PendingDamaged(block_device.BlockDeviceError):
    """The file at `path` cannot be used; `reason` says why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, which says how far rolling back got: {self.reason}"


class PendingChunks:
    """The open file at `path`; `chunks` are its chunks.  One thread at a time may call `remove`."""

    def __init__(self, path: Path, fd: int, chunks: tracking.BitMap, io: storage_io.StorageIO) -> None:
        """Wrap an open file.  Callers use `create` or `open`."""
        self.path = path
        self.chunks = chunks
        self._fd = fd
        self._io = io

    @classmethod
    def create(cls, path: Path, chunks: tracking.BitMap, total: int, io: storage_io.StorageIO) -> PendingChunks:
        """Make a file for some of a volume's `total` chunks, durable except for its name.  Raises OSError."""
        fd = io.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        made = cls(path, fd, chunks, io)
        try:
            io.ftruncate(fd, -(-total // _BITS) * _SECTOR)
            made._write(chunks, chunks)
            io.fdatasync(fd)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def open(cls, path: Path, total: int, io: storage_io.StorageIO) -> PendingChunks:
        """Open the file that a crash or a stop left.  Raises PendingDamaged."""
        try:
            fd = io.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PendingDamaged(path, os_error.reason(error)) from error
        opened = cls(path, fd, tracking.BitMap(), io)
        try:
            opened._read(total)
        except OSError as error:
            opened.close()
            raise PendingDamaged(path, os_error.reason(error)) from error
        except PendingDamaged:
            opened.close()
            raise
        return opened

    def add(self, chunks: tracking.BitMap) -> None:
        """Add chunks, durably.  Allowed only as long as no manifest relies on the file.  Raises OSError."""
        more = chunks - self.chunks
        if more:
            self.chunks |= more
            self._write(more, self.chunks)
            self._io.fdatasync(self._fd)

    def remove(self, chunks: Iterable[int]) -> None:
        """Take chunks out, durably.  Raises OSError."""
        settled = tracking.BitMap(chunks)
        self._write(settled, self.chunks - settled)
        self._io.fdatasync(self._fd)
        self.chunks.difference_update(settled)

    def close(self) -> None:
        """Close the file.  Closing twice is allowed."""
        if self._fd >= 0:
            self._io.close(self._fd)
            self._fd = -1

    def _write(self, touched: tracking.BitMap, content: tracking.BitMap) -> None:
        """Write the sectors that hold chunks of `touched`, adjacent ones with one call."""
        run: list[memoryview] = []
        begin = 0
        for sector in _sectors(touched):
            if run and (sector != begin + len(run) or len(run) == storage_io.IOV_MAX):
                storage_io.write_all(self._io, self._fd, run, begin * _SECTOR, len(run) * _SECTOR)
                run = []
            if not run:
                begin = sector
            run.append(memoryview(_encode(content, sector)))
        if run:
            storage_io.write_all(self._io, self._fd, run, begin * _SECTOR, len(run) * _SECTOR)

    def _read(self, total: int) -> None:
        """Read the chunks of the file.  Raises OSError, PendingDamaged."""
        size = -(-total // _BITS) * _SECTOR
        buffer = memoryview(bytearray(min(_READ, size)))
        for offset in range(0, size, _READ):
            piece = buffer[: min(_READ, size - offset)]
            if storage_io.read_all(self._io, self._fd, [piece], offset, len(piece)) != len(piece):
                raise PendingDamaged(self.path, "it was cut off")
            if bytes(piece).count(0) == len(piece):
                continue
            for at in range(0, len(piece), _SECTOR):
                decoded = _decode(bytes(piece[at : at + _SECTOR]), (offset + at) // _SECTOR)
                if decoded is None:
                    raise PendingDamaged(self.path, f"the sector at {offset + at} fails its checksum")
                self.chunks.update(decoded)
        if self.chunks and self.chunks.max() >= total:
            raise PendingDamaged(self.path, "it is about a larger volume")


def _sectors(chunks: tracking.BitMap) -> Iterator[int]:
    """Yield the sectors that hold some of `chunks`, in order."""
    at = 0
    while (chunk := next(chunks.iter_equal_or_larger(at), None)) is not None:
        yield chunk // _BITS
        at = (chunk // _BITS + 1) * _BITS


def _encode(chunks: tracking.BitMap, sector: int) -> bytes:
    first = sector * _BITS
    bits = bytearray(_SECTOR - _CRC.size)
    for chunk in chunks.iter_equal_or_larger(first):
        if chunk >= first + _BITS:
            break
        bits[(chunk - first) >> 3] |= 1 << (chunk & 7)
    if not any(bits):
        return bytes(_SECTOR)
    return bytes(bits) + _CRC.pack(crc32c.crc32c(bits))


def _decode(data: bytes, sector: int) -> list[int] | None:
    """Return the chunks of a sector; None if it is damaged."""
    bits = data[: -_CRC.size]
    if not any(data):
        return []
    if _CRC.unpack(data[-_CRC.size :])[0] != crc32c.crc32c(bits):
        return None
    first = sector * _BITS
    return [first + at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
