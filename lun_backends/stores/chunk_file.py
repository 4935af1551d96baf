# SPDX-License-Identifier: Apache-2.0
"""The chunk file: the data of a thin store, in slots of one chunk each.

Slot 0 is the header (`_HEADER`, its CRC32C, zeroes).  The chunk in slot n is at byte n * chunk_size.  Slots are handed
out upwards and never moved.  The next free slot at open is the end of the file: every slot in use lies before it, so no
map has to be searched.  A crash may leave slots between the highest one in use and the end, at most those of the writes
that were running.  These slots stay unused.

Behind the end of the file lies space that is set aside for the next slots: as much as is in use, but at most `AHEAD`.
If the file system has allocated the blocks already, a write of 64 KiB takes 15 us instead of 19 (ext4, Linux 6.18).
`close` frees the space; after a crash, the next `close` does.

The file may be closed between calls, and opened again by the next one, see `files.reopened`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import struct
import uuid
from pathlib import Path
from typing import Self

import crc32c

from lun_backends import block_device
from lun_backends.files import os_error, reopened, storage_io
from lun_backends.stores import store_file
from lun_backends.stores.superblock import Superblock

AHEAD = 4 << 20
"""The largest space in bytes that is set aside for later writes."""

PLENTY = 64 << 20
"""The free space in bytes below which no space is set aside, so that real writes get the last of it."""

KEPT_BACK = 1 << 20
"""The free space in bytes that chunks never take, or 1/32 of a small file system: it is for whatever frees space."""

_HEADER = struct.Struct("<8sI16sI")  # magic, version, snapshot, chunk size
_CRC = struct.Struct("<I")
_MAGIC = b"WOLUNCHK"
_VERSION = 1


class ChunkFile:
    """An open chunk file, made by `create` and `open`; places and lengths are in bytes of the file."""

    def __init__(self, path: Path, fd: int, chunk_size: int, block_size: int, io: storage_io.StorageIO) -> None:
        self.path = path
        self.chunk_size = chunk_size
        self.slots = max(1, -(-os.fstat(fd).st_size // chunk_size))  # at open; the header's slot counts
        self._block_size = block_size
        self._file = reopened.Reopened(path, fd, io, self._free)
        self._io = io
        self._room = self.slots * chunk_size  # the byte up to which space is set aside already

    @classmethod
    def create(cls, path: Path, superblock: Superblock, io: storage_io.StorageIO) -> Self:
        """Make a file that has only a header, durable except for its name.  Raises StoreUnavailable, SpaceExhausted."""
        with store_file.opened(io, path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            try:
                header = _HEADER.pack(_MAGIC, _VERSION, superblock.snapshot.bytes, superblock.chunk_size)
                header += _CRC.pack(crc32c.crc32c(header))
                check_free(os.fstatvfs(fd), superblock.chunk_size)
                storage_io.write_all(io, fd, [header], 0, len(header))
                io.ftruncate(fd, superblock.chunk_size)
                io.fdatasync(fd)
            except OSError as error:
                io.unlink(path)
                raise store_file.typed(path, error) from error
            return cls(path, fd, superblock.chunk_size, superblock.block_size, io)

    @classmethod
    def open(cls, path: Path, superblock: Superblock, io: storage_io.StorageIO) -> Self:
        """Open the chunk file of the map with `superblock`.  Raises StoreMissing, StoreUnavailable, StoreDamaged."""
        with store_file.opened(io, path, os.O_RDWR) as fd:
            try:
                _check_header(io, fd, path, superblock)
            except OSError as error:
                raise store_file.typed(path, error) from error
            return cls(path, fd, superblock.chunk_size, superblock.block_size, io)

    def read(self, place: int, buffers: block_device.Buffers, length: int, lba: int, now: bool) -> bool:
        """Fill `buffers` with `length` bytes from byte `place` on; with `now` return False if that would wait.

        `lba` is the block at `place`, for errors.  Raises MediumError.
        """
        try:
            with self._file as fd:
                got = storage_io.read_all(self._io, fd, buffers, place, length, os.RWF_NOWAIT if now else 0)
        except OverflowError as error:  # no such slot can exist: the map has rotted
            raise block_device.MediumError(lba, False, f"{self.path} ends before the block") from error
        except OSError as error:
            if now and error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return False
            raise block_device.MediumError(lba, False, f"{self.path}: {os_error.reason(error)}") from error
        if got != length and not now:
            raise block_device.MediumError(lba + got // self._block_size, False, f"{self.path} ends before the block")
        return got == length

    def write(self, place: int, data: block_device.Buffers, length: int) -> None:
        """Write a scatter list.  Raises OSError."""
        with self._file as fd:
            self._file.dirty = True
            if place + length > self._room:
                self._set_aside(fd, place, length)
            storage_io.write_all(self._io, fd, data, place, length)

    def provide(self, slot: int, count: int) -> None:
        """Check that there is room for `count` more slots, up to and with `slot`.  Raises OSError (ENOSPC).

        Call it before anything is written for them: also what a write takes elsewhere must leave `KEPT_BACK` alone.
        """
        if (slot + 1) * self.chunk_size > self._room:
            with self._file as fd:
                self._set_aside(fd, (slot + 1 - count) * self.chunk_size, count * self.chunk_size)

    def _set_aside(self, fd: int, place: int, length: int) -> None:
        """Set space aside for this write and for later ones, if there is plenty.  Any number of threads may call it.

        Raises OSError (ENOSPC).
        """
        end = place + length
        file_system = os.fstatvfs(fd)
        if file_system.f_bavail * file_system.f_frsize < PLENTY:
            check_free(file_system, length)
            self._room = end
            return
        self._room = end
        with contextlib.suppress(OSError):  # if the error matters, the write itself meets it
            ahead = min(end, AHEAD)
            self._io.set_aside(fd, place, length + ahead)
            self._room = end + ahead

    def read_from_disk(self, slot: int, length: int) -> memoryview:
        """Return the first `length` bytes of a slot as the disk has them, fewer if the file ends before.

        This drops the slot from the page cache.  Raises OSError.
        """
        place = slot * self.chunk_size
        data = memoryview(bytearray(length))
        with self._file as fd:
            if place >= os.fstat(fd).st_size:
                raise OSError(errno.ENODATA, f"the chunk file ends before slot {slot}")
            self._io.forget(fd, place, length)
            got = storage_io.read_all(self._io, fd, [data], place, length)
            self._io.forget(fd, place, length)
        return data[:got]

    def forget(self, place: int, length: int) -> None:
        """Drop bytes from the page cache, so that the next read gets them from the disk.  This is only a hint."""
        with contextlib.suppress(OSError), self._file as fd:
            self._io.forget(fd, place, length)

    def check_header(self, superblock: Superblock) -> list[str]:
        """Read the header again and return its faults, a phrase each."""
        rest = memoryview(bytearray(self.chunk_size))
        try:
            with self._file as fd:
                _check_header(self._io, fd, self.path, superblock)
                storage_io.read_all(self._io, fd, [rest], 0, self.chunk_size)
        except store_file.StoreNewer as newer:
            return [f"the chunk file's header: {newer}"]
        except store_file.StoreDamaged as damage:
            return [f"the chunk file's header: {damage.field}: {damage.fault}"]
        except OSError as error:
            return [f"the chunk file's header cannot be read: {os_error.reason(error)}"]
        if any(rest[_HEADER.size + _CRC.size :]):
            return ["behind its header the chunk file is not zeroes"]
        return []

    def sync(self) -> None:
        """Make all writes durable.  Raises OSError; how much is durable is then unknown."""
        with self._file as fd:
            self._file.dirty = False  # what another thread writes from here on sets it again
            try:
                self._io.fdatasync(fd)
            except BaseException:
                self._file.dirty = True
                raise

    def truncate(self) -> None:
        """Drop all slots except the header.  Raises OSError."""
        with self._file as fd:
            self._io.ftruncate(fd, self.chunk_size)
        self._room = 0

    def disk_bytes(self) -> int:
        """Return the space that the file takes on disk, without the space that is set aside behind its end."""
        status = self._file.status()
        return min(status.st_blocks * 512, status.st_size)

    def close(self) -> None:
        """Close the file without syncing it.  No thread may be writing."""
        self._file.close()

    def _free(self, fd: int) -> None:
        """Free the space that is set aside, before the descriptor is closed."""
        self._room = 0
        with contextlib.suppress(OSError):  # if this fails, the space stays set aside
            self._io.ftruncate(fd, os.fstat(fd).st_size)


@functools.cache
def checksum_of_zeroes(length: int) -> int:
    """Return the checksum of `length` zeroes."""
    return checksum([memoryview(bytes(length))])


def has_room(directory: Path, length: int) -> bool:
    """Return whether chunks of `length` bytes more fit on the file system of `directory`.  Raises OSError."""
    try:
        check_free(os.statvfs(directory), length)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def check_free(file_system: os.statvfs_result, length: int) -> None:
    """Raise OSError (ENOSPC) if `length` more bytes would take what is kept back."""
    free, total = file_system.f_bavail * file_system.f_frsize, file_system.f_blocks * file_system.f_frsize
    if free - length < min(KEPT_BACK, total // 32):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def checksum(buffers: block_device.Buffers) -> int:
    """Return the CRC32C of a scatter list; 0 means "none" in the map, so it becomes 1."""
    value = 0
    for buffer in buffers:
        value = crc32c.crc32c(buffer, value)
    return value or 1


def _check_header(io: storage_io.StorageIO, fd: int, path: Path, superblock: Superblock) -> None:
    """Raise StoreDamaged or StoreNewer unless this is the chunk file that belongs to the map.  Raises OSError."""
    data = memoryview(bytearray(_HEADER.size + _CRC.size))
    if storage_io.read_all(io, fd, [data], 0, len(data)) != len(data):
        raise store_file.StoreDamaged(path, "header", "the file ends within it", store_file.RESTORE)
    magic, version, snapshot, chunk_size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise store_file.StoreDamaged(
            path, "magic", f"{magic!r} is not {_MAGIC!r}: not a chunk file", store_file.RESTORE
        )
    fits = _CRC.unpack_from(data, _HEADER.size)[0] == crc32c.crc32c(data[: _HEADER.size])
    if version > _VERSION and fits:
        raise store_file.StoreNewer(path, version, _VERSION)
    if version != _VERSION:
        raise store_file.StoreDamaged(
            path,
            "format version",
            f"{version} is not supported, only {_VERSION} is",
            "use the version of wolun that wrote it",
        )
    if not fits:
        raise store_file.StoreDamaged(path, "header CRC", "does not fit the content", store_file.RESTORE)
    if snapshot != superblock.snapshot.bytes:
        fault = f"{uuid.UUID(bytes=snapshot)}, the map belongs to {superblock.snapshot}"
        raise store_file.StoreDamaged(path, "snapshot", fault, "put the files that belong together side by side")
    if chunk_size != superblock.chunk_size:
        raise store_file.StoreDamaged(
            path, "chunk size", f"{chunk_size}, the map says {superblock.chunk_size}", store_file.RESTORE
        )
