# SPDX-License-Identifier: Apache-2.0
"""The file of a log: the header of a chunk file with chunks of 4 KiB (`chunk_file`), and behind it the batches (`log_batch`).

Batches are appended at the *tail*.  Nothing before the tail is ever written again, and everything behind it is zeroes.
Some of these zeroes are written ahead, because a write into blocks that the file system has already written needs no entry
of its journal: `zero_ahead` keeps up to `AHEAD` bytes.  `close` cuts them off.

An interrupted commit may leave something behind the tail.  This is cut off, durably, before the next batch is written.  So every
page behind a batch was written after it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lun_backends.files import storage_io
from lun_backends.stores import chunk_file, log_batch, store_file
from lun_backends.stores.log_batch import PAGE
from lun_backends.stores.log_map import Checkpoint
from lun_backends.stores.superblock import Superblock

AHEAD = 16 << 20
"""The most bytes of zeroes that are written ahead; never more than the log has."""
STEP = 1 << 20
"""The bytes of zeroes that are written at once; a commit may have to wait for one such write."""
LEAST_AHEAD = 256 << 10
"""The bytes of zeroes that are written ahead of a log that has fewer."""
_READ = 1 << 20
_ZEROES = bytes(STEP)


def _geometry(superblock: Superblock) -> Superblock:
    return replace(superblock, chunk_size=PAGE)


class LogFile(chunk_file.ChunkFile):
    """An open log file; its slots are pages, and `tail` is the page that the next batch begins in."""

    def __init__(self, path: Path, fd: int, chunk_size: int, block_size: int, io: storage_io.StorageIO) -> None:
        super().__init__(path, fd, chunk_size, block_size, io)
        self.tail = 1
        self._zeroed = 0  # the byte up to which zeroes are written ahead
        self._zeroing = threading.Condition(threading.Lock())
        self._busy = 0  # the byte from which on zeroes are being written; 0: none are
        self._again = 0  # the byte that the tail has to reach before zeroes are written ahead again
        self._settled = False  # whether the tail is known

    @classmethod
    def make(cls, path: Path, superblock: Superblock, io: storage_io.StorageIO) -> LogFile:
        """Make an empty log, see `ChunkFile.create`."""
        file = cls.create(path, _geometry(superblock), io)
        file._settled = True
        return file

    @classmethod
    def find(cls, path: Path, superblock: Superblock, io: storage_io.StorageIO) -> LogFile:
        """Open an existing log, see `ChunkFile.open`; `settle` is the next call."""
        return cls.open(path, _geometry(superblock), io)

    # -- appending

    def append(self, buffers: Sequence[memoryview | bytes], length: int) -> None:
        """Write a batch at the tail; the caller moves the tail when it is committed.  Raises OSError."""
        place = self.tail * PAGE
        with self._file as fd:
            self._file.dirty = True
            end = place + length
            if end > self._zeroed:
                with self._zeroing:
                    while self._busy and end > self._busy:
                        self._zeroing.wait()
                    self._zeroed = max(self._zeroed, end)  # nothing is zeroed below it any longer
                if end > self._room:
                    self._set_aside(fd, place, length)
            storage_io.write_all(self._io, fd, buffers, place, length)

    def cut(self) -> None:
        """Cut off, durably, what is behind the tail.  No batch may be being appended.  Raises OSError."""
        with self._zeroing:
            while self._busy:
                self._zeroing.wait()
            end = self.tail * PAGE
            with self._file as fd:
                self._io.ftruncate(fd, end)
                self._io.fdatasync(fd)
            self._zeroed = self._room = end

    def wants_zeroes(self) -> bool:
        """Return whether fewer zeroes are written ahead than half of what should be."""
        end = self.tail * PAGE
        return end >= self._again and self._zeroed - end < self._ahead() // 2

    def _ahead(self) -> int:
        return min(AHEAD, max(LEAST_AHEAD, self.tail * PAGE // STEP * STEP))

    def zero_ahead(self) -> None:
        """Write zeroes ahead, durably, if there is plenty of space.  Raises OSError."""
        self._again = self.tail * PAGE + STEP  # if this fails or finds no room
        while True:
            with self._zeroing:
                begin = max(self._zeroed, self.tail * PAGE)
                length = min(STEP, self.tail * PAGE + self._ahead() - begin)
                if length <= 0 or self._busy:
                    self._again = 0
                    return
                self._busy = begin
            try:
                # A descriptor of its own: it must not take the error that the commits' sync has to meet.
                fd = self._io.open(self.path, os.O_RDWR)
                try:
                    file_system = os.fstatvfs(fd)
                    if file_system.f_bavail * file_system.f_frsize < chunk_file.PLENTY:
                        return
                    storage_io.write_all(self._io, fd, [memoryview(_ZEROES)[:length]], begin, length)
                    self._io.fdatasync(fd)
                finally:
                    self._io.close(fd)
            finally:
                with self._zeroing:
                    self._busy = 0
                    self._zeroing.notify_all()
            with self._zeroing:
                self._zeroed = max(self._zeroed, begin + length)
                self._room = max(self._room, self._zeroed)

    # -- reading at open

    def settle(self, snapshot: uuid.UUID, checkpoint: Checkpoint) -> Iterator[log_batch.Header]:
        """Yield the batches behind a checkpoint, and set the tail behind the last one.  Cut off what is behind it.

        Raise StoreDamaged if a batch is damaged that was committed for certain.  Raises OSError.
        """
        self.tail, chain, sequence = checkpoint.place, checkpoint.chain, checkpoint.sequence
        commit, complete = checkpoint.commit, True
        while (header := self._header(snapshot, self.tail)) is not None:
            if header.sequence != sequence + 1 or header.chain != chain or not self._has_all(header):
                break
            sequence, chain, commit, self.tail = header.sequence, header.crc, header.commit, header.end
            complete = bool(header.flags & log_batch.LAST)
            yield header
        end = self._end()
        later = self._later(snapshot, commit + complete, end)
        if later is not None:
            fault = f"the batch in page {self.tail} does not fit, but a later one, in page {later}, does"
            raise store_file.StoreDamaged(self.path, "log", fault, store_file.RESTORE)
        if end != self.tail:
            self.cut()
        self._room = self._zeroed = self.tail * PAGE
        self._settled = True

    def _end(self) -> int:
        return -(-self._file.status().st_size // PAGE)

    def _pages(self, place: int, count: int) -> memoryview:
        data = memoryview(bytearray(count * PAGE))
        with self._file as fd:
            got = storage_io.read_all(self._io, fd, [data], place * PAGE, len(data))
        return data[: got // PAGE * PAGE]

    def _header(self, snapshot: uuid.UUID, place: int) -> log_batch.Header | None:
        page = self._pages(place, 1)
        return log_batch.unpack(page, snapshot, place) if page else None

    def _has_all(self, header: log_batch.Header) -> bool:
        """Return whether the pages of a batch are as they were written."""
        pages = self._pages(header.place + 1, header.end - header.place - 1)
        if len(pages) != (header.end - header.place - 1) * PAGE:
            return False
        base = header.place + 1
        return all(
            record.page is None
            or chunk_file.checksum([pages[(record.page - base) * PAGE : (record.page - base + 1) * PAGE]]) == record.crc
            for record in header.records
        )

    def _later(self, snapshot: uuid.UUID, commit: int, end: int) -> int | None:
        """Return the page of a batch that proves that commit number `commit` was durable; None if there is none."""
        place = self.tail
        while place < end:
            pages = self._pages(place, _READ // PAGE)
            if not pages:
                return None
            if bytes(pages) != _ZEROES[: len(pages)]:
                for at in range(0, len(pages), PAGE):
                    header = log_batch.unpack(pages[at : at + PAGE], snapshot, place + at // PAGE)
                    if header is not None and header.commit > commit and header.flags & log_batch.DURABLE_BEFORE:
                        return header.place
            place += len(pages) // PAGE
        return None

    # -- of a chunk file

    def truncate(self) -> None:
        super().truncate()
        self.tail, self._zeroed, self._settled = 1, 0, True

    def disk_bytes(self) -> int:
        return min(self._file.status().st_blocks * 512, self.tail * PAGE)

    def _free(self, fd: int) -> None:
        if not self._settled:
            return
        self._room = self._zeroed = self.tail * PAGE
        with contextlib.suppress(OSError):  # if this fails, the zeroes stay
            self._io.ftruncate(fd, self.tail * PAGE)
