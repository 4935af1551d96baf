# SPDX-License-Identifier: Apache-2.0
"""The file of the grains that a rollback still has to settle.  Once a manifest relies on it, grains only leave it.

A clone has such a file of its own grains, which only grows (`owned_grains`).

The file has one bit per grain, in sectors of 512 bytes.  The last four bytes of a sector are the CRC32C of the rest; a
sector without grains is all zeroes, so the file is sparse.  Sectors are written whole, and a disk writes a sector whole
or not at all.  So after a power cut, each sector has its old or its new content.  Both are right, because a grain is
taken out only when its content in the primary is durable.  Settling a grain twice does no harm unless an initiator has
written to it, and no initiator may write to it before it is taken out.

Versions of wolun that preserved whole chunks made such a file, of another name, with one bit per chunk.  `take_over`
reads it on.
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
_PAGE = 4096
_BITS = 508 * 8  # grains in a sector
_CRC = struct.Struct("<I")
_READ = 4096 * _SECTOR  # bytes read at a time


@dataclass(eq=False)
class PendingDamaged(block_device.BlockDeviceError):
    """The file at `path` cannot be used; `reason` says why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, which says how far rolling back got: {self.reason}"


class PendingGrains:
    """The open file at `path`; `grains` are its grains.  One thread at a time may call `remove`."""

    def __init__(self, path: Path, fd: int, grains: tracking.BitMap, total: int, io: storage_io.StorageIO) -> None:
        """Wrap an open file.  Callers use `create` or `open`."""
        self._total = total
        self._reserved: set[int] = set()
        self.path = path
        self.grains = grains
        self._fd = fd
        self._io = io

    @classmethod
    def create(cls, path: Path, grains: tracking.BitMap, total: int, io: storage_io.StorageIO) -> PendingGrains:
        """Make a file for some of a volume's `total` grains, durable except for its name.  Raises OSError."""
        fd = io.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        made = cls(path, fd, grains, total, io)
        try:
            io.ftruncate(fd, -(-total // _BITS) * _SECTOR)
            made._write(grains, grains)
            io.fdatasync(fd)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def open(cls, path: Path, total: int, io: storage_io.StorageIO) -> PendingGrains:
        """Open the file that a crash or a stop left.  Raises PendingDamaged."""
        try:
            fd = io.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PendingDamaged(path, os_error.reason(error)) from error
        opened = cls(path, fd, tracking.BitMap(), total, io)
        try:
            opened._read(total)
        except OSError as error:
            opened.close()
            raise PendingDamaged(path, os_error.reason(error)) from error
        except PendingDamaged:
            opened.close()
            raise
        return opened

    def add(self, grains: tracking.BitMap) -> None:
        """Add grains, durably.  Allowed only as long as no manifest relies on the file.  Raises OSError."""
        more = grains - self.grains
        if more:
            self.grains |= more
            self._write(more, self.grains)
            self._io.fdatasync(self._fd)

    def reserve(self, first: int, end: int) -> None:
        """Give the sectors of the grains [first, end) their space on disk.  Raises OSError."""
        for page in range(first // _BITS * _SECTOR // _PAGE, (end - 1) // _BITS * _SECTOR // _PAGE + 1):
            if page not in self._reserved:
                length = min(_PAGE, -(-self._total // _BITS) * _SECTOR - page * _PAGE)
                self._io.reserve(self._fd, page * _PAGE, length)
                self._reserved.add(page)

    def remove(self, grains: Iterable[int]) -> None:
        """Take grains out, durably.  Raises OSError."""
        settled = tracking.BitMap(grains)
        self._write(settled, self.grains - settled)
        self._io.fdatasync(self._fd)
        self.grains.difference_update(settled)

    def close(self) -> None:
        """Close the file.  Closing twice is allowed."""
        if self._fd >= 0:
            self._io.close(self._fd)
            self._fd = -1

    def _write(self, touched: tracking.BitMap, content: tracking.BitMap) -> None:
        """Write the sectors that hold grains of `touched`, adjacent ones with one call."""
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
        """Read the grains of the file.  Raises OSError, PendingDamaged."""
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
                self.grains.update(decoded)
        if self.grains and self.grains.max() >= total:
            raise PendingDamaged(self.path, "it is about a larger volume")


def take_over(old: Path, path: Path, total: int, per_chunk: int, io: storage_io.StorageIO) -> None:
    """Make the file `path` from a file `old` with one bit for each chunk of `per_chunk` grains, unless it is made already.

    `total` is the number of the volume's grains.

    After a crash either file is there, or both.  Raises PendingDamaged, OSError.
    """
    if not path.exists():
        whole = PendingGrains.open(old, -(-total // per_chunk), io)
        whole.close()
        grains = tracking.add_to(
            tracking.BitMap(), ((first * per_chunk, end * per_chunk) for first, end in tracking.runs(whole.grains))
        )
        grains.remove_range(total, grains.max() + 1 if grains else total)
        beside = path.with_name(path.name + ".new")
        PendingGrains.create(beside, grains, total, io).close()
        io.rename(beside, path)
        io.fsync_directory(path.parent)
    io.unlink(old)


def _sectors(grains: tracking.BitMap) -> Iterator[int]:
    """Yield the sectors that hold some of `grains`, in order."""
    at = 0
    while (grain := next(grains.iter_equal_or_larger(at), None)) is not None:
        yield grain // _BITS
        at = (grain // _BITS + 1) * _BITS


def _encode(grains: tracking.BitMap, sector: int) -> bytes:
    first = sector * _BITS
    bits = bytearray(_SECTOR - _CRC.size)
    if grains.contains_range(first, first + _BITS):
        full = b"\xff" * len(bits)
        return full + _CRC.pack(crc32c.crc32c(full))
    for grain in grains.iter_equal_or_larger(first):
        if grain >= first + _BITS:
            break
        bits[(grain - first) >> 3] |= 1 << (grain & 7)
    if not any(bits):
        return bytes(_SECTOR)
    return bytes(bits) + _CRC.pack(crc32c.crc32c(bits))


def _decode(data: bytes, sector: int) -> list[int] | None:
    """Return the grains of a sector; None if it is damaged."""
    bits = data[: -_CRC.size]
    if not any(data):
        return []
    if _CRC.unpack(data[-_CRC.size :])[0] != crc32c.crc32c(bits):
        return None
    first = sector * _BITS
    return [first + at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
