# SPDX-License-Identifier: Apache-2.0
"""Writes the content of a snapshot into a file.

The file appears under its name only when all of it is there and on stable storage; until then it has no name, so that
nothing is left if the export fails, is cancelled, or the daemon is killed.  (Where the file system has no files without a name
it stands beside it under a name of its own, and a killed daemon leaves that.)  An existing file is replaced only on demand.

A raw file is sparse: holes stay holes, and so does every stretch of `GRAIN` zeroes, since pre-images of blocks that were
holes come as zeroes.  What a qcow2 image leaves out it shows of the image below.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, Self

from lun_backends import block_device
from lun_backends.backups.pieces import ExportPiece
from lun_backends.files import os_error, small_file
from lun_backends.volumes import volume
from target.service import jobs, problems

GRAIN = 64 << 10
_ZEROES = bytes(GRAIN)
_GLANCE = 256
"""Bytes of a grain compared first: most data differs there, and the whole comparison keeps other threads waiting."""


class Image(Protocol):
    """Writes a file in some format."""

    def write(self, offset: int, data: memoryview) -> None:
        """What is at byte `offset` of the volume; calls come in order.  Raises OSError."""

    def finish(self) -> None:
        """All was written: complete the file and make it durable.  Raises OSError."""


def export(
    pieces: Iterable[ExportPiece],
    size: int,
    path: Path,
    *,
    overwrite: bool,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    image: Callable[[int, int], Image] | None = None,
) -> None:
    """Write `pieces`, which make up `size` bytes, to the file at `path`; `progress` is called with (bytes done, `size`).
    `image` makes of (file descriptor, `size`) what writes the file; left out, the file is raw.

    Raises jobs.Cancelled, Problem, and what reading the pieces raises.
    """
    if os.path.lexists(path) and not overwrite:
        raise problems.file_exists(path)
    if path.is_dir() or path.is_block_device() or path.is_char_device():
        raise problems.file_failed(path, "it is a directory or a device")
    try:
        with _NewFile(path) as new:
            fd = new.fd
            writer = _Raw(fd, size) if image is None else image(fd, size)
            for piece in pieces:
                if cancelled():
                    raise jobs.Cancelled
                if piece.data is not None:
                    writer.write(piece.offset, piece.data)
                progress(piece.offset + piece.length, size)
            writer.finish()
            new.publish(overwrite=overwrite)
    except FileExistsError:
        raise problems.file_exists(path) from None
    except OSError as error:
        raise problems.file_failed(path, os_error.reason(error)) from error


class _Raw:
    """What the volume holds, at the same place."""

    def __init__(self, fd: int, size: int) -> None:
        os.truncate(fd, size)
        self._fd = fd

    def write(self, offset: int, data: memoryview) -> None:
        _write(self._fd, offset, data)

    def finish(self) -> None:
        os.fsync(self._fd)


def place(path: Path) -> Path:
    """Where a name really is; what it leads to, if it is a link, does not matter."""
    return path.parent.resolve() / path.name


def check_place(path: Path, volumes: Iterable[volume.Volume], *, overwrite: bool) -> None:
    """Refuse what cannot be the name of an export, or must not: what `volumes` are made of.  Raises Problem."""
    if not path.is_absolute():
        raise problems.file_failed(path, "the path is not absolute")
    for owner in volumes:
        if place(path) == place(owner.primary.path) or place(path).is_relative_to(owner.directory.resolve()):
            raise problems.file_failed(path, f"it belongs to volume {owner.name}")
    if os.path.lexists(path) and not overwrite:
        raise problems.file_exists(path)


def check_room(path: Path, needed: int) -> None:
    """Refuse what is sure to fill the disk: there must be `needed` bytes where `path` will be.  Raises Problem."""
    try:
        space = os.statvfs(path.parent)
    except OSError as error:
        raise problems.file_failed(path, os_error.reason(error)) from error
    free = space.f_bavail * space.f_frsize
    if needed > free:
        raise problems.no_room(path, needed, free)


def data_bytes(view: block_device.BlockDevice) -> int:
    """How much of a device is data; what of it is zeroes takes no room in an export, but that is seen only when it is read."""
    return sum(extent.length for extent in view.extents(0, view.size) if extent.kind is block_device.ExtentKind.DATA)


class _NewFile:
    """The file that will be at `path`, open as `fd`; gone at the end of the context unless it was published.  Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            self.fd = os.open(path.parent, flags | os.O_TMPFILE, 0o600)
            self._named = False
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # what file systems and old kernels without it say
                raise
            self.fd = os.open(self._beside, flags | os.O_CREAT | os.O_EXCL, 0o600)
            self._named = True

    def publish(self, *, overwrite: bool) -> None:
        """Give it its name, durably.  Raises OSError."""
        if overwrite:
            if not self._named:
                self._link(self._beside)
                self._named = True
            self._beside.replace(self._path)
        else:
            self._link(self._path)  # unlike rename, refuses if the file has come into being meanwhile
        small_file.sync_directory(self._path.parent)

    def _link(self, name: Path) -> None:
        # With a descriptor for the directory, which an absolute path has no use for, Python follows the link; else it does not.
        os.link(f"/proc/self/fd/{self.fd}", name, src_dir_fd=self.fd, follow_symlinks=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        if self._named:
            self._beside.unlink(missing_ok=True)


def _write(fd: int, offset: int, data: memoryview) -> None:
    """Write what is not zero, in as few calls as there are stretches."""
    start: int | None = None
    for position in range(0, len(data), GRAIN):
        grain = data[position : position + GRAIN]
        if _is_zero(grain):
            if start is not None:
                _write_all(fd, offset + start, data[start:position])
                start = None
        elif start is None:
            start = position
    if start is not None:
        _write_all(fd, offset + start, data[start:])


def _is_zero(grain: memoryview) -> bool:
    return bytes(grain[:_GLANCE]) == _ZEROES[: len(grain[:_GLANCE])] and bytes(grain) == _ZEROES[: len(grain)]


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    while len(data):
        written = os.pwrite(fd, data, offset)
        offset += written
        data = data[written:]
