# SPDX-License-Identifier: Apache-2.0
"""The system calls by which stores change files, gathered in one object that can be replaced.

Every change that a store makes to a file goes through a `StorageIO`.  So a layer in its place can inject errors, or
record the calls in order and replay the files that a power cut could have left.  `SYSTEM` makes the plain calls.

A chunk map is mapped for reading only, and `store` writes its words.  A store into a mapping ends the process with SIGBUS
where the file system finds no room for the page, which `reserve` cannot rule out: btrfs, and XFS with a file that shares
its blocks (reflink), write changed pages to a new place.  `store` raises ENOSPC there.

Python's `mmap.flush` keeps the interpreter lock while `msync` waits for the disk, which stops every thread (measured: 1
tick of another thread's 1 ms clock in 144 ms).  On Linux, `msync(MS_SYNC)` is `vfs_fsync_range` on the mapped file, and
`fdatasync` finds pages that were dirtied through a shared mapping just the same.  So `sync_map` is an `fdatasync`: it
releases the lock, and it covers all touched pages with one flush of the disk's cache, however far apart they are.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

IOV_MAX = os.sysconf("SC_IOV_MAX")
NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""The errors of a file system without room: full, over quota, or beyond the largest file of file system or process."""

FALLOC_KEEP_SIZE = 0x01  # linux/falloc.h
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate64.restype = ctypes.c_int


_AT_FDCWD = -100  # fcntl.h
_RENAME_EXCHANGE = 0x02  # linux/fs.h
_renameat2 = getattr(_libc, "renameat2", None)
if _renameat2 is not None:
    _renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    _renameat2.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or free space of a file, in any mode of the system call.  Raises OSError.

    Python's `os` has only the mode that makes files longer.
    """
    if _libc.fallocate64(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class StorageIO:
    """The plain system calls; all raise OSError.  Offsets and lengths are in bytes."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open or create a file (open(2)); child processes do not inherit the descriptor."""
        return os.open(path, flags, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        return os.preadv(fd, buffers, offset, flags)

    def pwritev(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        """Give the range its space on disk; its content stays."""
        os.posix_fallocate(fd, offset, length)

    def set_aside(self, fd: int, offset: int, length: int) -> None:
        """Give the range its space on disk for later writes; length and content of the file stay.

        `ftruncate` to the file's own length frees the space behind its end.
        """
        fallocate(fd, FALLOC_KEEP_SIZE, offset, length)

    def map(self, fd: int, length: int) -> mmap.mmap:
        """Map the first `length` bytes of a file, shared, for reading."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ)

    def store(self, fd: int, words: bytes, offset: int) -> None:
        """Write words of a map, which readers of its mapping see at once; `sync_map` makes them durable."""
        if os.pwrite(fd, words, offset) != len(words):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # within a page nothing else stops a write short

    def forget(self, fd: int, offset: int, length: int) -> None:
        """Drop the clean pages of the range from the page cache, so that the next read is one from the disk."""
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Make data, length, times and attributes of the file durable."""
        os.fsync(fd)

    def attribute(self, fd: int, name: str) -> bytes:
        """Return an extended attribute of the file."""
        return os.getxattr(fd, name)

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        """Set an extended attribute of the file."""
        os.setxattr(fd, name, value)

    def sync_map(self, fd: int) -> None:
        """Make every store into the mapped file durable; the module's docstring says how."""
        os.fdatasync(fd)

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def exchange(self, first: Path, second: Path) -> None:
        """Exchange the files of two names, in one step (renameat2(2))."""
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        names = os.fsencode(first), os.fsencode(second)
        if _renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(first))

    def unlink(self, path: Path) -> None:
        path.unlink()

    def fsync_directory(self, path: Path) -> None:
        """Make the names in directory `path` durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


SYSTEM = StorageIO()


def write_all(io: StorageIO, fd: int, buffers: Sequence[memoryview | bytes], offset: int, length: int) -> None:
    """Write all `length` bytes of a scatter list at `offset`, with as many calls as it takes.  Raises OSError."""
    done = io.pwritev(fd, buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX], offset)
    total = done
    rest: list[memoryview] = []
    while total < length:
        rest = _after(rest or [memoryview(buffer) for buffer in buffers], done)
        done = io.pwritev(fd, rest[:IOV_MAX], offset + total)
        total += done


def read_all(io: StorageIO, fd: int, buffers: Sequence[memoryview], offset: int, length: int, flags: int = 0) -> int:
    """Fill a scatter list of `length` bytes from `offset` and return the number of bytes read.

    It is smaller than `length` only at the end of the file, or if `flags` has RWF_NOWAIT and reading the rest would
    wait. Raises OSError.
    """
    done = io.preadv(fd, buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX], offset, flags)
    total = done
    rest: list[memoryview] = []
    while total < length and done:
        rest = _after(rest or list(buffers), done)
        done = io.preadv(fd, rest[:IOV_MAX], offset + total, flags)
        total += done
    return total


def _after(buffers: list[memoryview], skip: int) -> list[memoryview]:
    """Return the scatter list without its first `skip` bytes."""
    index = 0
    while skip >= len(buffers[index]):
        skip -= len(buffers[index])
        index += 1
    return [buffers[index][skip:], *buffers[index + 1 :]]
