# SPDX-License-Identifier: Apache-2.0
"""The thin store: a chunk map, and a chunk file that holds what was written.

The chunk file is `slots` of one chunk each; slot 0 is its header (`_HEADER`, CRC32C), so the chunk of slot n is at byte
n * chunk_size.  Slots are handed out upwards and never moved; a chunk written in part owns its whole slot.  The next free slot
at open is the end of the chunk file: every slot in use lies before it, so no map has to be searched.  (What a crash leaves
between the highest slot in use and the end, at most the writes then under way, stays unused.)

A block of a store that is open is in one of three states:

| state     | is                                            | a read     | a write of it                                    |
| --------- | --------------------------------------------- | ---------- | ------------------------------------------------ |
| blank     | neither of the below                          | BlankBlock | claims it: pending                               |
| pending   | a bit in `_pending`, until its commit ended   | BlankBlock | waits for the end of that commit, decides again  |
| written   | a bit in the map (and no longer pending)      | its data   | BlockWritten                                     |

A commit of a store with `Durability.POWER_LOSS`, one at a time for all who wait (`group_commit`):

1. the data was written to the chunk file by each writer, the map's pages have disk space (`reserve`);
2. `fdatasync` of the chunk file;
3. chunks with words left by an interrupted commit are cleaned and the map synced (rare: `ChunkMap.is_stale`);
4. slots, checksums and bits are stored into the map; readers see the blocks from here on;
5. the map is synced; only now the claims end, so that whoever is told BlockWritten may rely on durable data.

With `Durability.PROCESS_CRASH` steps 2, 3's sync and 5 fall away; the order stays, so a killed process loses nothing it
acknowledged, and a power cut may lose anything since the last `flush`.

After a failed sync the kernel may have dropped the dirty pages and will report success next time.  So a sync is never tried
again: the store refuses every further write with MediumError, and goes on reading.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import crc32c
import pyroaring

from lun_backends import block_device, storage_io
from lun_backends.stores import chunk_map, group_commit

CHECKED_AT_OPEN = 2048
"""Pages of slots that `open` checks; a million chunks take it 40 ms.  Larger maps are checked by `verify`."""

_HEADER = struct.Struct("<8sI16sI")  # magic, version, snapshot, chunk size
_CRC = struct.Struct("<I")
_MAGIC = b"WOLUNCHK"
_VERSION = 1
_RESTORE = "restore map and chunk file together from a backup, or delete the snapshot"

Piece = tuple[int, int, int]
"""Blocks of one chunk: chunk number, first block within it, number of blocks."""


class Durability(enum.Enum):
    """What an acknowledged write survives."""

    POWER_LOSS = "power-loss"
    PROCESS_CRASH = "process-crash"


class Verdict(enum.Enum):
    """What `verify` found of a chunk."""

    GOOD = "good"
    UNVERIFIABLE = "unverifiable"  # no checksum is recorded: written in part, or by a commit that was interrupted
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """One chunk of a scrub; `offset` and `length` are bytes of the LUN."""

    offset: int
    length: int
    verdict: Verdict
    reason: str = ""


@dataclass(slots=True)
class Syncs:
    """How often stable storage was waited for, and for how much."""

    data: int = 0  # fdatasync of the chunk file
    map: int = 0  # sync of the map
    commits: int = 0  # groups committed
    batches: int = 0  # batches in them


class Batch:
    """Writes of one thread that will be committed together: (chunk, slot, mask, checksum or 0) each."""

    __slots__ = ("claims", "done", "error")

    def __init__(self) -> None:
        self.claims: list[tuple[int, int, int, int]] = []
        self.done = False
        self.error: Exception | None = None

    def reset(self) -> None:
        """Make it empty again."""
        self.claims, self.done, self.error = [], False, None


class ThinStore:
    """An open thin store; made by `create` and `open`.  Thread-safe but for `close`, which is the last call.

    Ranges are in blocks and within the store: the caller checks.
    """

    def __init__(
        self, chunk_map_: chunk_map.ChunkMap, path: Path, fd: int, durability: Durability, io: storage_io.StorageIO
    ) -> None:
        superblock = chunk_map_.superblock
        self.durability = durability
        self.snapshot = superblock.snapshot
        self.volume = superblock.volume
        self.size = superblock.size
        self.block_size = superblock.block_size
        self.chunk_size = superblock.chunk_size
        self.blocks_per_chunk = superblock.chunk_size // superblock.block_size
        self.syncs = Syncs()
        self._map = chunk_map_
        self._path = path
        self._fd = fd
        self._io = io
        self._synced = durability is Durability.POWER_LOSS
        self._changed = threading.Condition(threading.Lock())
        self._group = group_commit.GroupCommit[Batch](self._changed, self._commit_synced, self._end, self._failed)
        self._pending: dict[int, int] = {}  # chunk -> mask of its blocks being committed
        self._fresh: dict[int, int] = {}  # chunk without a slot in the map -> the slot its pending blocks are in
        self._free: list[int] = []  # slots of writes that failed
        self._next = max(1, -(-os.fstat(fd).st_size // self.chunk_size))
        self._broken: str | None = None  # why no sync can be trusted any more
        self._counted = (
            0  # pages of slots that `_blocks` covers; publishing counts in those, `written_bytes` the others
        )
        self._blocks = 0
        self._zeroes = memoryview(bytes(self.chunk_size))

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        snapshot: uuid.UUID,
        volume: uuid.UUID,
        size: int,
        block_size: int,
        chunk_size: int,
        durability: Durability,
        io: storage_io.StorageIO = storage_io.SYSTEM,
    ) -> ThinStore:
        """Make an empty store of `size` bytes, the files `path`.map and `path`.chunks, both durable, and open it.

        Raises StoreUnavailable, SpaceExhausted, ValueError (geometry).
        """
        map_path, chunks_path = files(path)
        superblock = chunk_map.Superblock(snapshot, volume, size, block_size, chunk_size)
        with chunk_map.opened(io, chunks_path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            try:
                header = _HEADER.pack(_MAGIC, _VERSION, snapshot.bytes, chunk_size)
                header += _CRC.pack(crc32c.crc32c(header))
                storage_io.write_all(io, fd, [header], 0, len(header))
                io.ftruncate(fd, chunk_size)
                io.fdatasync(fd)
                return cls(chunk_map.ChunkMap.create(map_path, superblock, io), chunks_path, fd, durability, io)
            except BaseException as error:
                io.unlink(chunks_path)
                if isinstance(error, OSError):
                    raise _store_error(chunks_path, error) from error
                raise

    @classmethod
    def open(cls, path: Path, *, durability: Durability, io: storage_io.StorageIO = storage_io.SYSTEM) -> ThinStore:
        """Open an existing store.  Raises StoreMissing, StoreUnavailable, StoreLocked, StoreDamaged."""
        map_path, chunks_path = files(path)
        opened = chunk_map.ChunkMap.open(map_path, io)
        try:
            with chunk_map.opened(io, chunks_path, os.O_RDWR) as fd:
                try:
                    _check_header(io, fd, chunks_path, opened.superblock)
                    _check_slots(opened, os.fstat(fd).st_size)
                except OSError as error:
                    raise _store_error(chunks_path, error) from error
                return cls(opened, chunks_path, fd, durability, io)
        except BaseException:
            opened.close()
            raise

    @staticmethod
    def remove(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        """Delete the store's files, as far as they exist, durably.  The store must be closed.  Raises StoreUnavailable."""
        for file in files(path):
            try:
                io.unlink(file)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _store_error(file, error) from error
        io.fsync_directory(path.parent)

    # -- state

    @property
    def state(self) -> chunk_map.State:
        return self._map.superblock.state

    @property
    def reason(self) -> str:
        """Why the store is in its state; empty unless given to `set_state`."""
        return self._map.superblock.reason

    def set_state(self, state: chunk_map.State, reason: str = "") -> None:
        """Record a state, durable before this returns.  Raises MediumError."""
        with self._changed:
            try:
                self._map.set_state(state, reason)
            except OSError as error:
                raise block_device.MediumError(0, True, f"{self._map.path}: {os.strerror(error.errno or 0)}") from error

    # -- reading

    def read(self, first: int, count: int, buffers: block_device.Buffers, *, nowait: bool = False) -> None:
        """Fill `buffers` with `count` blocks from block `first` on.  Raises BlankBlock, MediumError, WouldBlock."""
        map_ = self._map
        per_chunk = self.blocks_per_chunk
        block_size = self.block_size
        chunk, start = divmod(first, per_chunk)
        if start + count <= per_chunk:
            mask = ((1 << count) - 1) << start
            if missing := mask & ~map_.written(chunk):
                raise block_device.BlankBlock(chunk * per_chunk + _lowest(missing))
            self._read_run(
                map_.slot(chunk) * self.chunk_size + start * block_size, buffers, count * block_size, first, nowait
            )
            return
        runs: list[list[int]] = []  # [place in the chunk file, bytes], neighbours there joined
        for chunk, start, blocks in self._pieces(first, count):
            mask = ((1 << blocks) - 1) << start
            if missing := mask & ~map_.written(chunk):
                raise block_device.BlankBlock(chunk * per_chunk + _lowest(missing))
            place = map_.slot(chunk) * self.chunk_size + start * block_size
            if runs and sum(runs[-1]) == place:
                runs[-1][1] += blocks * block_size
            else:
                runs.append([place, blocks * block_size])
        done = 0
        for place, length in runs:
            part = buffers if len(runs) == 1 else sliced(buffers, done, length)
            self._read_run(place, part, length, first + done // block_size, nowait)
            done += length

    def _read_run(self, place: int, buffers: block_device.Buffers, length: int, lba: int, nowait: bool) -> None:
        try:
            got = storage_io.read_all(self._io, self._fd, buffers, place, length, os.RWF_NOWAIT if nowait else 0)
        except OSError as error:
            if nowait and error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise block_device.WouldBlock from error
            raise block_device.MediumError(lba, False, f"{self._path}: {os.strerror(error.errno or 0)}") from error
        if got != length:
            if nowait:
                raise block_device.WouldBlock
            raise block_device.MediumError(
                lba + got // self.block_size, False, f"{self._path} ends before the block's slot"
            )

    # -- writing

    def put(self, batch: Batch, first: int, count: int, buffers: block_device.Buffers | None) -> None:
        """Store `count` blocks from block `first` on and claim them for `batch`; `buffers` None stands for zeroes.

        Waits for commits of others that touch a block of the range, having first committed what `batch` holds.
        Raises BlockWritten, SpaceExhausted, MediumError, having stored nothing of this range; `batch` is as it was.
        """
        chunk, start = divmod(first, self.blocks_per_chunk)
        pieces = [(chunk, start, count)] if start + count <= self.blocks_per_chunk else list(self._pieces(first, count))
        masks = [(chunk, ((1 << blocks) - 1) << start) for chunk, start, blocks in pieces]
        while (slots := self._claim(masks, first, wait=not batch.claims)) is None:
            self.commit(batch)
        try:
            checksums = self._store(pieces, masks, slots, buffers)
        except BaseException as error:
            with self._changed:
                self._release(masks)
                self._changed.notify_all()
            if isinstance(error, OSError):
                raise self._write_error(error, first) from error
            raise
        batch.claims.extend(
            (chunk, slot, mask, checksum) for (chunk, mask), slot, checksum in zip(masks, slots, checksums, strict=True)
        )

    def commit(self, batch: Batch) -> None:
        """Return when all of the batch is written (see the module's docstring); `batch` is empty then, to be used again.
        Raises MediumError, with nothing of the batch written."""
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

    def flush(self) -> None:
        """Make all committed writes durable.  Raises MediumError."""
        if self._synced:
            return  # they are
        self._refuse_if_broken(0)
        try:
            self._sync_data()
            self._sync_map()
        except OSError as error:
            raise self._break(error, 0) from error

    def _pieces(self, first: int, count: int) -> Iterator[Piece]:
        per_chunk = self.blocks_per_chunk
        end = first + count
        while first < end:
            chunk, start = divmod(first, per_chunk)
            blocks = min(per_chunk - start, end - first)
            yield chunk, start, blocks
            first += blocks

    def _claim(self, masks: list[tuple[int, int]], first: int, wait: bool) -> list[int] | None:
        """Make the blocks pending and return their chunks' slots; None if others must be waited for and `wait` forbids it."""
        pending = self._pending
        map_ = self._map
        with self._changed:
            while True:
                self._refuse_if_broken(first)
                if not any(pending.get(chunk, 0) & mask for chunk, mask in masks):
                    break
                if not wait:
                    return None
                self._changed.wait()
            for chunk, mask in masks:
                if written := map_.written(chunk) & mask:
                    raise block_device.BlockWritten(chunk * self.blocks_per_chunk + _lowest(written))
            slots = []
            for chunk, mask in masks:
                pending[chunk] = pending.get(chunk, 0) | mask
                slot = map_.slot(chunk) or self._fresh.get(chunk, 0)
                if not slot:
                    if self._free:
                        slot = self._free.pop()
                    else:
                        slot = self._next
                        self._next += 1
                    self._fresh[chunk] = slot
                slots.append(slot)
            return slots

    def _release(self, masks: Iterable[tuple[int, int]]) -> None:
        """End claims (lock held); slots that nothing was published in are free again."""
        pending = self._pending
        for chunk, mask in masks:
            if rest := pending[chunk] & ~mask:
                pending[chunk] = rest
                continue
            del pending[chunk]
            slot = self._fresh.pop(chunk, 0)
            if slot and not self._map.slot(chunk):
                self._free.append(slot)

    def _store(
        self, pieces: list[Piece], masks: list[tuple[int, int]], slots: list[int], buffers: block_device.Buffers | None
    ) -> list[int]:
        """Write the data of claimed blocks; the checksums of the chunks that are covered whole, 0 for the others."""
        map_ = self._map
        for chunk, _ in masks:
            map_.reserve(chunk)
        if len(pieces) == 1:
            _, start, blocks = pieces[0]
            length = blocks * self.block_size
            data = buffers if buffers is not None else [self._zeroes[:length]]
            self._write(data, slots[0] * self.chunk_size + start * self.block_size, length)
            return [_checksum(data) if masks[0][1] == map_.full_mask(masks[0][0]) else 0]
        checksums = []
        run: list[memoryview] = []  # data whose places in the chunk file follow one another, from run_place on
        run_place = run_length = done = 0
        for (chunk, start, blocks), (_, mask), slot in zip(pieces, masks, slots, strict=True):
            place = slot * self.chunk_size + start * self.block_size
            length = blocks * self.block_size
            data = sliced(buffers, done, length) if buffers is not None else [self._zeroes[:length]]
            checksums.append(_checksum(data) if mask == map_.full_mask(chunk) else 0)
            if place != run_place + run_length:
                self._write(run, run_place, run_length)
                run, run_place, run_length = [], place, 0
            run += data
            run_length += length
            done += length
        self._write(run, run_place, run_length)
        return checksums

    def _write(self, data: block_device.Buffers, place: int, length: int) -> None:
        if length:
            storage_io.write_all(self._io, self._fd, data, place, length)

    def _commit_unsynced(self, batch: Batch) -> None:
        with self._changed:
            for chunk, _, _, _ in batch.claims:
                if self._map.is_stale(chunk):
                    self._map.clean(chunk)
            partial = self._publish(batch)
            self._end([batch])
            self.syncs.commits += 1
            self.syncs.batches += 1
            self._changed.notify_all()
        self._record_checksums(partial)

    def _commit_synced(self, group: list[Batch]) -> None:
        """Steps 2 to 5; the only thread that stores into the map."""
        map_ = self._map
        if self._broken:
            raise OSError(errno.EIO, self._broken)
        self._sync_data()
        stale = {claim[0] for batch in group for claim in batch.claims if map_.is_stale(claim[0])}
        if stale:
            for chunk in stale:
                map_.clean(chunk)
            self._sync_map()
        partial: list[int] = []
        for batch in group:
            with self._changed:  # `written_bytes` counts under it
                partial += self._publish(batch)
        self._record_checksums(partial)
        try:
            self._sync_map()
        except OSError:
            with self._changed:
                for batch in group:
                    self._retract(batch)
            raise
        self.syncs.commits += 1
        self.syncs.batches += len(group)

    def _publish(self, batch: Batch) -> list[int]:
        """Step 4; returns the chunks that are full now but have no checksum."""
        map_ = self._map
        partial = []
        for chunk, slot, mask, checksum in batch.claims:
            bits = map_.publish(chunk, slot, mask, checksum)
            if not checksum and bits == map_.full_mask(chunk):
                partial.append(chunk)
            if chunk >> 9 < self._counted:
                self._blocks += mask.bit_count()
        return partial

    def _retract(self, batch: Batch) -> None:
        """Take a published batch back (lock held)."""
        for chunk, _, mask, _ in batch.claims:
            self._map.retract(chunk, mask)
            if chunk >> 9 < self._counted:
                self._blocks -= mask.bit_count()

    def _record_checksums(self, chunks: Iterable[int]) -> None:
        """Read full chunks back for their checksum.  One that cannot be read stays without: it is written all the same."""
        for chunk in chunks:
            try:
                self._map.record_checksum(chunk, self._checksum_of(chunk))
            except OSError:
                continue

    def _checksum_of(self, chunk: int) -> int:
        """The checksum of a full chunk as it is in the file.  Raises OSError."""
        length = self._chunk_length(chunk)
        data = memoryview(bytearray(length))
        place = self._map.slot(chunk) * self.chunk_size
        if storage_io.read_all(self._io, self._fd, [data], place, length) != length:
            raise OSError(errno.ENODATA, "the chunk file ends before the slot")
        return _checksum([data])

    def _chunk_length(self, chunk: int) -> int:
        return min(self.chunk_size, self.size - chunk * self.chunk_size)

    def _end(self, group: list[Batch]) -> None:
        for batch in group:
            self._release((chunk, mask) for chunk, _, mask, _ in batch.claims)

    def _failed(self, error: BaseException, batch: Batch) -> Exception:
        """What the writer of `batch` is told, whose group's commit raised `error`."""
        chunk, _, mask, _ = batch.claims[0]
        lba = chunk * self.blocks_per_chunk + _lowest(mask)
        return self._break(error, lba)

    def _sync_data(self) -> None:
        self.syncs.data += 1
        self._io.fdatasync(self._fd)

    def _sync_map(self) -> None:
        self.syncs.map += 1
        self._map.sync()

    def _break(self, error: BaseException, lba: int) -> block_device.MediumError:
        """Take no more writes."""
        if not self._broken:
            self._broken = os.strerror(error.errno or 0) if isinstance(error, OSError) else repr(error)
        return block_device.MediumError(
            lba, True, f"{self._path}: syncing failed ({self._broken}); no more writes are taken"
        )

    def _refuse_if_broken(self, lba: int) -> None:
        if self._broken:
            why = f"{self._path}: an earlier sync failed ({self._broken}); no more writes are taken"
            raise block_device.MediumError(lba, True, why)

    def _write_error(self, error: OSError, lba: int) -> block_device.BlockDeviceError:
        if error.errno in storage_io.NO_SPACE:
            return block_device.SpaceExhausted(lba)
        return block_device.MediumError(lba, True, f"{self._path}: {os.strerror(error.errno or 0)}")

    # -- what is there

    def extents(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """(first block, blocks, written?) over the range, neighbours merged; untouched regions cost nothing."""
        at = first
        for begin, end in self._written_runs(first, first + count):
            if begin > at:
                yield at, begin - at, False
            yield begin, end - begin, True
            at = end
        if first + count > at:
            yield at, first + count - at, False

    def _written_runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """[begin, end) of written blocks, in order, neighbours merged."""
        per_chunk = self.blocks_per_chunk
        run_begin = run_end = first
        for chunk, bits in self.chunks_written(first // per_chunk, -(-end // per_chunk)):
            base = chunk * per_chunk
            if base < first:
                bits &= -1 << (first - base)
            if base + per_chunk > end:
                bits &= (1 << (end - base)) - 1
            while bits:
                low = _lowest(bits)
                length = _lowest(~(bits >> low))
                if base + low != run_end:
                    if run_end > run_begin:
                        yield run_begin, run_end
                    run_begin = base + low
                run_end = base + low + length
                bits &= -1 << (low + length)
        if run_end > run_begin:
            yield run_begin, run_end

    def chunks_written(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """(chunk, mask of its written blocks) for chunks of [first, end) that have any, in order.  Regions never written
        to are skipped without being read."""
        map_ = self._map
        page = first // chunk_map.SLOTS_PER_PAGE
        while (found := map_.next_page(page)) is not None:
            base = found * chunk_map.SLOTS_PER_PAGE
            if base >= end:
                return
            for index, slot in enumerate(map_.page_slots(found), base):
                if slot and first <= index < end and (bits := map_.bits(index)):
                    yield index, bits
            page = found + 1

    def used_bytes(self) -> int:
        """What the store takes on disk: the chunk file and the map."""
        return os.fstat(self._fd).st_blocks * 512 + self._map.disk_bytes()

    def written_bytes(self) -> int:
        """How much of the LUN is written.  The first call counts what was there at open."""
        map_ = self._map
        while (page := map_.next_page(self._counted)) is not None:
            with self._changed:  # for a page at a time, so that writers need not wait for long
                if page >= self._counted:
                    base = page * chunk_map.SLOTS_PER_PAGE
                    slots = enumerate(map_.page_slots(page), base)
                    self._blocks += sum(map_.bits(chunk).bit_count() for chunk, slot in slots if slot)
                    self._counted = page + 1
        return self._blocks * self.block_size

    def verify(self, first: int = 0, end: int | None = None) -> Iterator[ChunkReport]:
        """Read every chunk that has data, of chunks [first, end), and compare; one report per chunk, in order."""
        map_ = self._map
        for chunk, bits in self.chunks_written(first, map_.chunks if end is None else end):
            offset, length = chunk * self.chunk_size, self._chunk_length(chunk)
            expected = map_.checksum(chunk)
            if not expected or bits != map_.full_mask(chunk):
                yield ChunkReport(offset, length, Verdict.UNVERIFIABLE)
                continue
            try:
                found = self._checksum_of(chunk)
            except OSError as error:
                yield ChunkReport(offset, length, Verdict.DAMAGED, f"cannot be read: {error.strerror}")
                continue
            if found == expected:
                yield ChunkReport(offset, length, Verdict.GOOD)
            else:
                why = f"CRC32C is {found:#010x}, was {expected:#010x} when written"
                yield ChunkReport(offset, length, Verdict.DAMAGED, why)

    def close(self) -> None:
        """Flush and close.  No call may be running, none may follow.  Raises MediumError, closed all the same."""
        try:
            if self._broken is None:
                self.flush()
        finally:
            self._map.close()
            self._io.close(self._fd)


def files(path: Path) -> tuple[Path, Path]:
    """The map and the chunk file of the store `path`."""
    return path.with_name(path.name + ".map"), path.with_name(path.name + ".chunks")


def sliced(buffers: block_device.Buffers, start: int, length: int) -> list[memoryview]:
    """The part of a scatter list from byte `start` on, `length` bytes long."""
    if len(buffers) == 1:
        return [buffers[0][start : start + length]]
    parts = []
    for buffer in buffers:
        if start < len(buffer):
            part = buffer[start : start + length]
            parts.append(part)
            length -= len(part)
            start = 0
            if not length:
                break
        else:
            start -= len(buffer)
    return parts


def _lowest(mask: int) -> int:
    """The number of the lowest bit set."""
    return (mask & -mask).bit_length() - 1


def _checksum(buffers: block_device.Buffers) -> int:
    """CRC32C of a scatter list; 0 means "none" in the map, so it becomes 1."""
    value = 0
    for buffer in buffers:
        value = crc32c.crc32c(buffer, value)
    return value or 1


def _store_error(path: Path, error: OSError) -> block_device.BlockDeviceError:
    if error.errno in storage_io.NO_SPACE:
        return block_device.SpaceExhausted(0)
    return chunk_map.StoreUnavailable(path, os.strerror(error.errno or 0))


def _check_header(io: storage_io.StorageIO, fd: int, path: Path, superblock: chunk_map.Superblock) -> None:
    """Raises StoreDamaged if this is not the chunk file that belongs to the map; OSError."""
    data = memoryview(bytearray(_HEADER.size + _CRC.size))
    if storage_io.read_all(io, fd, [data], 0, len(data)) != len(data):
        raise chunk_map.StoreDamaged(path, "header", "the file ends within it", _RESTORE)
    magic, version, snapshot, chunk_size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise chunk_map.StoreDamaged(path, "magic", f"{magic!r} is not {_MAGIC!r}: not a chunk file", _RESTORE)
    if version != _VERSION:
        raise chunk_map.StoreDamaged(
            path,
            "format version",
            f"{version} is not supported, only {_VERSION} is",
            "use the version of wolun that wrote it",
        )
    if _CRC.unpack_from(data, _HEADER.size)[0] != crc32c.crc32c(data[: _HEADER.size]):
        raise chunk_map.StoreDamaged(path, "header CRC", "does not fit the content", _RESTORE)
    if snapshot != superblock.snapshot.bytes:
        found = f"{uuid.UUID(bytes=snapshot)}, the map belongs to {superblock.snapshot}"
        raise chunk_map.StoreDamaged(path, "snapshot", found, "put the files that belong together side by side")
    if chunk_size != superblock.chunk_size:
        raise chunk_map.StoreDamaged(
            path, "chunk size", f"{chunk_size}, the map says {superblock.chunk_size}", _RESTORE
        )


def _check_slots(opened: chunk_map.ChunkMap, chunks_length: int) -> None:
    """Raises StoreDamaged if a slot lies beyond the chunk file or two chunks share one, as far as that is cheap to know."""
    pages = len(opened.present)
    if pages > CHECKED_AT_OPEN:
        return
    seen = pyroaring.BitMap64()
    count = 0
    limit = -(-chunks_length // opened.superblock.chunk_size)
    page = opened.next_page(0)
    while page is not None:
        slots = [slot for slot in opened.page_slots(page) if slot]
        if slots and max(slots) >= limit:
            chunk = page * chunk_map.SLOTS_PER_PAGE + opened.page_slots(page).index(max(slots))
            found = f"chunk {chunk} is in slot {max(slots)}, the chunk file ends before slot {limit}"
            raise chunk_map.StoreDamaged(opened.path, "slots", found, _RESTORE)
        seen.update(slots)
        count += len(slots)
        if len(seen) != count:
            found = f"two chunks share a slot (within or before chunk {(page + 1) * chunk_map.SLOTS_PER_PAGE - 1})"
            raise chunk_map.StoreDamaged(opened.path, "slots", found, _RESTORE)
        page = opened.next_page(page + 1)
