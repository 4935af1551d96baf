# SPDX-License-Identifier: Apache-2.0
"""A `StorageIO` that fails on demand: the disk under stores, manifests and primaries.

`FaultyIO().fail("fdatasync", errno.EIO, path="*.chunks", after=2)` lets the third and every further call of that kind on
such a file raise OSError and do nothing; `times` bounds their number.  `delay` lets a call wait for an event instead.  A short
write (`shorten`) moves only a part, as the kernel may.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lun_backends.files import storage_io

FOREVER = 1 << 62


@dataclass
class _Rule:
    operation: str
    path: str
    number: int  # errno; 0 for a delay
    after: int
    times: int
    gate: threading.Event | None = None


class FaultyIO(storage_io.StorageIO):
    """The plain calls with rules for failures; thread-safe."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self.failed = 0
        self.shorten = False

    def fail(
        self, operation: str, number: int = errno.EIO, *, path: str = "*", after: int = 0, times: int = FOREVER
    ) -> None:
        """Let calls of `operation` (a method's name, or `*`) on files with a name like `path` raise that errno."""
        self._rules.append(_Rule(operation, path, number, after, times))

    def delay(self, operation: str, gate: threading.Event, *, path: str = "*", times: int = FOREVER) -> None:
        """Let such calls wait until `gate` is set."""
        self._rules.append(_Rule(operation, path, 0, 0, times, gate))

    def heal(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    def _meet(self, operation: str, name: str) -> None:
        gates = []
        with self._lock:
            for rule in self._rules:
                if rule.operation not in ("*", operation) or not fnmatch.fnmatch(name, rule.path) or not rule.times:
                    continue
                if rule.after:
                    rule.after -= 1
                    continue
                rule.times -= 1
                if rule.gate is not None:
                    gates.append(rule.gate)
                    continue
                self.failed += 1
                raise OSError(rule.number, os.strerror(rule.number), name)
        for gate in gates:
            assert gate.wait(60)

    def _meet_fd(self, operation: str, fd: int) -> None:
        if self._rules:
            self._meet(operation, Path(f"/proc/self/fd/{fd}").readlink().name)

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._meet("open", path.name)
        return super().open(path, flags, mode)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        self._meet_fd("preadv", fd)
        return super().preadv(fd, buffers, offset, flags)

    def pwritev(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        self._meet_fd("pwritev", fd)
        if self.shorten:
            first = memoryview(buffers[0])
            return super().pwritev(fd, [first[: max(512, len(first) // 2)]], offset)
        return super().pwritev(fd, buffers, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        self._meet_fd("ftruncate", fd)
        super().ftruncate(fd, length)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        self._meet_fd("reserve", fd)
        super().reserve(fd, offset, length)

    def fdatasync(self, fd: int) -> None:
        self._meet_fd("fdatasync", fd)
        super().fdatasync(fd)

    def store(self, fd: int, words: bytes, offset: int) -> None:
        self._meet_fd("store", fd)
        super().store(fd, words, offset)

    def sync_map(self, fd: int) -> None:
        self._meet_fd("sync_map", fd)
        super().sync_map(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._meet("rename", new.name)
        super().rename(old, new)

    def exchange(self, first: Path, second: Path) -> None:
        self._meet("rename", second.name)
        super().exchange(first, second)

    def unlink(self, path: Path) -> None:
        self._meet("unlink", path.name)
        super().unlink(path)

    def fsync_directory(self, path: Path) -> None:
        self._meet("fsync_directory", path.name)
        super().fsync_directory(path)
