# SPDX-License-Identifier: Apache-2.0
"""A `StorageIO` that makes the plain calls and logs all their changes, in order.

A map is mapped for reading only: each of its words is written by `store`.  The disk may be reading the page at that moment,
so a cut may leave any mixture of its words, as with a store into a mapping.

The log also takes the marks of the workload (`mark`): its requests and the promises that it received, in the same order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lun_backends.files import facts, storage_io
from tests.powercut import promises

PAGE = 4096
WORD = 8  # bytes: words of a map are at most this large, and aligned


@dataclass(frozen=True, slots=True)
class Write:
    """A write of `data` at `offset` of a file; `stored`: words of a map."""

    file: int
    offset: int
    data: bytes
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Length:
    """The file is `length` bytes long now."""

    file: int
    length: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """The file has `value` as its mark (an extended attribute) now."""

    file: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Name:
    """`path`, relative to the root, leads to `file` now, or (None) nowhere."""

    path: Path
    file: int | None


@dataclass(frozen=True, slots=True)
class SyncBegins:
    """A sync of a file, or of a directory (relative to the root), began; `sync` identifies it; `whole`: with attributes."""

    sync: int
    target: int | Path
    whole: bool = False


@dataclass(frozen=True, slots=True)
class SyncEnds:
    """The sync returned: everything written before it began is durable."""

    sync: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A note of the workload."""

    note: promises.Note


Event = Write | Length | Attribute | Name | SyncBegins | SyncEnds | Mark


@dataclass(frozen=True, slots=True)
class Start:
    """A tree of files, all of it durable: (name, file) and file -> content."""

    names: tuple[tuple[Path, int], ...]
    content: dict[int, bytes]
    attributes: dict[int, bytes]


class RecordingIO(storage_io.StorageIO):
    """A recorder of all changes to the files under `root`; it begins with the files that are there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[Event] = []
        self.lock = threading.RLock()
        self._files: dict[int, int] = {}  # inode -> number of the file
        self._next = 0
        self._syncs = 0
        names: list[tuple[Path, int]] = []
        content: dict[int, bytes] = {}
        attributes: dict[int, bytes] = {}
        for path in sorted(root.rglob("*")):
            if path.is_file():
                number = self._files.setdefault(path.stat().st_ino, len(self._files))
                names.append((path.relative_to(root), number))
                content[number] = path.read_bytes()
                if facts.MARK in os.listxattr(path):
                    attributes[number] = os.getxattr(path, facts.MARK)
        self._next = len(self._files)
        self.start = Start(tuple(names), content, attributes)

    def mark(self, note: promises.Note) -> None:
        """Put a note into the log, at its place in time."""
        with self.lock:
            self.log.append(Mark(note))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        with self.lock:
            there = path.exists()
            fd = super().open(path, flags, mode)
            inode = os.fstat(fd).st_ino
            if not there:
                self._files[inode] = self._next
                self._next += 1
                self.log.append(Name(path.relative_to(self.root), self._files[inode]))
            elif flags & os.O_TRUNC:
                self.log.append(Length(self._files[inode], 0))
            return fd

    def close(self, fd: int) -> None:
        with self.lock:
            super().close(fd)

    def pwritev(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        with self.lock:
            done = super().pwritev(fd, buffers, offset)
            self.log.append(Write(self._file(fd), offset, b"".join(buffers)[:done]))
            return done

    def ftruncate(self, fd: int, length: int) -> None:
        with self.lock:
            super().ftruncate(fd, length)
            self.log.append(Length(self._file(fd), length))

    def reserve(self, fd: int, offset: int, length: int) -> None:
        with self.lock:
            before = os.fstat(fd).st_size
            super().reserve(fd, offset, length)
            if offset + length > before:
                self.log.append(Length(self._file(fd), offset + length))

    def store(self, fd: int, words: bytes, offset: int) -> None:
        with self.lock:
            super().store(fd, words, offset)
            self.log.append(Write(self._file(fd), offset, words, stored=True))

    def fdatasync(self, fd: int) -> None:
        sync = self._begin(self._file(fd))
        super().fdatasync(fd)
        self._end(sync)

    def fsync(self, fd: int) -> None:
        sync = self._begin(self._file(fd), whole=True)
        super().fsync(fd)
        self._end(sync)

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        with self.lock:
            super().set_attribute(fd, name, value)
            self.log.append(Attribute(self._file(fd), value))

    def sync_map(self, fd: int) -> None:
        sync = self._begin(self._file(fd))
        super().sync_map(fd)
        self._end(sync)

    def rename(self, old: Path, new: Path) -> None:
        with self.lock:
            number = self._files[old.stat().st_ino]
            super().rename(old, new)
            self.log.append(Name(new.relative_to(self.root), number))
            self.log.append(Name(old.relative_to(self.root), None))

    def exchange(self, first: Path, second: Path) -> None:
        with self.lock:
            numbers = [self._files[path.stat().st_ino] for path in (first, second)]
            super().exchange(first, second)
            self.log.append(Name(second.relative_to(self.root), numbers[0]))
            self.log.append(Name(first.relative_to(self.root), numbers[1]))

    def unlink(self, path: Path) -> None:
        with self.lock:
            super().unlink(path)
            self.log.append(Name(path.relative_to(self.root), None))

    def fsync_directory(self, path: Path) -> None:
        sync = self._begin(path.relative_to(self.root))
        super().fsync_directory(path)
        self._end(sync)

    def _file(self, fd: int) -> int:
        """Return the number of an open file; the primary opens its own, so descriptors do not identify it."""
        return self._files[os.fstat(fd).st_ino]

    def _begin(self, target: int | Path, *, whole: bool = False) -> int:
        with self.lock:
            self._syncs += 1
            self.log.append(SyncBegins(self._syncs, target, whole))
            return self._syncs

    def _end(self, sync: int) -> None:
        with self.lock:
            self.log.append(SyncEnds(sync))
