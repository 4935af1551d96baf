# SPDX-License-Identifier: Apache-2.0
"""The sparse store: the file system's own map (SEEK_DATA) says what is written, in grains of 4 KiB.

The data of a block is at the block's own place in one sparse file, which has the size of the LUN.  A grain that the file
system has is written, a hole is blank.  Zeroes are written as data.  Nothing else is kept, so there is nothing that could
disagree with the data: it is the smallest store that is right, and the oracle of the tests.

It is right because the file system gives a block its place in the file only after the block's data is on the disk
(`sparse_header.check_place` refuses the others), because it is written to with plain `pwrite` of whole grains and never
through `fallocate`, ZERO_RANGE or a mapping, and because one process owns it (`flock` on the header).

| state of a grain | is                                        | a read     | a put of it                                     |
| ---------------- | ----------------------------------------- | ---------- | ----------------------------------------------- |
| blank            | a hole, not in `_pending`                 | BlankBlock | claims it: pending                              |
| pending          | in `_pending`, until its commit ended     | BlankBlock | waits for the end of that commit, decides again |
| written          | data in the file, not in `_pending`       | its data   | BlockWritten                                    |

It keeps no checksums: `verify` reads all, and says of all that it could not be verified.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import threading
import uuid
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import pyroaring

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.damage import Damage, OnDamage
from lun_backends.durability import Durability
from lun_backends.files import os_error, storage_io
from lun_backends.stores import chunk_file, contract, group_commit, outside, sparse_header, store_file
from lun_backends.stores.space import Space

_STEP = 1 << 20  # bytes read at once by `verify`
_FILES = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(?:sparse|header|outside)")


class _Batch:
    """Claimed ranges of bytes, [begin, end), that are committed together."""

    __slots__ = ("claims", "done", "error")

    def __init__(self) -> None:
        self.claims: list[tuple[int, int]] = []
        self.done = False
        self.error: Exception | None = None


class SparseStore:
    """An open sparse store; see `contract.Store`."""

    unit = grain = contract.GRAIN
    local = True

    def __init__(
        self,
        path: Path,
        header: sparse_header.Header,
        copy: int,
        fds: tuple[int, int],
        durability: Durability,
        io: storage_io.StorageIO,
        space: Space,
    ) -> None:
        """Take over the header and the data file, open as `fds`; `copy` is the copy of the header to write next."""
        geometry = header.geometry()
        self.snapshot, self.volume = geometry.snapshot, geometry.volume
        self.size, self.block_size, self.chunk_size = geometry.size, geometry.block_size, geometry.chunk_size
        self.durability = durability
        self.syncs = contract.Syncs()
        self._path = path
        self._header = header
        self._copy = copy
        self._header_fd, self._fd = fds
        self._io = io
        self._space = space
        self._marks = outside.Marks(path.with_suffix(".outside"), io)
        self._synced = durability is Durability.POWER_LOSS
        self._changed = threading.Condition(threading.Lock())
        self._group = group_commit.GroupCommit[_Batch](self._changed, self._commit, self._end, self._failed)
        self._pending: set[int] = set()  # grains
        self._broken: str | None = None
        self._zeroes = memoryview(bytes(self.chunk_size))
        self._reader = Reader(self)
        self._written = 0 if header.reason is not None else sum(end - begin for begin, end in self._runs(0, self.size))
        self._taken = self._rounded(self._written)
        space.add(self._taken)

    # -- state

    @property
    def reader(self) -> Reader:
        return self._reader

    @property
    def marked(self) -> pyroaring.BitMap64:
        return self._marks.chunks

    def is_marked(self, chunk: int) -> bool:
        return chunk in self._marks

    @property
    def reason(self) -> str | None:
        return self._header.reason

    @property
    def broken(self) -> bool:
        return self._broken is not None

    @property
    def allocated_bytes(self) -> int:
        return self._taken

    def invalidate(self, reason: str) -> None:
        with self._changed:
            header = dataclasses.replace(self._header, reason=reason, generation=self._header.generation + 1)
            try:
                sparse_header.write(self._header_fd, header, self._copy, self._io)
            except OSError as error:
                why = f"{self._path.name}.header: {os_error.reason(error)}"
                raise block_device.MediumError(0, True, why) from error
            self._header, self._copy = header, 1 - self._copy

    def discard(self) -> None:
        with self._changed:
            try:
                self._io.ftruncate(self._fd, 0)
                self._io.ftruncate(self._fd, self.size)
            except OSError as error:
                raise block_device.MediumError(0, True, os_error.reason(error)) from error
            self._space.add(-self._taken)
            self._taken = self._written = 0

    # -- writing

    def put_many(self, puts: Iterable[contract.Put]) -> list[block_device.BlockWritten | None]:
        results: list[block_device.BlockWritten | None] = []
        batch = _Batch()
        try:
            for put in puts:
                begin = put.first * self.block_size
                end = begin + put.blocks * self.block_size
                if begin % self.grain or (end % self.grain and end != self.size):
                    raise block_device.NotSupported(f"writes of parts of {self.grain} bytes (store: sparse)")
                while (taken := self._claim(begin, end, wait=not batch.claims)) is None:
                    self._commit_all(batch)
                    batch = _Batch()
                if taken >= 0:
                    results.append(block_device.BlockWritten(taken // self.block_size))
                    continue
                if end > begin:
                    self._store(begin, end, put)
                    batch.claims.append((begin, end))
                results.append(None)
        finally:
            self._commit_all(batch)
        return results

    def _claim(self, begin: int, end: int, *, wait: bool) -> int | None:
        """Make the grains of [begin, end) pending and return -1, or return the first byte that is written.

        Without `wait`, return None if that would wait for another commit.  Raises MediumError, SpaceExhausted.
        """
        grains = range(begin // self.grain, -(-end // self.grain))
        with self._changed:
            while True:
                self._refuse_if_broken(begin)
                if self._pending.isdisjoint(grains):
                    break
                if not wait:
                    return None
                self._changed.wait()
            first = self._first_data(begin, end)
            if first < end:
                return first
            if not self._space.take(len(grains) * self.grain):
                raise block_device.SpaceExhausted(begin // self.block_size)
            self._taken += len(grains) * self.grain
            self._pending.update(grains)
        return -1

    def _store(self, begin: int, end: int, put: contract.Put) -> None:
        """Write the data of claimed grains; if that fails, take it back and end the claim.  Raises BlockDeviceError."""
        length = end - begin
        buffers = put.buffers
        if buffers is None:
            buffers = [
                self._zeroes[: min(len(self._zeroes), length - at)] for at in range(0, length, len(self._zeroes))
            ]
        try:
            if put.mark:
                self._marks.add(range(begin // self.chunk_size, -(-end // self.chunk_size)))
            chunk_file.check_free(os.fstatvfs(self._fd), length)
            storage_io.write_all(self._io, self._fd, buffers, begin, length)
        except BaseException as error:
            self._take_back(begin, end)
            if isinstance(error, OSError):
                lba = begin // self.block_size
                if error.errno in storage_io.NO_SPACE:
                    raise block_device.SpaceExhausted(lba) from error
                raise block_device.MediumError(lba, True, f"{self._path}: {os_error.reason(error)}") from error
            raise

    def _take_back(self, begin: int, end: int) -> None:
        """Make the grains of a write that failed blank again, so that no torn one is left, and end their claim."""
        with self._changed:
            try:
                mode = storage_io.FALLOC_PUNCH_HOLE | storage_io.FALLOC_KEEP_SIZE
                storage_io.fallocate(self._fd, mode, begin, end - begin)
            except OSError as error:
                # The claim stays, so nobody reads them here; and the next open must not read them either.
                self._break(error, begin)
                reason = f"a write to it failed and could not be taken back: {os_error.reason(error)}"
                header = dataclasses.replace(self._header, reason=reason, generation=self._header.generation + 1)
                with contextlib.suppress(OSError):
                    sparse_header.write(self._header_fd, header, self._copy, self._io)
                return
            self._release(begin, end)
            self._space.add(-self._rounded(end - begin))
            self._taken -= self._rounded(end - begin)
            self._changed.notify_all()

    def _commit_all(self, batch: _Batch) -> None:
        """Commit what was stored.  Raises MediumError."""
        if not batch.claims:
            return
        if self._synced:
            self._group.run(batch)
            return
        with self._changed:
            self._end([batch])
            self.syncs.commits += 1
            self._changed.notify_all()

    def _commit(self, group: list[_Batch]) -> None:
        if self._broken:
            raise OSError(errno.EIO, self._broken)
        self._sync_data()
        self.syncs.commits += 1

    def _end(self, group: list[_Batch]) -> None:
        for batch in group:
            for begin, end in batch.claims:
                self._release(begin, end)
                self._written += end - begin

    def _release(self, begin: int, end: int) -> None:
        self._pending.difference_update(range(begin // self.grain, -(-end // self.grain)))

    def _failed(self, error: BaseException, batch: _Batch) -> Exception:
        return self._break(error, batch.claims[0][0])

    def flush(self) -> None:
        if self._synced:
            return
        self._refuse_if_broken(0)
        try:
            self._sync_data()
        except OSError as error:
            raise self._break(error, 0) from error

    def set_durability(self, durability: Durability) -> None:
        with self._changed:
            synced, self._synced = self._synced, durability is Durability.POWER_LOSS
            self.durability = durability
        if self._synced and not synced:
            self._refuse_if_broken(0)
            try:
                self._sync_data()
            except OSError as error:
                raise self._break(error, 0) from error

    def _sync_data(self) -> None:
        self.syncs.data += 1
        self._io.fdatasync(self._fd)

    def _break(self, error: BaseException, at: int) -> block_device.MediumError:
        """Refuse all further writes: after a failed sync nothing says what is durable."""
        self._broken = self._broken or (os_error.reason(error) if isinstance(error, OSError) else repr(error))
        why = f"{self._path}: committing failed ({self._broken}); it accepts no further writes"
        return block_device.MediumError(at // self.block_size, True, why)

    def _refuse_if_broken(self, at: int) -> None:
        if self._broken:
            why = f"{self._path}: an earlier commit failed ({self._broken}); it accepts no further writes"
            raise block_device.MediumError(at // self.block_size, True, why)

    # -- contents

    def extents(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        at, last = first * self.block_size, (first + count) * self.block_size
        for begin, end in self._visible(at, last):
            if begin > at:
                yield at // self.block_size, (begin - at) // self.block_size, False
            yield begin // self.block_size, (end - begin) // self.block_size, True
            at = end
        if last > at:
            yield at // self.block_size, (last - at) // self.block_size, False

    def _visible(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of [begin, end) that are written and not pending, in bytes, adjacent ones merged."""
        for low, high in self._runs(begin, end):
            with self._changed:
                pending = sorted(self._pending.intersection(range(low // self.grain, -(-high // self.grain))))
            at = low
            for grain in pending:
                if grain * self.grain > at:
                    yield at, grain * self.grain
                at = max(at, (grain + 1) * self.grain)
            if high > at:
                yield at, high

    def _runs(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of [begin, end) that the file system has, in bytes.  Raises MediumError."""
        at = begin
        while at < end and (low := self._first_data(at, end)) < end:
            at = min(end, self._seek(low, os.SEEK_HOLE))
            yield low, at

    def _first_data(self, begin: int, end: int) -> int:
        """Return the first byte of [begin, end) that the file system has; `end` if it has none.  Raises MediumError."""
        return max(begin, min(end, self._seek(begin, os.SEEK_DATA)))

    def _seek(self, at: int, whence: int) -> int:
        """Return the next byte with data, or the next in a hole, a grain's first; the size if there is none.

        Raises MediumError.
        """
        try:
            found = os.lseek(self._fd, at, whence)
            return self.size if found >= self.size else found // self.grain * self.grain
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end of the file
                return self.size
            lba = at // self.block_size
            raise block_device.MediumError(lba, False, f"{self._path}: {os_error.reason(error)}") from error

    def check_written(self, begin: int, end: int) -> None:
        """Raise BlankBlock unless all of [begin, end), in bytes, is written and no longer pending."""
        with self._changed:
            pending = self._pending.intersection(range(begin // self.grain, -(-end // self.grain)))
            stop = min(pending) * self.grain if pending else end
            hole = self._seek(begin, os.SEEK_HOLE)
        first = max(begin, min(stop, hole))
        if first < end:
            raise block_device.BlankBlock(first // self.block_size)

    def on_their_way(self) -> tuple[tuple[int, int], ...]:
        return ()  # pending grains do not show

    def used_bytes(self) -> int:
        return sum(os.fstat(fd).st_blocks * 512 for fd in (self._fd, self._header_fd))

    def written_bytes(self) -> int:
        return self._written

    def verify(self, passed_over: pyroaring.BitMap = contract.NOTHING) -> Iterator[contract.ChunkReport]:
        chunk = -1
        for begin, _ in self._chunks():
            chunk, offset = begin // self.chunk_size, begin
            if chunk in passed_over:
                continue
            length = min(self.chunk_size, self.size - offset)
            try:
                self._io.forget(self._fd, offset, length)
                storage_io.read_all(self._io, self._fd, [memoryview(bytearray(length))], offset, length)
            except OSError as error:
                reason = f"it cannot be read: {os_error.reason(error)}"
                self._reader.found(chunk, damaged=True)
                yield contract.ChunkReport(offset, length, contract.Verdict.DAMAGED, reason)
                continue
            reason = "a sparse store keeps no checksums"
            yield contract.ChunkReport(offset, length, contract.Verdict.UNVERIFIABLE, reason)

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Yield (first byte, end) of every chunk with data."""
        last = -1
        for low, high in self._runs(0, self.size):
            for chunk in range(max(last + 1, low // self.chunk_size), -(-high // self.chunk_size)):
                last = chunk
                yield chunk * self.chunk_size, min(self.size, (chunk + 1) * self.chunk_size)

    def check_headers(self) -> list[str]:
        try:
            return sparse_header.read(self._path.with_suffix(".header"), self._header_fd, self._io)[2]
        except contract.StoreError as error:
            return [str(error)]
        except OSError as error:
            return [f"the header cannot be read: {os_error.reason(error)}"]

    def read(self, begin: int, length: int, buffers: Buffers) -> None:
        """Read written bytes.  Raises MediumError."""
        try:
            got = storage_io.read_all(self._io, self._fd, buffers, begin, length)
        except OSError as error:
            lba = begin // self.block_size
            raise block_device.MediumError(lba, False, f"{self._path}: {os_error.reason(error)}") from error
        if got != length:
            why = f"{self._path} was cut short by another program"
            raise block_device.MediumError((begin + got) // self.block_size, False, why)

    def close(self) -> None:
        try:
            if self._broken is None and not self._synced:
                self.flush()
        finally:
            del self._group, self._reader  # they refer to the store: no circle is left
            self._io.close(self._fd)
            self._io.close(self._header_fd)

    def _rounded(self, length: int) -> int:
        return -(-length // self.grain) * self.grain


class Reader:
    """The reader of a sparse store; see `contract.Reader`."""

    def __init__(self, store: SparseStore) -> None:
        self.verify = True
        self.damaged = pyroaring.BitMap64()
        self._store = store

    def read(self, first: int, count: int, buffers: Buffers, *, now: bool = False) -> bool:
        if now:
            return False
        begin, length = first * self._store.block_size, count * self._store.block_size
        self._store.check_written(begin, begin + length)
        self._store.read(begin, length, buffers)
        return True

    def read_checked(self, first: int, count: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        try:
            self.read(first, count, buffers)
        except block_device.MediumError as error:
            if on_damage is None:
                raise
            self._read_around(first, count, buffers, on_damage)
            del error

    def _read_around(self, first: int, count: int, buffers: Buffers, on_damage: OnDamage) -> None:
        """Read block by block, with zeroes in place of those that cannot be read."""
        size = self._store.block_size
        for at in range(count):
            part = block_device.slice_buffers(buffers, at * size, size)
            try:
                self.read(first + at, 1, part)
            except block_device.MediumError as error:
                for buffer in part:
                    buffer[:] = bytes(len(buffer))
                self.found((first + at) * size // self._store.chunk_size, damaged=True)
                on_damage(Damage((first + at) * size, size, error.reason, self._store.snapshot))

    def read_to_move(
        self,
        first: int,
        count: int,
        buffers: Buffers,
        on_damage: OnDamage,
        *,
        grain: int,
        size: int,
        accept_loss: bool,
    ) -> contract.Origin:
        self.read(first, count, buffers)  # an unreadable block stops the move: no checksum could say that it is lost
        per_grain = self._store.grain // self._store.block_size
        grains = -(-(first + count) // per_grain) - first // per_grain
        return contract.Origin(self._store.grain, (contract.UNVERIFIED,) * grains)

    def found(self, chunk: int, *, damaged: bool) -> None:
        if damaged:
            self.damaged.add(chunk)
        else:
            self.damaged.discard(chunk)


class SparseStores:
    """The sparse stores of a volume, in files of one directory; see `contract.Stores`."""

    def __init__(self, directory: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        self.directory = directory
        self._io = io

    def check(self, *, new: bool) -> None:
        path = self.directory / "check.sparse"
        with contextlib.suppress(OSError):
            self._io.unlink(path)  # a check that was killed left it
        with contextlib.ExitStack() as undo:
            sparse_header.check_place(path, self._make(path, undo), self._io)

    def create(self, geometry: contract.Geometry, *, durability: Durability, space: Space) -> SparseStore:
        if geometry.size <= 0 or geometry.chunk_size % contract.GRAIN or contract.GRAIN % geometry.block_size:
            raise ValueError(f"a sparse store needs chunks of a multiple of {contract.GRAIN} bytes")
        path, io = self._path(geometry.snapshot), self._io
        with contextlib.ExitStack() as undo:
            fd = self._make(path, undo)
            sparse_header.check_place(path, fd, io)
            header_path = path.with_suffix(".header")
            header_fd = self._make(header_path, undo)
            try:
                _lock(header_path, header_fd)
                io.ftruncate(fd, geometry.size)
                io.fsync(fd)
                header = sparse_header.Header.of(geometry, fd)
                for copy in range(2):
                    sparse_header.write(header_fd, header, copy, io)
                io.fsync_directory(path.parent)
            except OSError as error:
                raise store_file.typed(path, error) from error
            store = SparseStore(path, header, 0, (header_fd, fd), durability, io, space)
            undo.pop_all()
        return store

    def open(self, snapshot: uuid.UUID, *, durability: Durability, space: Space) -> SparseStore:
        path, io = self._path(snapshot), self._io
        header_path = path.with_suffix(".header")
        with store_file.opened(io, header_path, os.O_RDWR) as header_fd:
            _lock(header_path, header_fd)
            with store_file.opened(io, path, os.O_RDWR) as fd:
                try:
                    header, copy, _ = sparse_header.read(header_path, header_fd, io)
                    inode, born, size = os.fstat(fd).st_ino, sparse_header.born(fd), os.fstat(fd).st_size
                except OSError as error:
                    raise contract.StoreUnavailable(path, os_error.reason(error)) from error
                _check(path, header, snapshot, (inode, born, size))
                return SparseStore(path, header, copy, (header_fd, fd), durability, io, space)

    def remove(self, snapshot: uuid.UUID) -> None:
        path = self._path(snapshot)
        for file in (path, path.with_suffix(".header"), path.with_suffix(".outside")):
            try:
                self._io.unlink(file)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise store_file.typed(file, error) from error
        self._io.fsync_directory(path.parent)

    def remove_leftovers(self, named: Container[uuid.UUID]) -> None:
        for path in sorted(self.directory.glob("*")):
            match = _FILES.fullmatch(path.name)
            if match is not None and uuid.UUID(match[1]) not in named:
                with contextlib.suppress(OSError):
                    self._io.unlink(path)

    def clear(self) -> None:
        self.remove_leftovers(())

    def close(self) -> None:
        """Do nothing: every file belongs to a store."""

    def sync(self, snapshot: uuid.UUID) -> None:
        with contextlib.suppress(FileNotFoundError):
            fd = self._io.open(self._path(snapshot), os.O_RDWR)
            try:
                self._io.fdatasync(fd)
            finally:
                self._io.close(fd)

    def _make(self, path: Path, undo: contextlib.ExitStack) -> int:
        """Make a file; `undo` closes and removes it.  Raises StoreUnavailable."""
        with store_file.opened(self._io, path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            undo.callback(self._io.unlink, path)
            undo.callback(self._io.close, fd)
            return fd

    def _path(self, snapshot: uuid.UUID) -> Path:
        return self.directory / f"{snapshot}.sparse"


def _lock(path: Path, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise contract.StoreLocked(path) from error


def _check(path: Path, header: sparse_header.Header, snapshot: uuid.UUID, seen: tuple[int, int, int]) -> None:
    """Raise StoreDamaged unless the data file, `seen` as (inode, birth time, size), is the one of the header."""
    remedy = "put the files back that belong there, or delete the snapshot"
    if header.snapshot != str(snapshot):
        raise contract.StoreDamaged(path, "snapshot", f"the header is of snapshot {header.snapshot}", remedy)
    if (header.inode, header.born) != seen[:2]:
        fault = "this is a copy of the file, and a copy does not keep which zeroes were written"
        raise contract.StoreDamaged(path, "data file", fault, remedy)
    if header.size != seen[2] and header.reason is None:
        raise contract.StoreDamaged(path, "data file", f"it has {seen[2]} bytes, not {header.size}", remedy)
