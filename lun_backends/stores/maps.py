# SPDX-License-Identifier: Apache-2.0
"""Chunk maps on disk: new ones, and existing ones of every format."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import os_error, storage_io
from lun_backends.stores import array_map, chunk_map, log_map, record_map, store_file
from lun_backends.stores.superblock import ARRAYS, COPIES, LOG, PAGE, RECORDS, Superblock, geometry_problem, read_both

_KINDS: dict[int, type[array_map.ArrayMap | record_map.RecordMap]] = {
    ARRAYS: array_map.ArrayMap,
    RECORDS: record_map.RecordMap,
    LOG: log_map.LogMap,
}


def create(path: Path, superblock: Superblock, io: storage_io.StorageIO = storage_io.SYSTEM) -> chunk_map.ChunkMap:
    """Make a new, empty map and open it.  Raises StoreUnavailable, SpaceExhausted, ValueError (geometry)."""
    if problem := geometry_problem(superblock):
        raise ValueError(problem)
    kind = _KINDS[superblock.version]
    length = kind.length_of(superblock)
    with store_file.opened(io, path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        try:
            _lock(fd, path)
            page = superblock.pack()
            for offset in COPIES:
                storage_io.write_all(io, fd, [page], offset, PAGE)
            io.ftruncate(fd, length)
            io.fdatasync(fd)
            io.fsync_directory(path.parent)
            return kind(path, fd, io, superblock, None)
        except (OSError, block_device.BlockDeviceError) as error:
            io.unlink(path)
            if not isinstance(error, OSError):
                raise
            if error.errno == errno.EFBIG:
                text = f"the file system cannot hold a sparse file of {length} bytes; use larger chunks"
                raise store_file.StoreUnavailable(path, text) from error
            if error.errno in storage_io.NO_SPACE:
                raise block_device.SpaceExhausted(0) from error
            raise store_file.StoreUnavailable(path, os_error.reason(error)) from error


def open_existing(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> chunk_map.ChunkMap:
    """Open an existing map.  Raises StoreMissing, StoreUnavailable, StoreLocked, StoreDamaged, StoreNewer."""
    with store_file.opened(io, path, os.O_RDWR) as fd:
        _lock(fd, path)
        try:
            superblock, damaged = read_both(io, fd, path)
            length = os.fstat(fd).st_size
        except OSError as error:
            raise store_file.StoreUnavailable(path, f"cannot be read: {os_error.reason(error)}") from error
        kind = _KINDS[superblock.version]
        if (expected := kind.length_of(superblock)) != length:
            fault = f"is {length} bytes long, must be {expected}"
            raise store_file.StoreDamaged(path, "file size", fault, store_file.RESTORE)
        return kind(path, fd, io, superblock, damaged)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise store_file.StoreLocked(path) from error
