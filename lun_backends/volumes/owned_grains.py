# SPDX-License-Identifier: Apache-2.0
"""The grains that a clone has itself, in two files: those that survive a power cut, and those of this boot.

| file           | has                                       | written                                           | read by an open           |
| -------------- | ----------------------------------------- | ------------------------------------------------- | ------------------------- |
| `NAME.map`     | grains whose data is on stable storage    | by a flush, after it has synced the data          | always                    |
| `NAME.recent`  | grains whose data is in the page cache    | by each first write, after its data, without sync | in the same boot only     |

So a killed process loses nothing that it acknowledged: the page cache has the data, and `NAME.recent` says so.  A power
cut loses what was not flushed, and nothing else: `NAME.recent` does not count in another boot, whatever part of it the
disk has, and no grain is in `NAME.map` before its data is durable.  There is no journal, and an open repairs nothing.

`NAME.map` has the form of `pending_grains`: sectors with a checksum, of which a power cut leaves the old or the new
content.  Both are right, because grains are only added.  `NAME.recent` begins with the identity of the boot; from byte
4096 on it has one bit for each grain.
"""

from __future__ import annotations

import os
from pathlib import Path

from lun_backends import tracking
from lun_backends.files import os_error, storage_io
from lun_backends.volumes import boot, pending_grains

_BITS_AT = 4096
_PAGE = 4096
_READ = 1 << 20


class OwnedGrains:
    """The open files; `grains` are the grains.  One thread at a time may call each method."""

    def __init__(self, settled: pending_grains.PendingGrains, fd: int, total: int, io: storage_io.StorageIO) -> None:
        """Wrap open files.  Callers use `create` or `open`."""
        self.grains = settled.grains.copy()
        self._settled = settled
        self._fd = fd
        self._total = total
        self._io = io
        self._reserved: set[int] = set()

    @classmethod
    def create(cls, path: Path, total: int, io: storage_io.StorageIO) -> OwnedGrains:
        """Make the files `path`.map and `path`.recent for none of `total` grains; the names are not durable.  Raises OSError."""
        settled = pending_grains.PendingGrains.create(map_file(path), tracking.BitMap(), total, io)
        return cls._with_recent(path, settled, total, io)

    @classmethod
    def open(cls, path: Path, total: int, io: storage_io.StorageIO) -> OwnedGrains:
        """Open existing files.  Raises PendingDamaged."""
        settled = pending_grains.PendingGrains.open(map_file(path), total, io)
        try:
            return cls._with_recent(path, settled, total, io)
        except OSError as error:
            raise pending_grains.PendingDamaged(recent_file(path), os_error.reason(error)) from error

    @classmethod
    def _with_recent(
        cls, path: Path, settled: pending_grains.PendingGrains, total: int, io: storage_io.StorageIO
    ) -> OwnedGrains:
        fd = -1
        try:
            fd = io.open(recent_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            made = cls(settled, fd, total, io)
            made._take_recent()
        except BaseException:
            settled.close()
            if fd >= 0:
                io.close(fd)
            raise
        return made

    def _take_recent(self) -> None:
        """Take over what an earlier process of this boot noted; begin anew in another boot.  Raises OSError."""
        now = boot.current().encode().ljust(_BITS_AT, b"\0")
        header = memoryview(bytearray(_BITS_AT))
        storage_io.read_all(self._io, self._fd, [header], 0, _BITS_AT)
        length = _BITS_AT + -(-self._total // 8)
        if bytes(header) != now:
            self._io.ftruncate(self._fd, 0)
            self._io.ftruncate(self._fd, length)
            storage_io.write_all(self._io, self._fd, [now], 0, len(now))
            return
        buffer = memoryview(bytearray(_READ))
        for offset in range(_BITS_AT, length, _READ):
            piece = buffer[: min(_READ, length - offset)]
            got = storage_io.read_all(self._io, self._fd, [piece], offset, len(piece))
            if bytes(piece[:got]).count(0) < got:
                first = (offset - _BITS_AT) * 8
                self.grains.update(
                    first + at * 8 + bit
                    for at, byte in enumerate(bytes(piece[:got]))
                    if byte
                    for bit in range(8)
                    if byte >> bit & 1
                )

    def reserve(self, first: int, end: int) -> None:
        """Give the words of the grains [first, end) their space on disk.  Raises OSError."""
        for page in range((_BITS_AT + (first >> 3)) // _PAGE, (_BITS_AT + ((end - 1) >> 3)) // _PAGE + 1):
            if page not in self._reserved:
                self._io.reserve(self._fd, page * _PAGE, _PAGE)
                self._reserved.add(page)
        self._settled.reserve(first, end)

    def add(self, first: int, end: int) -> None:
        """Add the grains [first, end), whose data is in the page cache.  Raises OSError, and then adds none."""
        low, high = first >> 3, (end - 1) >> 3
        bits = bytearray(b"\xff" * (high - low + 1))
        for at in {low, high}:
            own = sum(1 << bit for bit in range(8) if first <= (grain := at * 8 + bit) < end or grain in self.grains)
            bits[at - low] = own
        storage_io.write_all(self._io, self._fd, [bytes(bits)], _BITS_AT + low, len(bits))
        self.grains.add_range(first, end)

    def distrust(self) -> None:
        """Let no later process count on what is not settled: the kernel may have dropped its data.  Raises OSError."""
        storage_io.write_all(self._io, self._fd, [bytes(_BITS_AT)], 0, _BITS_AT)

    def unsettled(self) -> tracking.BitMap:
        """Return the grains that a power cut would take."""
        return self.grains - self._settled.grains

    def settle(self, grains: tracking.BitMap) -> None:
        """Note, durably, that the data of these grains is durable.  Raises OSError."""
        self._settled.add(grains)

    def close(self) -> None:
        """Close the files.  Closing twice is allowed."""
        self._settled.close()
        if self._fd >= 0:
            self._io.close(self._fd)
            self._fd = -1


def map_file(path: Path) -> Path:
    """Return the path of the grains that survive a power cut."""
    return path.with_name(path.name + ".map")


def recent_file(path: Path) -> Path:
    """Return the path of the grains of this boot."""
    return path.with_name(path.name + ".recent")
