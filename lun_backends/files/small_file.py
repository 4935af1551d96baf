# SPDX-License-Identifier: Apache-2.0
"""Small files that are replaced as a whole: a crash or a power cut leaves the old one or the new one.

The new content is written beside the file (`path`.new) and synced, then renamed over it, then the directory is synced.
This is the only place that does so.  `prepare` is the slow half and `commit` the quick half, so that a caller can hold
locks or writes during the quick half only.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lun_backends.files import storage_io


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
) -> None:
    """Write `content` beside the file, durably except for its name.  Raises OSError; the file itself is as before.

    If there is a file `room`, it becomes the new file, and the content uses the space that `room` has on disk.
    """
    new = beside(path)
    if room is None:
        flags = os.O_EXCL  # never into a file that another process has open, or has linked to
        with contextlib.suppress(FileNotFoundError):
            io.unlink(new)
    else:
        flags = 0
        with contextlib.suppress(FileNotFoundError):
            io.rename(room, new)
    fd = io.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask is
        storage_io.write_all(io, fd, [content], 0, len(content))
        io.ftruncate(fd, len(content))
        io.fdatasync(fd)
    finally:
        io.close(fd)


def commit(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Put the prepared content in the file's place, durably.  Raises OSError, and then a crash may leave either file."""
    io.rename(beside(path), path)
    io.fsync_directory(path.parent)


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
