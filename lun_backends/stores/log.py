# SPDX-License-Identifier: Apache-2.0
"""The log-structured store: pre-images are appended to a log with one write and one sync a commit; an index follows later.

Two files a snapshot: `NAME.log` (`log_file`, `log_batch`) and `NAME.map`, the index (`log_map`).  Every snapshot has a log
of its own, so the deletion of a snapshot gives its space back at once, and nothing is ever compacted: nothing in a log is
overwritten, and almost nothing in it is superseded.

A commit of a store with `Durability.POWER_LOSS`, one at a time for all waiting writers (`group_commit`):

1. One gathering write of a header and the grains behind it, at the tail of the log.
2. One `fdatasync` of the log.
3. The grains are entered in `LogMap.recent`, in memory.  Readers see them from here on.
4. The claims end, and the writers wake up.

With `Durability.PROCESS_CRASH` step 2 is left out: a killed process leaves the batch in the page cache.

`recent` is written into the index when it has grown to `RECENT` grains, by a thread of the store's own, and when the store
is closed.  Opening a store reads the batches behind the last checkpoint of the index.  A batch counts if it is of this
snapshot, follows the one before, and all its checksums fit.  The first one that does not ends the log, because the commits
are one after the other: what an interrupted commit left was never acknowledged.  If a later batch proves that the one
that does not fit was durable once, the log is damaged, and the store is refused.  (Rot in the very last commit before a
crash looks like an interrupted commit.)

Blocks are written in grains of 4 KiB.  A write of a part of a grain appends the whole grain, with the blocks that it had
before; so the place of a grain can change as long as it is not complete.  Grains that are all zeroes take no space.

After a failed sync it is not known what is durable.  So the store never tries again: it refuses every further write with
MediumError, but still reads.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import crc32c
import pyroaring

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.files import os_error, storage_io
from lun_backends.stores import (
    chunk_file,
    claimed,
    contents,
    contract,
    group_commit,
    log_batch,
    log_file,
    log_map,
    maps,
    outside,
    reader,
    store_file,
)
from lun_backends.stores.chunk_map import ZEROES, CutShort
from lun_backends.stores.log_batch import PAGE, Run
from lun_backends.stores.space import Space
from lun_backends.stores.superblock import LOG, State, Superblock

RECENT = 8192
"""The grains that are not in the index at which they are written into it."""

_ZERO = chunk_file.checksum_of_zeroes(PAGE)


class Batch:
    """Writes of one thread that are committed together."""

    __slots__ = ("done", "error", "runs")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.done = False
        self.error: Exception | None = None


class LogStore:
    """An open log-structured store, made by `create` and `open_with`; see `contract.Store`."""

    local = True

    def __init__(
        self,
        index: log_map.LogMap,
        file: log_file.LogFile,
        marks: outside.Marks,
        durability: Durability,
        io: storage_io.StorageIO,
        space: Space | None,
    ) -> None:
        superblock = index.superblock
        self.marks = marks
        """The chunks that an initiator wrote to."""
        self.durability = durability
        self.snapshot = superblock.snapshot
        self.volume = superblock.volume
        self.size = superblock.size
        self.block_size = superblock.block_size
        self.chunk_size = index.chunk_size
        self.unit = superblock.block_size
        self.grain = index.grain
        self.syncs = contract.Syncs()
        self.reader: reader.Reader = reader.Reader(index, file, index.chunk_size)
        """The reader of the blocks."""
        self._map = index
        self._file = file
        self._io = io
        self._per_grain = index.blocks_per_grain
        self._full = (1 << self._per_grain) - 1
        self._synced = durability is Durability.POWER_LOSS
        self._changed = threading.Condition(threading.Lock())
        self._group = group_commit.GroupCommit[Batch](self._changed, self._commit_group, self._end, self._failed)
        self._appending = threading.Lock()  # held for a whole commit, which is one at a time
        self._pending = pyroaring.BitMap64()  # grains being committed
        self._checksums = claimed.Checksums(index, file)
        self._space = space or Space()
        self._broken: str | None = None  # why no sync can be trusted any longer
        self._salt = secrets.randbits(32)
        self._helper: threading.Thread | None = None  # it writes the index and zeroes ahead
        self._closing = False
        self._limit = RECENT
        found = index.checkpoint
        self._sequence, self._commit, self._chain = found.sequence, found.commit, found.chain
        self._stored, self._blocks = found.pages, found.blocks  # pages and blocks that are committed
        self._pages = found.pages  # those that are claimed, too

    @classmethod
    def create(
        cls,
        path: Path,
        superblock: Superblock,
        *,
        durability: Durability = Durability.POWER_LOSS,
        io: storage_io.StorageIO = storage_io.SYSTEM,
        space: Space | None = None,
    ) -> LogStore:
        """Make an empty store, the files `path`.map and `path`.log, both durable, and open it.

        Raises StoreUnavailable, SpaceExhausted, ValueError (geometry).
        """
        index_path, log_path = files(path)
        file = log_file.LogFile.make(log_path, superblock, io)
        try:
            marks = outside.Marks(path.with_name(path.name + ".outside"), io)
            index = maps.create(index_path, superblock, io)
            assert isinstance(index, log_map.LogMap)
            try:
                index.start()
                return cls(index, file, marks, durability, io, space)
            except BaseException as error:
                index.close()
                io.unlink(index_path)
                if isinstance(error, OSError):
                    raise store_file.typed(index_path, error) from error
                raise
        except BaseException:
            file.close()
            io.unlink(log_path)
            raise

    @classmethod
    def open_with(
        cls, index: log_map.LogMap, path: Path, *, durability: Durability, io: storage_io.StorageIO, space: Space | None
    ) -> LogStore:
        """Open the existing store `path`, whose index is open, and stays open if this raises an error.

        Raises StoreMissing, StoreUnavailable, StoreDamaged.
        """
        log_path = files(path)[1]
        file = log_file.LogFile.find(log_path, index.superblock, io)
        try:
            marks = outside.Marks(path.with_name(path.name + ".outside"), io)
            index.load()
            store = cls(index, file, marks, durability, io, space)
            store._take_up()
        except OSError as error:
            file.close()
            raise store_file.typed(log_path, error) from error
        except BaseException:
            file.close()
            raise
        return store

    def _take_up(self) -> None:
        """Read the index's checkpoint, and the batches behind it.  Raises StoreDamaged, OSError."""
        index, file = self._map, self._file
        if self.reason is not None:
            file.tail = max(1, file.slots)
            self._pages = self._stored = index.checkpoint.pages if file.slots > 1 else 0
            self._space.add(self.allocated_bytes)
            return
        for header in file.settle(self.snapshot, index.checkpoint):
            for record in header.records:
                slot = ZEROES if record.page is None else record.page
                if record.grain >= index.chunks:
                    fault = f"the batch in page {header.place} has grain {record.grain}, beyond the LUN"
                    raise store_file.StoreDamaged(file.path, "log", fault, store_file.RESTORE)
                index.add((record.grain,), ((slot, record.mask, record.checksum),))
                self._stored += record.page is not None
                self._blocks += record.added.bit_count()
            self._sequence, self._commit, self._chain = header.sequence, header.commit, header.crc
        contents.check_slots(index, file.tail)
        if self._synced and index.recent:
            self._sync_data()  # a refusal promises that the earlier data is durable
        self._pages = self._stored
        self._space.add(self.allocated_bytes)

    # -- state

    @property
    def broken(self) -> bool:
        return self._broken is not None

    @property
    def allocated_bytes(self) -> int:
        return self._pages * PAGE

    @property
    def marked(self) -> pyroaring.BitMap64:
        return self.marks.chunks

    def is_marked(self, chunk: int) -> bool:
        return chunk in self.marks

    @property
    def reason(self) -> str | None:
        superblock = self._map.superblock
        return superblock.reason if superblock.state is State.INVALID else None

    def invalidate(self, reason: str) -> None:
        with self._changed:
            try:
                self._map.set_state(State.INVALID, reason)
            except OSError as error:
                raise block_device.MediumError(0, True, f"{self._map.path}: {os_error.reason(error)}") from error

    def discard(self) -> None:
        with self._appending, self._changed:
            try:
                self._file.truncate()
            except OSError as error:
                raise block_device.MediumError(0, True, os_error.reason(error)) from error
            self._space.add(-self.allocated_bytes)
            self._pages = self._stored = 0

    # -- writing

    def put_many(self, puts: Iterable[contract.Put]) -> list[block_device.BlockWritten | None]:
        results: list[block_device.BlockWritten | None] = []
        batch = Batch()
        try:
            for put in puts:
                written = self._put(batch, put) if put.blocks else -1
                results.append(None if written < 0 else block_device.BlockWritten(written))
        finally:
            self._commit_batch(batch)
        return results

    def _put(self, batch: Batch, put: contract.Put) -> int:
        """Claim the blocks for `batch` with their data, and return -1; or return the first block that is written.

        Raises SpaceExhausted, MediumError; then nothing of the put is claimed.
        """
        first, count, buffers, origin, mark = put
        per_grain = self._per_grain
        begin, end = first // per_grain, -(-(first + count) // per_grain)
        if origin is None and buffers is not None and len(buffers) == 1 and count == (end - begin) * per_grain:
            view = buffers[0]
            if count == per_grain:
                crcs = [crc32c.crc32c(view) or 1]
            else:
                crcs = [crc32c.crc32c(view[at : at + PAGE]) or 1 for at in range(0, len(view), PAGE)]
            if _ZERO not in crcs:
                written = self._claim(batch, begin, end, first, first + count, end - begin)
                if written < 0:
                    full = bytes((self._full,)) * (end - begin)
                    batch.runs.append(Run(begin, crcs, crcs, full, full, bytes(view)))
                    if mark:
                        self._mark(batch, put, begin, end, 1, end - begin)
                return written
        pieces = list(reader.pieces(first, count, per_grain))
        claims = self._checksums.described(pieces, buffers, origin)
        most = sum(not claim.zeroes for claim in claims)
        written = self._claim(batch, begin, end, first, first + count, most)
        if written < 0:
            before = len(batch.runs)
            try:
                self._add(batch, put, pieces, claims)
            except BaseException:
                del batch.runs[before:]
                self._give_back(begin, end, most)
                raise
            spare = most - sum(run.grains for run in batch.runs[before:] if not run.zeroes)
            if spare:
                with self._changed:
                    self._take_pages(-spare)
            if mark:
                self._mark(batch, put, begin, end, len(batch.runs) - before, most - spare)
        return written

    def _claim(self, batch: Batch, begin: int, end: int, first: int, stop: int, pages: int) -> int:
        """Make the grains [begin, end) pending, for the blocks [first, stop), and return -1.

        Or return the first of these blocks that is written.  If another commit has some of the grains, commit `batch` and
        wait for the end of that commit.  Raises SpaceExhausted, MediumError.
        """
        while True:
            with self._changed:
                while True:
                    self._refuse_if_broken(first)
                    if not self._pending or not self._pending.range_cardinality(begin, end):
                        if not self._map.nothing_in(begin, end):
                            written = self._first_written(first, stop)
                            if written >= 0:
                                return written
                        if pages and not self._take_pages(pages):
                            raise block_device.SpaceExhausted(first)
                        self._pending.add_range(begin, end)
                        return -1
                    if batch.runs:
                        break
                    self._changed.wait()
            self._commit_batch(batch)

    def _take_pages(self, count: int) -> bool:
        """Count pages of the log (lock held); return False if that would pass the limit."""
        if count < 0:
            self._space.add(count * PAGE)
        elif not self._space.take(count * PAGE):
            return False
        self._pages += count
        return True

    def _give_back(self, begin: int, end: int, pages: int) -> None:
        """End the claim of grains that were not stored."""
        with self._changed:
            self._pending.remove_range(begin, end)
            self._take_pages(-pages)
            self._changed.notify_all()

    def _first_written(self, first: int, stop: int) -> int:
        """Return the first written block of [first, stop), -1 if there is none."""
        for grain, start, blocks in reader.pieces(first, stop - first, self._per_grain):
            if written := self._map.written(grain) & ((1 << blocks) - 1) << start:
                return grain * self._per_grain + contents.lowest(written)
        return -1

    def _mark(self, batch: Batch, put: contract.Put, begin: int, end: int, runs: int, pages: int) -> None:
        """Mark the chunks of the last `runs` runs, durably, or take the runs back and raise MediumError, SpaceExhausted."""
        length = put.blocks * self.block_size
        chunk = put.first * self.block_size // self.chunk_size
        try:
            self.marks.add(range(chunk, -(-(put.first * self.block_size + length) // self.chunk_size)))
        except BaseException as error:
            del batch.runs[-runs:]
            self._give_back(begin, end, pages)
            if isinstance(error, OSError):
                raise self._write_error(error, put.first) from error
            raise

    def _add(
        self, batch: Batch, put: contract.Put, pieces: Sequence[reader.Piece], claims: Sequence[claimed.Claim]
    ) -> None:
        """Add the grains of a put that needs a look at each of them.  Raises MediumError."""
        done = 0
        for (grain, start, blocks), claim in zip(pieces, claims, strict=True):
            length = blocks * self.block_size
            before = self._map.written(grain)
            slot = self._map.slot(grain) if before else 0
            mask, whole = before | claim.mask, self._map.full_mask(grain)
            (checksum,) = claim.checksums
            if claim.zeroes and slot in (0, ZEROES):
                if mask == whole and not checksum and not self._checksums.is_unverified(grain, 0):
                    checksum = chunk_file.checksum_of_zeroes(self._map.chunk_length(grain))
                batch.runs.append(Run(grain, [0], [checksum], bytes((mask,)), bytes((claim.mask,)), b"", True))
            else:
                page = bytearray(PAGE)
                if slot and slot != ZEROES:
                    self._file.read(slot * PAGE, [memoryview(page)], PAGE, put.first, False)
                if put.buffers is not None:
                    at = start * self.block_size
                    for part in block_device.slice_buffers(put.buffers, done, length):
                        page[at : at + len(part)] = part
                        at += len(part)
                if mask == whole and not checksum and not self._checksums.is_unverified(grain, 0):
                    checksum = chunk_file.checksum([memoryview(page)[: self._map.chunk_length(grain)]])
                crc = chunk_file.checksum([memoryview(page)])
                batch.runs.append(Run(grain, [crc], [checksum], bytes((mask,)), bytes((claim.mask,)), bytes(page)))
            done += length

    def _commit_batch(self, batch: Batch) -> None:
        """Commit the batch; then it is empty.  Raises MediumError, SpaceExhausted; then nothing of it is written."""
        if not batch.runs:
            return
        try:
            if self._synced:
                self._group.run(batch)
            else:
                self._commit_alone(batch)
        finally:
            batch.runs, batch.done, batch.error = [], False, None
        file = self._file
        if len(self._map.recent) >= self._limit or (self._synced and file.wants_zeroes()):
            self._help()

    def _commit_alone(self, batch: Batch) -> None:
        try:
            self._commit_group([batch])
        except BaseException as error:
            batch.error = self._failed(error, batch)
            raise batch.error from error
        finally:
            with self._changed:
                self._end([batch])
                self._changed.notify_all()

    def _commit_group(self, group: list[Batch]) -> None:
        """Do steps 1 to 3 of a commit."""
        with self._appending:
            if self._broken:
                raise OSError(errno.EIO, self._broken)
            runs = group[0].runs if len(group) == 1 else [run for batch in group for run in batch.runs]
            buffers, added, ends = self._packed(runs)
            tail, sequence, chain, pages, blocks = ends
            try:
                self._file.append(buffers, (tail - self._file.tail) * PAGE)
            except OSError as error:
                self._file.cut()  # a part of it may be there
                raise _NotStored(error) from error
            if self._synced:
                self._sync_data()
            self._sequence, self._chain = sequence, chain
            self._commit += 1
            self._file.tail = tail
            self._stored += pages
            self._blocks += blocks
            index = self._map
            for grains, entries in added:
                index.add(grains, entries)
            self.syncs.commits += 1

    def _packed(
        self, runs: Sequence[Run]
    ) -> tuple[list[bytes | memoryview], list[tuple[range, Iterable[log_map.Recent]]], tuple[int, int, int, int, int]]:
        """Return the buffers of a commit, what is to be added to the index, and what is after it.

        That is: tail, sequence, chain, and the pages and blocks that are new.
        """
        buffers: list[bytes | memoryview] = []
        added: list[tuple[range, Iterable[log_map.Recent]]] = []
        place, sequence, chain, blocks = self._file.tail, self._sequence, self._chain, 0
        batches = list(_divided(runs))
        synced = log_batch.DURABLE_BEFORE if self._synced else 0
        for number, parts in enumerate(batches, 1):
            sequence += 1
            flags = synced | (log_batch.LAST if number == len(batches) else 0)
            header, chain = log_batch.pack(
                self.snapshot, sequence, self._commit + 1, place, chain, flags, self._salt, parts
            )
            buffers.append(header)
            place += 1
            for run in parts:
                count = len(run.crcs)
                grains = range(run.first, run.first + count)
                if run.zeroes:
                    added.append((grains, zip(itertools.repeat(ZEROES), run.masks, run.sums)))
                else:
                    buffers.append(run.data)
                    added.append((grains, zip(range(place, place + count), run.masks, run.sums, strict=True)))
                    place += count
                blocks += int.from_bytes(run.added).bit_count()
        pages = place - self._file.tail - len(batches)
        return buffers, added, (place, sequence, chain, pages, blocks)

    def _end(self, group: list[Batch]) -> None:
        """End the claims of batches (lock held)."""
        pending = self._pending
        for batch in group:
            pages = 0
            for run in batch.runs:
                if run.grains == 1:
                    pending.discard(run.first)
                else:
                    pending.remove_range(run.first, run.first + run.grains)
                pages += 0 if run.zeroes else run.grains
            if batch.error is not None:
                self._take_pages(-pages)

    def _failed(self, error: BaseException, batch: Batch) -> Exception:
        """Return the error for the writer of `batch`, after the commit of its group raised `error`."""
        run = batch.runs[0]
        lba = run.first * self._per_grain + contents.lowest(run.added[0])
        if isinstance(error, _NotStored) and not self._broken:
            if error.error.errno in storage_io.NO_SPACE:
                return block_device.SpaceExhausted(lba)
            error = error.error
        return self._break(error, lba)

    def flush(self) -> None:
        if self._synced:
            return  # its commits are durable already
        self._sync()

    def set_durability(self, durability: Durability) -> None:
        with self._appending:
            with self._changed:
                synced, self._synced = self._synced, durability is Durability.POWER_LOSS
                self.durability = durability
            if self._synced and not synced:
                self._sync()

    def _sync(self) -> None:
        self._refuse_if_broken(0)
        try:
            self._sync_data()
        except OSError as error:
            raise self._break(error, 0) from error

    def _sync_data(self) -> None:
        self.syncs.data += 1
        self._file.sync()

    def _break(self, error: BaseException, lba: int) -> block_device.MediumError:
        """Refuse all further writes, and return the error for the one at `lba`."""
        if not self._broken:
            if isinstance(error, CutShort):
                self._broken = error.strerror
            else:
                self._broken = os_error.reason(error) if isinstance(error, OSError) else repr(error)
        why = f"{self._file.path}: committing failed ({self._broken}); it accepts no further writes"
        return block_device.MediumError(lba, True, why)

    def _refuse_if_broken(self, lba: int) -> None:
        if self._broken:
            why = f"{self._file.path}: an earlier commit failed ({self._broken}); it accepts no further writes"
            raise block_device.MediumError(lba, True, why)

    def _write_error(self, error: OSError, lba: int) -> block_device.BlockDeviceError:
        if error.errno in storage_io.NO_SPACE:
            return block_device.SpaceExhausted(lba)
        return block_device.MediumError(lba, True, f"{self._file.path}: {os_error.reason(error)}")

    # -- the index, and zeroes ahead

    def _help(self) -> None:
        """Let a thread write the index and zeroes ahead, unless one does already."""
        with self._changed:
            if self._helper is None and not self._closing and self._broken is None and self.reason is None:
                self._helper = threading.Thread(target=self._help_out, name="log helper", daemon=True)
                self._helper.start()

    def _help_out(self) -> None:
        try:
            with contextlib.suppress(OSError):  # zeroes ahead only make commits faster
                if self._synced and self._file.wants_zeroes():
                    self._file.zero_ahead()
            if len(self._map.recent) >= self._limit:
                self._write_index()
        finally:
            with self._changed:
                self._helper = None
                self._changed.notify_all()

    def _write_index(self) -> None:
        """Write what is not in the index yet into it, as far as the disk has room."""
        with self._appending:
            recent = list(self._map.recent.items())
            upto = log_map.Checkpoint(
                self._map.checkpoint.number + 1, self._sequence, self._commit, self._file.tail, self._chain,
                self._stored, self._blocks,
            )  # fmt: skip
        try:
            self._sync_data()
            self._map.write_back(upto, recent)
            self._limit = RECENT
        except OSError as error:
            if error.errno in storage_io.NO_SPACE:
                self._limit = len(self._map.recent) + RECENT  # the log has all of it
            else:
                self._break(error, 0)

    # -- contents

    def extents(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        return contents.extents(self._map, first, count)

    def on_their_way(self) -> tuple[tuple[int, int], ...]:
        return ()  # what shows is durable

    def used_bytes(self) -> int:
        return self._file.disk_bytes() + self._map.disk_bytes()

    def written_bytes(self) -> int:
        return self._blocks * self.block_size

    def verify(self, passed_over: pyroaring.BitMap = contract.NOTHING) -> Iterator[contract.ChunkReport]:
        last: contract.ChunkReport | None = None
        for report in contents.verify(self._map, self._file, _Grains(passed_over, self.chunk_size // PAGE)):
            if report.verdict is not contract.Verdict.UNVERIFIABLE:
                self.reader.note(report.offset, report.length, damaged=report.verdict is contract.Verdict.DAMAGED)
            if (
                last is not None
                and (last.verdict, last.reason) == (report.verdict, report.reason)
                and last.offset + last.length == report.offset
                and report.offset % self.chunk_size
            ):
                last = contract.ChunkReport(last.offset, last.length + report.length, last.verdict, last.reason)
                continue
            if last is not None:
                yield last
            last = report
        if last is not None:
            yield last

    def check_headers(self) -> list[str]:
        index = self._map
        try:
            checkpoints = index.check_checkpoints()
        except OSError as error:
            checkpoints = [f"the checkpoints of the index cannot be read: {os_error.reason(error)}"]
        return index.check_superblocks() + index.check_gaps() + checkpoints + self._file.check_header(index.superblock)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            while self._helper is not None:
                self._changed.wait()
        try:
            if self._broken is None and self.reason is None:
                self.flush()
                if self._map.recent:
                    self._write_index()
        finally:
            del self._group  # it refers to the store: no circle is left for a garbage collector that seldom runs
            self._file.close()  # it may shorten the file, and the index's lock keeps the next owner out until then
            self._map.close()


class _NotStored(Exception):
    """A batch could not be appended; `error` says why.  Nothing of it is visible."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Grains:
    """The grains of chunks."""

    def __init__(self, chunks: pyroaring.BitMap, per_chunk: int) -> None:
        self._chunks, self._per_chunk = chunks, per_chunk

    def __contains__(self, grain: int, /) -> bool:
        return grain // self._per_chunk in self._chunks


def _divided(runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
    """Yield the runs of each batch, of up to `log_batch.MOST` grains."""
    if len(runs) <= log_batch.MOST and sum([len(run.crcs) for run in runs]) <= log_batch.MOST:
        yield runs
        return
    parts: list[Run] = []
    room = log_batch.MOST
    for run in runs:
        at = 0
        while run.grains - at > room:
            if room:
                parts.append(run.part(at, at + room))
            at += room
            yield parts
            parts, room = [], log_batch.MOST
        if at < run.grains:
            parts.append(run.part(at, run.grains) if at else run)
            room -= run.grains - at
    if parts:
        yield parts


def superblock(geometry: contract.Geometry) -> Superblock:
    """Return the superblock of a new store."""
    return Superblock(
        geometry.snapshot, geometry.volume, geometry.size, geometry.block_size, geometry.chunk_size, version=LOG
    )


def files(path: Path) -> tuple[Path, Path]:
    """Return the paths of the index and the log of the store `path`."""
    return path.with_name(path.name + ".map"), path.with_name(path.name + ".log")
