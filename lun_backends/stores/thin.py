# SPDX-License-Identifier: Apache-2.0
"""The thin store: a chunk map, and a chunk file with the data; a chunk written in part owns a whole slot.

A block of an open store is in one of three states:

| state     | is                                            | a read     | a write of it                                    |
| --------- | --------------------------------------------- | ---------- | ------------------------------------------------ |
| blank     | neither pending nor written                   | BlankBlock | claims it: pending                               |
| pending   | a bit in `_pending`, until its commit ended   | BlankBlock | waits for the end of that commit, decides again  |
| written   | a bit in the map (and no longer pending)      | its data   | BlockWritten                                     |

A commit of a store with `Durability.POWER_LOSS`, one at a time for all waiting writers (`group_commit`):

1. Each writer has written its data to the chunk file, and the map's pages have disk space (`reserve`).
2. `fdatasync` of the chunk file.
3. Chunks with words of an interrupted commit are cleaned, and the map is synced (rare: `ChunkMap.is_stale`).  Then the map
  is synced after two further stores, if there are any.  The checksums of grains that came from another store are stored:
  such a grain may be damaged, and must not come to life without the checksum that says so.  And chunks of zeroes that get
  other data get their slot.
4. Slots, checksums and bits are stored into the map.  Readers see the blocks from here on.
5. The map is synced.  Only now the claims end, so that the data is durable when a writer gets BlockWritten.
6. The chunks are confirmed in the map, up to 64 with one call.  A later sync makes that durable.  Because of this order, a
  lost word of a confirmed chunk is damage for certain (`chunk_map`).

With `Durability.PROCESS_CRASH` there are no syncs: steps 2 and 5 and the syncs of step 3 are left out.  The order stays,
so a killed process loses no write that it acknowledged.  A power cut may lose any write since the last `flush`.

Blocks that are all zeroes, and whole grains, take no space in a chunk that has no other data: its slot is `ZEROES`.  Such
blocks are recognised by their checksum, which is computed anyway, and then compared.  When the chunk gets other data, it
gets a slot, and the zeroes are written there.

After a failed sync, the kernel may have dropped the dirty pages, and it reports success the next time.  So the store
never tries a sync again: it refuses every further write with MediumError, but still reads.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyroaring

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.files import os_error, storage_io
from lun_backends.stores import chunk_file, claimed, contents, contract, group_commit, maps, outside, reader
from lun_backends.stores.chunk_map import ZEROES, ChunkMap, CutShort, Entry
from lun_backends.stores.space import Space
from lun_backends.stores.superblock import State, Superblock


class Batch:
    """Writes of one thread that are committed together."""

    __slots__ = ("claims", "done", "error", "moved")

    def __init__(self) -> None:
        self.claims: list[Entry] = []
        self.moved: list[tuple[int, int, Sequence[int]]] = []  # (chunk, first grain, checksums) from another store
        self.done = False
        self.error: Exception | None = None

    def reset(self) -> None:
        """Make the batch empty again."""
        self.claims, self.moved, self.done, self.error = [], [], False, None


_CONFIRMED_TOGETHER = 64


class _NotStored(Exception):
    """The map could not be stored into; `error` says why.  Nothing is visible that was blank before."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def _stored() -> Iterator[None]:
    """Turn an OSError into _NotStored."""
    try:
        yield
    except OSError as error:
        raise _NotStored(error) from error


