# SPDX-License-Identifier: Apache-2.0
"""Files that are opened when they are used, and closed when others need their descriptors.

A process may have only so many descriptors, and a volume may have thousands of snapshots, most of which nobody reads.
`Descriptors` keeps at most `most` of its files open.  To open one more, it closes one that no call is using, that has
nothing unsynced, and that was not used since the last look at it (the clock algorithm).  If there is none, it goes above
`most`.

A file that was closed is opened again by its path.  If another file is there by now, that is an error (ESTALE).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

from lun_backends.files import storage_io

_PART = 8  # of the limit of descriptors
_LEAST = 8


def share(limit: int) -> int:
    """Return how many of a process's `limit` descriptors such files take at most while they are idle."""
    return max(_LEAST, limit // _PART)


class Descriptors:
    """The open ones of many files; `most` of them, or the eighth part of the process's limit."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._open: collections.deque[Reopened] = collections.deque()

    def __len__(self) -> int:
        return len(self._open)

    def _limit(self) -> int:
        if self.most is not None:
            return self.most
        return share(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def add(self, file: Reopened) -> None:
        """Count a file that is open now."""
        with self._lock:
            self._make_room()
            self._open.append(file)

    def remove(self, file: Reopened) -> int | None:
        """Return the descriptor of a file for good; None if it has none.  No call may be using the file."""
        with self._lock:
            fd, file.fd = file.fd, None
            with contextlib.suppress(ValueError):
                self._open.remove(file)
            return fd

    def reopen(self, file: Reopened) -> int:
        """Open a file that was closed, unless another thread did.  Raises OSError."""
        with self._lock:
            if file.fd is None:
                self._make_room()
                file.fd = file.opened()
                self._open.append(file)
            return file.fd

    def _make_room(self) -> None:
        """Close files until one more may be open; look at each at most twice."""
        most = self._limit()
        for _ in range(2 * len(self._open)):
            if len(self._open) < most:
                return
            file = self._open.popleft()
            if not file.give_up():
                self._open.append(file)


PROCESS = Descriptors()
"""The files of this process."""


class Reopened:
    """A file at `path`, open as `fd`, which may be closed and opened again between calls.

    `settle` is called with the descriptor before it is closed.  A thread uses the file as `with file as fd:`.
    """

    __slots__ = ("_identity", "_io", "_path", "_pool", "_settle", "_using", "dirty", "fd", "used")

    def __init__(
        self,
        path: Path,
        fd: int,
        io: storage_io.StorageIO,
        settle: Callable[[int], None],
        pool: Descriptors = PROCESS,
    ) -> None:
        self.fd: int | None = fd
        self.dirty = False  # whether something written is not synced: the file stays open, so that its errors are met
        self.used = True
        self._path = path
        self._io = io
        self._settle = settle
        self._pool = pool
        # One entry a running call: append and pop are atomic.  A call enters before it looks at `fd`, and `give_up` takes
        # `fd` away before it looks for calls.  So either it sees the call, or the call sees that it has to open the file.
        self._using: list[None] = []
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)
        pool.add(self)

    def __enter__(self) -> int:
        self._using.append(None)
        self.used = True
        fd = self.fd
        if fd is not None:
            return fd
        try:
            return self._pool.reopen(self)
        except BaseException:
            self._using.pop()
            raise

    def __exit__(self, *_: object) -> None:
        self._using.pop()

    def status(self) -> os.stat_result:
        """Return the status of the file, without opening it.  Raises OSError."""
        self._using.append(None)
        try:
            fd = self.fd
            return os.fstat(fd) if fd is not None else self._path.stat()
        finally:
            self._using.pop()

    def opened(self) -> int:
        """Open the file again.  Raises OSError."""
        fd = self._io.open(self._path, os.O_RDWR)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self._identity:
            self._io.close(fd)
            raise OSError(errno.ESTALE, "another file is in its place")
        return fd

    def give_up(self) -> bool:
        """Close the file if nothing speaks against it; return whether it is closed.  `Descriptors` calls it, with its lock."""
        if self.used:
            self.used = False
            return False
        fd = self.fd
        if fd is None:
            return True
        self.fd = None
        if self._using or self.dirty:
            self.fd = fd
            return False
        self._settle(fd)
        self._io.close(fd)
        return True

    def close(self) -> None:
        """Close the file for good.  No call may be using it."""
        fd = self._pool.remove(self)
        if fd is not None:
            self._settle(fd)
            self._io.close(fd)
        self._settle = _nothing  # break the reference circle with the owner, because the garbage collector seldom runs


def _nothing(_fd: int) -> None:
    """Settle nothing: the file is closed for good."""
