# SPDX-License-Identifier: Apache-2.0
"""Small files that are replaced as a whole: a crash or a power cut leaves the old one or the new one.

The new content is written beside the file (`path`.new) and synced, then renamed over it, then the directory is synced.
This is the only place that does so.  `prepare` is the slow half and `commit` the quick half, so that a caller can hold
locks or writes during the quick half only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from lun_backends.files import storage_io

_SMALL = 65536
"""Bytes that a file may keep beyond what its content needs."""


def beside(path: Path) -> Path:
    """Return the file that has the new content until `commit`."""
    return path.with_name(f"{path.name}.new")


def prepare(
    path: Path,
    content: bytes,
    mode: int = 0o600,
    io: storage_io.StorageIO = storage_io.SYSTEM,
    *,
    room: Path | None = None,
    slack: int = 0,
) -> None:
    """Write `content` beside the file, durably but for its name.  Raises OSError; the file itself is as before.

    If there is a file `room`, it becomes the new file, and the content takes the space that it has on disk.  It keeps that
    space, and gets `slack` bytes if the disk has them: a longer file is filled up with line ends.
    """
    new = beside(path)
    if room is None:
        flags = os.O_EXCL  # never into a file that another process has open, or has linked to
        with contextlib.suppress(FileNotFoundError):
            io.unlink(new)
    else:
        flags = 0
        _take_room(path, room, io)
    try:
        fd = io.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
        try:
            os.fchmod(fd, mode)  # whatever the umask is
            length = os.fstat(fd).st_size
            if len(content) < length <= max(4 * len(content), _SMALL):
                content = content.ljust(length, b"\n")
            storage_io.write_all(io, fd, [content], 0, len(content))
            if length > len(content) or room is None:
                io.ftruncate(fd, len(content))
            if slack > len(content):
                with contextlib.suppress(OSError):
                    io.set_aside(fd, 0, slack)
            io.fdatasync(fd)
        finally:
            io.close(fd)
    except OSError:
        if room is not None:
            with contextlib.suppress(OSError):
                io.rename(new, room)
        raise


def _take_room(path: Path, room: Path, io: storage_io.StorageIO) -> None:
    """Give the file `room` the name of the new file, if it is there.  Raises OSError."""
    new = beside(path)
    for name in (room, new):
        with contextlib.suppress(FileNotFoundError):
            if name.samefile(path):  # a cut left two names of the file in force, which must not be written to
                io.unlink(name)
    try:
        io.rename(room, new)
    except FileNotFoundError:
        if new.exists():  # a process was killed within `commit`, and the exchange must be durable first
            io.fsync_directory(path.parent)


def commit(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM, *, room: Path | None = None) -> None:
    """Put the prepared content in the file's place, durably.  Raises OSError, and then a crash may leave either file.

    With `room`, the old file gets that name: its space is kept for the next content.
    """
    new = beside(path)
    if room is None or not _exchange(new, path, io):
        io.rename(new, path)
        io.fsync_directory(path.parent)
        return
    try:
        io.fsync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):  # after a crash it may be the file in force, so it must not be written to
            io.unlink(new)
        raise
    with contextlib.suppress(OSError):
        io.rename(new, room)


def _exchange(new: Path, path: Path, io: storage_io.StorageIO) -> bool:
    """Exchange both files.  Return whether the file system can do that, and both are there.  Raises OSError."""
    try:
        io.exchange(new, path)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            return False
        raise
    return True


def replace(path: Path, content: bytes, mode: int = 0o600, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Put `content` in the file's place, durably.  Raises OSError."""
    prepare(path, content, mode, io)
    commit(path, io)


def remove(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Remove the file, durably; nothing happens if there is none.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        io.unlink(path)
        io.fsync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.  Raises OSError."""
    storage_io.SYSTEM.fsync_directory(path)