class ThinStore:
    """An open thin store, made by `create` and `open`.

    All methods are thread-safe except `close`, which is the last call.  Ranges are in blocks; the caller has checked
    that they lie within the store.
    """

    def __init__(
        self,
        chunk_map: ChunkMap,
        file: chunk_file.ChunkFile,
        marks: outside.Marks,
        durability: Durability,
        space: Space | None = None,
    ) -> None:
        superblock = chunk_map.superblock
        self.marks = marks
        """The chunks that an initiator wrote to."""
        self.durability = durability
        self.snapshot = superblock.snapshot
        self.volume = superblock.volume
        self.size = superblock.size
        self.block_size = superblock.block_size
        self.chunk_size = superblock.chunk_size
        self.local = True
        self.unit = superblock.block_size
        self.blocks_per_chunk = superblock.chunk_size // superblock.block_size
        self.grain = chunk_map.grain
        self.syncs = contract.Syncs()
        self.reader: reader.Reader = reader.Reader(chunk_map, file)
        """The reader of the blocks."""
        self._map = chunk_map
        self._file = file
        self._synced = durability is Durability.POWER_LOSS
        self._changed = threading.Condition(threading.Lock())
        self._group = group_commit.GroupCommit[Batch](self._changed, self._commit_synced, self._end, self._failed)
        self._pending: dict[int, int] = {}  # chunk -> mask of its blocks being committed
        self._fresh: dict[int, int] = {}  # chunk without a slot in the map -> the slot its pending blocks are in
        self._free: list[int] = []  # slots of writes that failed
        self._unconfirmed: list[int] = []  # chunks whose confirmation is still to be stored
        self._checksums = claimed.Checksums(chunk_map, file)
        self._next = file.slots
        self._space = space or Space()
        self._space.add(self.allocated_bytes)
        self._broken: str | None = None  # why no sync can be trusted any longer
        # Pages of slots that `_blocks` covers: publishing counts in those, `written_bytes` counts the others.
        self._counted = 0
        self._blocks = 0
        self._zeroes = memoryview(bytes(self.chunk_size))

    @classmethod
    def create(
        cls,
        path: Path,
        superblock: Superblock,
        *,
        durability: Durability = Durability.POWER_LOSS,
        io: storage_io.StorageIO = storage_io.SYSTEM,
        space: Space | None = None,
    ) -> ThinStore:
        """Make an empty store, the files `path`.map and `path`.chunks, both durable, and open it.

        `superblock` names the owner of the store and its size.  Raises StoreUnavailable, SpaceExhausted, ValueError
        (geometry).
        """
        map_path, chunks_path = files(path)
        file = chunk_file.ChunkFile.create(chunks_path, superblock, io)
        try:
            marks = outside.Marks(marks_file(path), io)
            return cls(maps.create(map_path, superblock, io), file, marks, durability, space)
        except BaseException:
            file.close()
            io.unlink(chunks_path)
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        durability: Durability = Durability.POWER_LOSS,
        io: storage_io.StorageIO = storage_io.SYSTEM,
        space: Space | None = None,
    ) -> ThinStore:
        """Open an existing store.  Raises StoreMissing, StoreUnavailable, StoreLocked, StoreDamaged."""
        chunk_map = maps.open_existing(files(path)[0], io)
        try:
            return cls.open_with(chunk_map, path, durability=durability, io=io, space=space)
        except BaseException:
            chunk_map.close()
            raise

    @classmethod
    def open_with(
        cls, chunk_map: ChunkMap, path: Path, *, durability: Durability, io: storage_io.StorageIO, space: Space | None
    ) -> ThinStore:
        """Open the existing store `path`, whose map is open, and stays open if this raises an error.

        Raises StoreMissing, StoreUnavailable, StoreDamaged.
        """
        file = chunk_file.ChunkFile.open(files(path)[1], chunk_map.superblock, io)
        try:
            if chunk_map.superblock.state is not State.INVALID:  # after `discard` the slots are gone
                contents.check_slots(chunk_map, file.slots)
            marks = outside.Marks(marks_file(path), io)
        except BaseException:
            file.close()
            raise
        return cls(chunk_map, file, marks, durability, space)

    # -- state

    @property
    def broken(self) -> bool:
        """Whether a sync failed, so that it is unknown how much is durable."""
        return self._broken is not None

    @property
    def allocated_bytes(self) -> int:
        """The bytes of the chunks that were handed out; `space` counts them."""
        return (self._next - 1) * self.chunk_size

    @property
    def marked(self) -> pyroaring.BitMap64:
        """The chunks that an initiator wrote to; a copy."""
        return self.marks.chunks

    def is_marked(self, chunk: int) -> bool:
        """Return whether an initiator wrote to the chunk."""
        return chunk in self.marks

    def discard(self) -> None:
        """Free the space of all chunks, for good.  Raises MediumError.

        The store must be invalid, and no call may be running.
        """
        with self._changed:
            try:
                self._file.truncate()
            except OSError as error:
                raise block_device.MediumError(0, True, os_error.reason(error)) from error
            self._space.add(-self.allocated_bytes)
            self._next = 1

    @property
    def reason(self) -> str | None:
        """Why it is invalid; None if it is valid."""
        superblock = self._map.superblock
        return superblock.reason if superblock.state is State.INVALID else None

    def invalidate(self, reason: str) -> None:
        """Record, durably and for ever, that it must not be read.  Raises MediumError."""
        with self._changed:
            try:
                self._map.set_state(State.INVALID, reason)
            except OSError as error:
                raise block_device.MediumError(0, True, f"{self._map.path}: {os_error.reason(error)}") from error

    # -- writing

    def put_many(self, puts: Iterable[contract.Put]) -> list[block_device.BlockWritten | None]:
        """Store each range of `puts`, all with one commit; see `contract.Store`.

        A put that meets blocks being committed, by this call or another, costs a commit of its own.
        """
        results: list[block_device.BlockWritten | None] = []
        batch = Batch()
        try:
            for first, count, buffers, origin, mark in puts:
                try:
                    if count:
                        self.put(batch, first, count, buffers, origin, mark=mark)
                except block_device.BlockWritten as written:
                    # Append a new exception, because the raised one forms a circle with its traceback and frames.
                    results.append(block_device.BlockWritten(written.lba))
                else:
                    results.append(None)
        finally:
            self.commit(batch)
        return results

    def put(
        self,
        batch: Batch,
        first: int,
        count: int,
        buffers: block_device.Buffers | None,
        origin: contract.Origin | None = None,
        *,
        mark: bool = False,
    ) -> None:
        """Store `count` blocks from block `first` on and claim them for `batch`; `buffers` None stands for zeroes.

        With an `origin` the blocks are of one chunk, and come from another store, see `Reader.read_to_move`.  With
        `mark` their chunks are marked as written by an initiator, before the commit.

        If a commit of another batch touches a block of the range, wait for its end; before waiting, commit `batch`.
        Raises BlockWritten, SpaceExhausted, MediumError; then nothing of this range is stored, and `batch` is as
        before.
        """
        chunk, start = divmod(first, self.blocks_per_chunk)
        pieces = (
            [(chunk, start, count)]
            if start + count <= self.blocks_per_chunk
            else list(reader.pieces(first, count, self.blocks_per_chunk))
        )
        claims = self._checksums.described(pieces, buffers, origin)
        while (slots := self._claim(claims, first, wait=not batch.claims)) is None:
            self.commit(batch)
        try:
            self._store(pieces, claims, slots, buffers)
            if mark:
                self.marks.add(claim.chunk for claim in claims)
        except BaseException as error:
            with self._changed:
                self._release((claim.chunk, claim.mask) for claim in claims)
                self._changed.notify_all()
            if isinstance(error, OSError):
                raise self._write_error(error, first) from error
            raise
        batch.claims.extend(
            (claim.chunk, slot, claim.mask, claim.grain, claim.checksums)
            for claim, slot in zip(claims, slots, strict=True)
        )
        if origin is not None:
            batch.moved.extend((claim.chunk, claim.grain, claim.checksums) for claim in claims if any(claim.checksums))

    def commit(self, batch: Batch) -> None:
        """Commit the batch (the module's docstring says how).  Then it is empty and can be used again.

        Raises MediumError; then nothing of the batch is written.
        """
        if not batch.claims:
            return
        try:
            if self._synced:
                self._group.run(batch)
            else:
                self._commit_unsynced(batch)
        except block_device.BlockDeviceError:
            batch.reset()
            raise
        batch.reset()

    def set_durability(self, durability: Durability) -> None:
        """Set what commits survive from now on.  Raises MediumError.

        With POWER_LOSS, all earlier commits are durable when this returns.
        """
        with self._changed:
            synced = self._synced
            self.durability = durability
            self._synced = durability is Durability.POWER_LOSS
        if self._synced and not synced:
            self._sync()

    def flush(self) -> None:
        """Make all committed writes durable.  Raises MediumError."""
        if self._synced:
            return  # its commits are durable already
        self._sync()

    def _sync(self) -> None:
        self._refuse_if_broken(0)
        try:
            with self._changed:
                self._confirm()
            self._sync_data()
            self._sync_map()
        except OSError as error:
            raise self._break(error, 0) from error

    def _claim(self, claims: list[claimed.Claim], first: int, wait: bool) -> list[int] | None:
        """Make the blocks pending and return their chunks' slots.

        Without `wait`, return None if that would wait for another commit.
        """
        pending = self._pending
        chunk_map = self._map
        with self._changed:
            while True:
                self._refuse_if_broken(first)
                if not any(self._must_wait(claim) for claim in claims):
                    break
                if not wait:
                    return None
                self._changed.wait()
            for claim in claims:
                if written := chunk_map.written(claim.chunk) & claim.mask:
                    raise block_device.BlockWritten(claim.chunk * self.blocks_per_chunk + contents.lowest(written))
            slots = [self._fresh.get(claim.chunk) or chunk_map.slot(claim.chunk) for claim in claims]
            needs = [slot in (0, ZEROES) and not claim.zeroes for slot, claim in zip(slots, claims, strict=True)]
            fresh = sum(needs) - len(self._free)
            if fresh > 0 and not self._space.take(fresh * self.chunk_size):
                raise block_device.SpaceExhausted(first)
            for at, claim in enumerate(claims):
                pending[claim.chunk] = pending.get(claim.chunk, 0) | claim.mask
                if needs[at]:
                    if self._free:
                        slots[at] = self._free.pop()
                    else:
                        slots[at] = self._next
                        self._next += 1
                    self._fresh[claim.chunk] = slots[at]
                elif not slots[at]:
                    slots[at] = self._fresh[claim.chunk] = ZEROES
            return slots

    def _must_wait(self, claim: claimed.Claim) -> bool:
        """Return whether another commit has some of the blocks, or makes a chunk of zeroes that gets other data here."""
        if self._pending.get(claim.chunk, 0) & claim.mask:
            return True
        return not claim.zeroes and self._fresh.get(claim.chunk) == ZEROES

    def _release(self, masks: Iterable[tuple[int, int]]) -> None:
        """End claims (lock held); slots without a published block are free again."""
        pending = self._pending
        for chunk, mask in masks:
            if rest := pending[chunk] & ~mask:
                pending[chunk] = rest
                continue
            del pending[chunk]
            slot = self._fresh.pop(chunk, 0)
            if slot and slot != ZEROES and self._map.slot(chunk) != slot:
                self._free.append(slot)

    def _store(
        self,
        pieces: list[reader.Piece],
        claims: list[claimed.Claim],
        slots: list[int],
        buffers: block_device.Buffers | None,
    ) -> None:
        """Write the data of claimed blocks."""
        chunk_map = self._map
        if taken := [slot for slot in slots if slot != ZEROES]:
            self._file.provide(max(taken), len(taken))
        for claim in claims:
            chunk_map.reserve(claim.chunk)
        run: list[memoryview] = []  # data with adjacent places in the chunk file, from run_place on
        run_place = run_length = done = 0
        for (chunk, start, blocks), slot in zip(pieces, slots, strict=True):
            length = blocks * self.block_size
            if slot == ZEROES:
                done += length
                continue
            if chunk_map.slot(chunk) == ZEROES:
                self._write_zeroes(slot, chunk_map.written(chunk))
            place = slot * self.chunk_size + start * self.block_size
            if buffers is None:
                data: block_device.Buffers = [self._zeroes[:length]]
            else:
                data = buffers if len(pieces) == 1 else block_device.slice_buffers(buffers, done, length)
            if place != run_place + run_length:
                if run_length:
                    self._file.write(run_place, run, run_length)
                run, run_place, run_length = [], place, 0
            run += data
            run_length += length
            done += length
        if run_length:
            self._file.write(run_place, run, run_length)

    def _write_zeroes(self, slot: int, mask: int) -> None:
        """Write the blocks of a chunk of zeroes to its new slot."""
        for start, end in contents.runs(mask):
            length = (end - start) * self.block_size
            self._file.write(slot * self.chunk_size + start * self.block_size, [self._zeroes[:length]], length)

    def _commit_unsynced(self, batch: Batch) -> None:
        with self._changed:
            try:
                self._map.check_length()
                claims = self._checksums.completed(batch.claims)
                if stale := {claim[0] for claim in claims if self._map.is_stale(claim)}:
                    self._clean(stale)
                self._store_ahead(claims, ())
                self._publish(claims)
                self._confirm_later(claims)
                self.syncs.commits += 1
            except (OSError, _NotStored) as error:
                raise self._failed(error, batch) from error
            finally:
                self._end([batch])
                self._changed.notify_all()

    def _commit_synced(self, group: list[Batch]) -> None:
        """Do steps 2 to 6 of a commit (see the module's docstring)."""
        chunk_map = self._map
        if self._broken:
            raise OSError(errno.EIO, self._broken)
        claims: Sequence[Entry] = [claim for batch in group for claim in batch.claims]
        if any(claim[1] != ZEROES for claim in claims):
            self._sync_data()
        chunk_map.check_length()
        claims = self._checksums.completed(claims)
        if stale := {claim[0] for claim in claims if chunk_map.is_stale(claim)}:
            with self._changed:  # chunks may share a byte of bits, and unsynced commits store bits, too
                self._clean(stale)
            self._sync_map()
        if self._store_ahead(claims, [moved for batch in group for moved in batch.moved]):
            self._sync_map()
        with self._changed:  # `written_bytes` counts under this lock
            self._publish(claims)
        try:
            self._sync_map()
        except OSError:
            with self._changed:
                self._retract(claims)
            raise
        with self._changed:  # chunks share a byte of confirmations, too
            self._confirm_later(claims)
        self.syncs.commits += 1

    def _clean(self, chunks: Iterable[int]) -> None:
        with _stored():
            for chunk in chunks:
                self._map.clean(chunk)

    def _store_ahead(self, claims: Sequence[Entry], moved: Iterable[tuple[int, int, Sequence[int]]]) -> bool:
        """Do the further stores of step 3; return whether there were any."""
        any_stored = False
        with _stored():
            for chunk, grain, checksums in moved:
                self._map.record_checksums(chunk, grain, checksums)
                any_stored = True
            for chunk, slot, *_ in claims:
                if slot != ZEROES and self._map.slot(chunk) == ZEROES:
                    self._map.set_slot(chunk, slot)
                    any_stored = True
        return any_stored

    def _publish(self, claims: Sequence[Entry]) -> None:
        """Do step 4.  Raises _NotStored: then no block of `claims` is visible; OSError: then some may be."""
        chunk_map = self._map
        try:
            chunk_map.publish_many(claims)
        except OSError as error:
            chunk_map.retract((chunk, mask) for chunk, _, mask, *_ in claims)
            raise _NotStored(error) from error
        for chunk, _, mask, *_ in claims:
            if chunk // chunk_map.chunks_per_page < self._counted:
                self._blocks += mask.bit_count()

    def _retract(self, claims: Sequence[Entry]) -> None:
        """Take back what was published (lock held).  Raises OSError."""
        per_page = self._map.chunks_per_page
        self._blocks -= sum(mask.bit_count() for chunk, _, mask, *_ in claims if chunk // per_page < self._counted)
        self._map.retract((chunk, mask) for chunk, _, mask, *_ in claims)

    def _confirm_later(self, claims: Sequence[Entry]) -> None:
        """Do step 6 (lock held)."""
        self._unconfirmed += [claim[0] for claim in claims if self._map.can_be_confirmed(claim[0])]
        if len(self._unconfirmed) >= _CONFIRMED_TOGETHER:
            self._confirm()

    def _confirm(self) -> None:
        """Confirm what is to be confirmed (lock held).  Without room for it, only the check that it serves is lost."""
        chunks, self._unconfirmed = self._unconfirmed, []
        with contextlib.suppress(OSError):
            self._map.confirm(chunks)

    def _end(self, group: list[Batch]) -> None:
        for batch in group:
            self._release((chunk, mask) for chunk, _, mask, *_ in batch.claims)

    def _failed(self, error: BaseException, batch: Batch) -> Exception:
        """Return the error for the writer of `batch`, after the commit of its group raised `error`."""
        chunk, _, mask, *_ = batch.claims[0]
        lba = chunk * self.blocks_per_chunk + contents.lowest(mask)
        if isinstance(error, _NotStored):
            error = error.error
            if error.errno in storage_io.NO_SPACE:
                return block_device.SpaceExhausted(lba)
        return self._break(error, lba)

    def _sync_data(self) -> None:
        self.syncs.data += 1
        self._file.sync()

    def _sync_map(self) -> None:
        self.syncs.map += 1
        self._map.sync()

    def _break(self, error: BaseException, lba: int) -> block_device.MediumError:
        """Refuse all further writes, and return the error for the one at `lba`."""
        if not self._broken and isinstance(error, CutShort):
            self._broken = error.strerror
        if not self._broken:
            self._broken = os_error.reason(error) if isinstance(error, OSError) else repr(error)
        return block_device.MediumError(
            lba, True, f"{self._file.path}: committing failed ({self._broken}); it accepts no further writes"
        )

    def _refuse_if_broken(self, lba: int) -> None:
        if self._broken:
            why = f"{self._file.path}: an earlier commit failed ({self._broken}); it accepts no further writes"
            raise block_device.MediumError(lba, True, why)

    def _write_error(self, error: OSError, lba: int) -> block_device.BlockDeviceError:
        if error.errno in storage_io.NO_SPACE:
            return block_device.SpaceExhausted(lba)
        return block_device.MediumError(lba, True, f"{self._file.path}: {os_error.reason(error)}")

    # -- contents

    def extents(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (first block, blocks, written?) over the range, neighbours merged; untouched regions cost nothing."""
        return contents.extents(self._map, first, count)

    def lacks(self, first: int, count: int) -> bool:
        """Return whether no block of the range is written."""
        chunk, start = divmod(first, self.blocks_per_chunk)
        if start + count <= self.blocks_per_chunk:
            return not self._map.written(chunk) >> start & (1 << count) - 1
        return not any(written for _, _, written in contents.extents(self._map, first, count))

    def chunks_written(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (chunk, mask of its written blocks) for the chunks of [first, end) that have any, in order."""
        return contents.chunks_written(self._map, first, end)

    def on_their_way(self) -> list[tuple[int, int]]:
        """Return (first block, blocks) of all ranges of pending blocks.

        Those blocks are visible from step 4 of their commit on, and durable at its end.
        """
        with self._changed:
            pending = list(self._pending.items())
        return [
            (chunk * self.blocks_per_chunk + begin, end - begin)
            for chunk, mask in pending
            for begin, end in contents.runs(mask)
        ]

    def used_bytes(self) -> int:
        """Return the space that chunk file and map take on disk, in bytes."""
        return self._file.disk_bytes() + self._map.disk_bytes()

    def written_bytes(self) -> int:
        """Return how many bytes of the LUN are written.  The first call counts the blocks that were written at open."""
        chunk_map = self._map
        while (page := chunk_map.next_page(self._counted)) is not None:
            with self._changed:  # for one page at a time, so that writers wait only a short time
                if page >= self._counted:
                    base = page * chunk_map.chunks_per_page
                    slots = enumerate(chunk_map.page_slots(page), base)
                    self._blocks += sum(chunk_map.bits(chunk).bit_count() for chunk, slot in slots if slot)
                    self._counted = page + 1
        return self._blocks * self.block_size

    def verify(self, passed_over: pyroaring.BitMap = contract.NOTHING) -> Iterator[contract.ChunkReport]:
        """Read every chunk that has data, except those `passed_over`, and compare; see `contents.verify`."""
        for report in contents.verify(self._map, self._file, passed_over):
            if report.verdict is not contract.Verdict.UNVERIFIABLE:
                self.reader.note(report.offset, report.length, damaged=report.verdict is contract.Verdict.DAMAGED)
            yield report

    def check_headers(self) -> list[str]:
        """Return the faults of superblocks, header and places that must be zeroes, as they are on the disk, a phrase each."""
        faults = self._map.check_superblocks() + self._map.check_gaps()
        return faults + self._file.check_header(self._map.superblock)

    def close(self) -> None:
        """Flush and close.  No call may be running or follow.  The store is closed even if this raises MediumError."""
        try:
            if self._broken is None:
                self.flush()
                with self._changed:
                    self._confirm()
        finally:
            del self._group  # it refers to the store: no circle is left for a garbage collector that seldom runs
            self._file.close()  # it may shorten the file, and the map's lock keeps the next owner out until then
            self._map.close()


def superblock(geometry: contract.Geometry) -> Superblock:
    """Return the superblock of a new store."""
    return Superblock(geometry.snapshot, geometry.volume, geometry.size, geometry.block_size, geometry.chunk_size)


def files(path: Path) -> tuple[Path, Path]:
    """Return the paths of the map and the chunk file of the store `path`."""
    return path.with_name(path.name + ".map"), path.with_name(path.name + ".chunks")


def marks_file(path: Path) -> Path:
    """Return the path of the marks of the store `path`; the file exists once an initiator has written to the store."""
    return path.with_name(path.name + ".outside")
