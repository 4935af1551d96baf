# SPDX-License-Identifier: Apache-2.0
"""The marks of a thin store: which of its chunks an initiator wrote to, instead of copy-on-write.

Copy-on-write stores pre-images.  An initiator that writes to the write-once LUN itself can store any data into blank
blocks, and this data becomes the content of the snapshot.  Later it cannot be distinguished from a pre-image.  So each
chunk that an initiator writes to is marked first.

The file `NAME.outside` has one bit per chunk, bit `n & 7` of byte `n >> 3`.  It is sparse, and is made for the first
mark, so a store that no initiator writes to has no such file.  A mark is durable before the marked data is committed.
So a crash can leave a mark on a chunk without such data, but never such data without a mark.  A version of wolun that
does not know the file ignores it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pyroaring

from lun_backends.files import os_error, storage_io
from lun_backends.stores import store_file

_STEP = 1 << 20  # bytes of the file that are read at once


class Marks:
    """The marks of one store, kept in the file at `path`.  Thread-safe.  Raises StoreUnavailable."""

    def __init__(self, path: Path, io: storage_io.StorageIO) -> None:
        self.path = path
        self._io = io
        self._lock = threading.Lock()
        self._chunks = pyroaring.BitMap64()
        self._named = False  # the file's name is durable
        with contextlib.suppress(store_file.StoreMissing), store_file.opened(io, path, os.O_RDONLY) as fd:
            try:
                self._read(fd)
            except OSError as error:
                raise store_file.StoreUnavailable(path, f"cannot be read: {os_error.reason(error)}") from error
            io.close(fd)

    @property
    def chunks(self) -> pyroaring.BitMap64:
        """The chunks that are marked; a copy."""
        with self._lock:
            return self._chunks.copy()

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._chunks

    def add(self, chunks: Iterable[int]) -> None:
        """Mark chunks, durably.  Raises OSError."""
        with self._lock:
            new = pyroaring.BitMap64(chunks) - self._chunks
            if not new:
                return
            fd = self._io.open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                for first, octets in _octets(new | self._near(new)):
                    storage_io.write_all(self._io, fd, [octets], first, len(octets))
                self._io.fdatasync(fd)
            finally:
                self._io.close(fd)
            if not self._named:
                self._io.fsync_directory(self.path.parent)
                self._named = True
            self._chunks |= new

    def _near(self, new: pyroaring.BitMap64) -> pyroaring.BitMap64:
        """Return the marked chunks that share a byte of the file with one of `new`."""
        near = pyroaring.BitMap64()
        for octet in {chunk >> 3 for chunk in new}:
            near.update(chunk for chunk in range(octet << 3, (octet + 1) << 3) if chunk in self._chunks)
        return near

    def _read(self, fd: int) -> None:
        """Read the marks, past the holes of the file.  Raises OSError."""
        end = os.fstat(fd).st_size
        offset = 0
        while offset < end:
            try:
                offset = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError:  # no data up to the end of the file
                return
            octets = bytearray(min(_STEP, end - offset))
            got = storage_io.read_all(self._io, fd, [memoryview(octets)], offset, len(octets))
            if not got:
                return
            self._chunks.update(
                (offset + at << 3) + bit
                for at, octet in enumerate(octets[:got])
                if octet
                for bit in range(8)
                if octet >> bit & 1
            )
            offset += got


def _octets(chunks: Iterable[int]) -> Iterable[tuple[int, bytes]]:
    """Yield (first byte, bytes) for runs of neighbouring bytes of the file that have bits of `chunks` set."""
    values: dict[int, int] = {}
    for chunk in chunks:
        values[chunk >> 3] = values.get(chunk >> 3, 0) | 1 << (chunk & 7)
    run: list[int] = []
    first = 0
    for at in sorted(values):
        if run and at != first + len(run):
            yield first, bytes(run)
            run = []
        if not run:
            first = at
        run.append(values[at])
    if run:
        yield first, bytes(run)
