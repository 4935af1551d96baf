# SPDX-License-Identifier: Apache-2.0
"""Files and block devices that serve as primaries: how they are made and held open, and their properties."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lun_backends import refused
from lun_backends.files import os_error, small_file

_BLKPBSZGET = 0x127B  # linux/fs.h; an unsigned int

# Files in memory refuse RWF_NOWAIT (tmpfs on Linux 6.18: EOPNOTSUPP), and there is no disk to wait for.
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@dataclass(eq=False)
class CannotOpen(refused.Refused):
    """The file or device at `path` cannot serve as a block device; `reason` says why, `remedy` what to do."""

    path: Path
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"cannot open {self.path}: {self.reason}; {self.remedy}"


class Descriptor:
    """A file descriptor that is closed with its last reference.

    A running call holds a reference, so the kernel cannot give the number to another file meanwhile.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def physical_block_size(fd: int) -> int:
    """Return the bytes per physical block of a block device, 0 if the device does not say."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, _BLKPBSZGET, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def too_large(path: Path, size: int) -> CannotOpen:
    """Return the error for a size that no file on that file system can have."""
    return CannotOpen(path, f"no file can have {size} bytes there", "give a smaller size")


def create(path: Path, size: int) -> None:
    """Make a sparse file of `size` bytes, durably.

    Raise CannotOpen if the path exists already or the file cannot be made.  Then no part of it is left behind.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)
        small_file.sync_directory(path.parent)
    except FileExistsError as error:
        raise CannotOpen(path, "it exists already", "give another path, or open it instead of creating it") from error
    except OverflowError as error:  # no file system has files that large
        raise too_large(path, size) from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise too_large(path, size) from error
        raise CannotOpen(path, os_error.reason(error), "check the path, its permissions and the free space") from error


def file_system(fd: int) -> str:
    """Return the type of the file system of `fd`, as /proc/self/mountinfo names it; empty if it is not listed."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        mount, _, details = line.partition(" - ")
        if mount.split()[2] == number:
            return details.split()[0]
    return ""
