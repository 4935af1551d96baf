# SPDX-License-Identifier: Apache-2.0
"""The facts about a file or a disk by which it is recognised later, and by which a change of it is noticed.

| fact                       | of a file           | of a disk                                                                 |
| -------------------------- | ------------------- | ------------------------------------------------------------------------- |
| identity                   | inode               | `ids`, from sysfs: WWN, serial, UUID, place                               |
| place, in this boot        | device number       | `diskseq`, which is unique among the disks of a boot                      |
| last write                 | change time         | the sectors written and discarded in this boot                            |
| a mark of ours (`mark`)    | extended attribute  | -                                                                         |

Not every file system has each fact, and a missing one is None, 0 or empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lun_backends.files import backing_file, storage_io

MARK = "user.wolun.generation"
"""The extended attribute that holds the mark."""

SYSFS = Path("/sys/dev/block")

_PASSING_INODES = frozenset({"vfat", "msdos", "exfat"})
"""File systems that give a file another inode number with each mount."""

_NO_MARKS = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS})
_IDS = ("wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "md/uuid", "loop/backing_file")
_SECTORS_WRITTEN, _SECTORS_DISCARDED = 6, 13  # fields of `stat` (Documentation/block/stat.rst)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about an open file or disk.  Times are in nanoseconds since 1970, sizes in bytes."""

    is_disk: bool
    size: int
    device: str = ""  # the device number of the file's file system, MAJOR:MINOR
    inode: int = 0  # 0: the file system does not keep it
    changed: int = 0
    modified: int = 0
    marks: bool = False  # the file system can hold a mark
    mark: str = ""
    ids: Mapping[str, str] | None = None
    sequence: str = ""  # of a disk in this boot
    written: int | None = None  # sectors that were written or discarded in this boot


def observe(fd: int, io: storage_io.StorageIO = storage_io.SYSTEM) -> Facts:
    """Return the facts about an open file or block device.  Raises OSError."""
    status = os.fstat(fd)
    size = os.lseek(fd, 0, os.SEEK_END)
    if stat.S_ISBLK(status.st_mode):
        return _disk(status.st_rdev, size)
    marks, mark = _mark(fd, io)
    return Facts(
        is_disk=False,
        size=size,
        device=_number(status.st_dev),
        inode=inode(fd),
        changed=changed(fd),
        modified=status.st_mtime_ns,
        marks=marks,
        mark=mark,
    )


def inode(fd: int) -> int:
    """Return the inode number of an open file; 0 if its file system does not keep it."""
    return 0 if backing_file.file_system(fd) in _PASSING_INODES else os.fstat(fd).st_ino


def changed(fd: int) -> int:
    """Return the change time of an open file, which no program can set."""
    return os.fstat(fd).st_ctime_ns


def set_mark(fd: int, text: str, io: storage_io.StorageIO) -> bool:
    """Set the mark of an open file, durably.  Return whether its file system took it.  Raises OSError of the sync."""
    try:
        io.set_attribute(fd, MARK, text.encode())
    except OSError:
        return False
    io.fsync(fd)
    return True


def _mark(fd: int, io: storage_io.StorageIO) -> tuple[bool, str]:
    """Return whether the file system can hold a mark, and the mark."""
    try:
        return True, io.attribute(fd, MARK).decode("ascii", "replace")
    except OSError as error:
        return error.errno not in _NO_MARKS, ""


def _disk(number: int, size: int) -> Facts:
    place = SYSFS / _number(number)
    ids: dict[str, str] = {}
    whole = place
    if part := _read(place / "partition"):
        ids["partition"] = f"{part} at sector {_read(place / 'start')}"
        with contextlib.suppress(OSError):
            whole = place.resolve(strict=True).parent
    for name in _IDS:
        if text := _read(whole / name):
            ids[name] = text
    fields = _read(place / "stat").split()
    written = None
    if len(fields) > _SECTORS_WRITTEN:
        written = int(fields[_SECTORS_WRITTEN])
        if len(fields) > _SECTORS_DISCARDED:
            written += int(fields[_SECTORS_DISCARDED])
    return Facts(is_disk=True, size=size, ids=ids, sequence=_read(whole / "diskseq"), written=written)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
