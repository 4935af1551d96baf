# SPDX-License-Identifier: Apache-2.0
"""The file that an export writes: complete under its name, or not there at all.

The file gets its name only when it is complete and on stable storage.  Until then it has no name, so nothing is left if
the export fails or is cancelled, or if the daemon is killed.  Some file systems have no files without a name: there the
file has another name beside its place, and a killed daemon leaves it behind.  An existing file is replaced only on
demand.

A raw file is sparse.  Holes stay holes, and each `GRAIN` of zeroes becomes one, because pre-images of blocks that were
holes come as zeroes.  A qcow2 image shows the image below it where it has no data of its own.
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
from lun_backends.files import small_file
from target.exports import new_name, stream
from target.exports.identity import Identity, mark_raw, write_beside
from target.service import jobs, own_files, problems
from target.service.inventory import Inventory

GRAIN = 64 << 10
_ZEROES = bytes(GRAIN)
_GLANCE = 256
"""The bytes of a grain that are compared first.  Most data differs there, and a full comparison holds up other threads."""


class Image(Protocol):
    """A writer of a file in some format."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write the data at byte `offset` of the volume; calls come in order.  Raises OSError."""

    def finish(self) -> None:
        """Complete the file after the last `write`, and make it durable.  Raises OSError."""


def export(
    pieces: Iterable[ExportPiece],
    size: int,
    path: Path,
    *,
    overwrite: bool,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    image: Callable[[int, int], Image] | None = None,
    identity: Callable[[], Identity] | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write `pieces`, which make up `size` bytes, to the file at `path`.

    `progress` is called with (bytes done, `size`).  `image` takes (file descriptor, `size`) and returns the writer of
    the file; without it, the file is raw, and is marked with the result of `identity` at the end.  `check` is called
    before the file gets its name.  Raises jobs.Cancelled, Problem, and the errors of `check` and of reading the pieces.
    """
    if os.path.lexists(path) and not overwrite:
        raise problems.file_exists(path)
    if path.exists() and not path.is_file():
        raise problems.file_failed(path, "it is no file")
    try:
        with _NewFile(path) as new:
            fd = new.fd
            writer = Raw(fd, size) if image is None else image(fd, size)
            for piece in pieces:
                if cancelled():
                    raise jobs.Cancelled
                if piece.data is not None:
                    writer.write(piece.offset, piece.data)
                progress(piece.offset + piece.length, size)
            writer.finish()
            marked = None if image or identity is None else mark_raw(fd, identity())
            check()
            new.publish(overwrite=overwrite)
            if marked is not None:
                write_beside(path, marked)
    except FileExistsError:
        raise problems.file_exists(path) from None
    except OSError as error:
        raise problems.write_failed(path, error) from error


class Raw:
    """A raw image: each byte of the volume is at the same place in the file."""

    def __init__(self, fd: int, size: int) -> None:
        os.truncate(fd, size)
        self._fd = fd

    def write(self, offset: int, data: memoryview) -> None:
        _write(self._fd, offset, data)

    def finish(self) -> None:
        os.fsync(self._fd)


def place(path: Path) -> Path:
    """Return `path` with the links in its directory resolved.  If the name itself is a link, it is not followed."""
    return path.parent.resolve() / path.name


def check_place(path: Path, inventory: Inventory, *, overwrite: bool) -> None:
    """Refuse a path that cannot take an export, and one that is the daemon's own.  Raises Problem."""
    if not path.is_absolute():
        raise problems.file_failed(path, "the path is not absolute", "give a path that begins with /")
    if whose := own_files.claim(inventory, path):
        raise problems.own_file(path, whose)
    if os.path.lexists(path) and not overwrite and not stream.is_fifo(path):
        raise problems.file_exists(path)


def check_room(path: Path, needed: int) -> None:
    """Refuse an export if its file system has fewer than `needed` bytes free.  Raises Problem."""
    try:
        space = os.statvfs(path.parent)
    except OSError as error:
        raise problems.write_failed(path, error) from error
    free = space.f_bavail * space.f_frsize
    if needed > free:
        raise problems.no_room(path, needed, free)


def data_bytes(view: block_device.BlockDevice) -> int:
    """Return the bytes of a device that are data.

    Zeroes among them take no room in an export, but only reading finds them.
    """
    return sum(extent.length for extent in view.extents(0, view.size) if extent.kind is block_device.ExtentKind.DATA)


class _NewFile:
    """The file that will be at `path`, open as `fd`.

    At the end of the context it is gone, unless it was published.  Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        flags = os.O_WRONLY | os.O_CLOEXEC
        self._named = not _nameless(path.parent, self._beside)
        if self._named:
            self.fd = os.open(self._beside, flags | os.O_CREAT | os.O_EXCL, 0o600)
        else:
            self.fd = os.open(path.parent, flags | os.O_TMPFILE, 0o600)

    def publish(self, *, overwrite: bool) -> None:
        """Give the file its name, and make that durable.  Raises OSError."""
        if overwrite:
            if not self._named:
                new_name.link(self.fd, self._beside)
                self._named = True
            self._beside.replace(self._path)
        elif self._named:
            new_name.move(self._beside, self._path)
        else:
            new_name.link(self.fd, self._path)  # unlike rename, this fails if another file has got the name meanwhile
        small_file.sync_directory(self._path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        if self._named:
            self._beside.unlink(missing_ok=True)


def _nameless(directory: Path, beside: Path) -> bool:
    """Return whether a file in `directory` can be without a name, and get one later.  Raises OSError."""
    try:
        return new_name.can_link(directory, beside)
    except OSError as error:
        if error.errno not in (
            errno.EOPNOTSUPP,
            errno.EISDIR,
            errno.EINVAL,
            errno.ENOSYS,
        ):  # it has none, or is too old
            raise
        return False


def _write(fd: int, offset: int, data: memoryview) -> None:
    """Write the grains that are not zero, each run of them in one call."""
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
