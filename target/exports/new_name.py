# SPDX-License-Identifier: Apache-2.0
"""The naming of a complete file, on any file system; it never replaces a file that has the name already.

| method                                | works on                                                       |
| ------------------------------------- | -------------------------------------------------------------- |
| `link`                                | file systems with hard links, also for a file without a name   |
| `renameat2` with RENAME_NOREPLACE     | most others: FAT, exFAT, newer FUSE                            |
| an empty file of that name, made only | all others.  A program that opens the name in between finds an |
| if there is none; then `rename`       | empty file                                                     |
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_CANNOT = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV})
"""The answers of file systems that lack the operation."""


def link(fd: int, name: Path) -> None:
    """Give the open file a name.  Raises OSError, FileExistsError."""
    # Python follows the link only if it is given a descriptor of a directory, although an absolute path needs none.
    os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)


def can_link(directory: Path, beside: Path) -> bool:
    """Return whether a file without a name can get one in `directory`.  Raises OSError if no file can be made there at all.

    `beside` is a name that a try may use; it is free again afterwards.
    """
    fd = os.open(directory, os.O_WRONLY | os.O_CLOEXEC | os.O_TMPFILE, 0o600)
    try:
        link(fd, beside)
    except OSError:
        return False
    finally:
        os.close(fd)
    beside.unlink()
    return True


def move(old: Path, new: Path) -> None:
    """Rename a file to a name that no file has.  Raises OSError, FileExistsError."""
    for way in (_link_and_unlink, _rename_noreplace):
        try:
            way(old, new)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        else:
            return
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.close(fd)
    try:
        old.rename(new)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _link_and_unlink(old: Path, new: Path) -> None:
    os.link(old, new)
    old.unlink()


def _rename_noreplace(old: Path, new: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None  # a C library without it
    if renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))
