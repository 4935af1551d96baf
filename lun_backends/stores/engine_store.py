# SPDX-License-Identifier: Apache-2.0
"""A write-once store in an engine that other hosts share (`engine`): one value for each chunk, at most.

A put covers whole chunks.  Each chunk is created exclusively, so the engine decides who was first, and what `put_many`
returned for is as durable as the engine makes it, whatever `durability` says.  A chunk that can be read is durable, so no
range is ever on its way.

A put of several chunks is not one step.  If another writer has some of them, the others are stored and stay stored,
although the put is refused.  For copy-on-write that is harmless: what is stored is a true pre-image.  Initiators cannot
write here, so nobody is told otherwise.

Nothing of what is stored is kept in memory, except the content of the chunks that were read last.

| mark of a snapshot | content                                  | created                                        |
| ------------------ | ---------------------------------------- | ---------------------------------------------- |
| `created`          | the geometry, JSON                       | before the first chunk                         |
| `invalid`          | the reason                               | when the snapshot is invalidated               |

The volume's own mark `volume` says that the place is the right one.  It is created with the volume.  Without it, a
missing snapshot counts as unreachable, never as lost: somebody may have changed the settings.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import threading
import uuid
from collections.abc import Container, Iterable, Iterator

import pyroaring

from lun_backends import block_device
from lun_backends.block_device import Buffers
from lun_backends.damage import Damage, OnDamage
from lun_backends.durability import Durability
from lun_backends.stores import chunk_file, contract, engine
from lun_backends.stores.space import Space

_CREATED, _INVALID, _VOLUME = "created", "invalid", "volume"
_FEW = 64  # chunks that are asked for one by one; more are listed
_CACHED = 16 << 20  # bytes of chunks that are kept after a read, for all snapshots of a volume
_REMEDY = "restore it from a copy of the engine's data, or delete the snapshot"


class Cache:
    """The chunks of a volume's snapshots that were read last, and fitted their checksums.  A written chunk never changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: collections.OrderedDict[tuple[int, int], bytes] = collections.OrderedDict()
        self._bytes = 0

    def get(self, snapshot: uuid.UUID, chunk: int) -> bytes | None:
        with self._lock:
            data = self._chunks.get((snapshot.int, chunk))
            if data is not None:
                self._chunks.move_to_end((snapshot.int, chunk))
            return data

    def put(self, snapshot: uuid.UUID, chunk: int, data: bytes) -> None:
        with self._lock:
            if (snapshot.int, chunk) not in self._chunks:
                self._chunks[snapshot.int, chunk] = data
                self._bytes += len(data)
            while self._bytes > _CACHED:
                self._bytes -= len(self._chunks.popitem(last=False)[1])

    def drop(self, snapshot: uuid.UUID) -> None:
        """Forget the chunks of a snapshot."""
        with self._lock:
            for key in [key for key in self._chunks if key[0] == snapshot.int]:
                self._bytes -= len(self._chunks.pop(key))


class EngineStore:
    """An open store in an engine; see `contract.Store`."""

    local = False

    def __init__(
        self,
        geometry: contract.Geometry,
        of: engine.Engine,
        cache: Cache,
        durability: Durability,
        space: Space,
        *,
        count: bool,
    ) -> None:
        """Open the store; with `count`, count what it has.  Raises EngineError."""
        self.snapshot, self.volume = geometry.snapshot, geometry.volume
        self.size, self.block_size, self.chunk_size = geometry.size, geometry.block_size, geometry.chunk_size
        self.grain = self.unit = geometry.chunk_size
        self.durability = durability
        self.syncs = contract.Syncs()
        self.engine = of
        self.chunks = -(-self.size // self.chunk_size)
        self.per_chunk = self.chunk_size // self.block_size
        self._space = space
        self._changed = threading.Condition(threading.Lock())
        self._pending: set[int] = set()  # chunks that this process is putting
        invalid = of.mark(self.snapshot, _INVALID)
        self._reason = None if invalid is None else invalid.decode(errors="replace") or "it was invalidated"
        self._last = False  # whether the last chunk, which may be short, is counted
        self._count = 0
        if self._reason is None and count:
            self._count = of.count(self.snapshot)
            self._last = self._count > 0 and of.has(self.snapshot, self.chunks - 1).result()
        space.add(self.allocated_bytes)
        self._reader = Reader(self, cache)

    # -- state

    @property
    def reader(self) -> Reader:
        return self._reader

    @property
    def marked(self) -> pyroaring.BitMap64:
        return contract.NO_MARKS

    def is_marked(self, chunk: int) -> bool:
        return False

    @property
    def reason(self) -> str | None:
        return self._reason

    @property
    def broken(self) -> bool:
        return False

    @property
    def allocated_bytes(self) -> int:
        return self._count * self.chunk_size

    def invalidate(self, reason: str) -> None:
        try:
            if not self.engine.set_mark(self.snapshot, _INVALID, reason.encode()):
                reason = (self.engine.mark(self.snapshot, _INVALID) or reason.encode()).decode(errors="replace")
        except engine.EngineError as error:
            raise self._error(0, error, writing=True) from error
        self._reason = reason

    def discard(self) -> None:
        try:
            self.engine.sweep(self.snapshot)
        except engine.EngineError as error:
            raise self._error(0, error, writing=True) from error
        with self._changed:
            self._space.add(-self.allocated_bytes)
            self._count, self._last = 0, False
        self._reader.drop()

    # -- writing

    def put_many(self, puts: Iterable[contract.Put]) -> list[block_device.BlockWritten | None]:
        results: list[block_device.BlockWritten | None] = []
        under_way: collections.deque[tuple[int, int, engine.Pending[bool]]] = collections.deque()
        failed: list[tuple[int, engine.EngineError]] = []

        def end(most: int) -> None:
            """Wait until at most `most` calls are under way."""
            while len(under_way) > most:
                index, chunk, call = under_way.popleft()
                stored = False
                try:
                    stored = call.result()
                    if not stored:
                        lba = chunk * self.per_chunk
                        known = results[index]
                        results[index] = block_device.BlockWritten(min(lba, known.lba) if known else lba)
                except engine.EngineError as error:
                    failed.append((chunk, error))
                finally:
                    self._release(chunk, stored=stored)

        try:
            for put in puts:
                self._check(put)
                index, data = len(results), b""
                results.append(None)
                if put.blocks:
                    data = bytes(put.blocks * self.block_size) if put.buffers is None else b"".join(put.buffers)
                for at in range(0, len(data), self.chunk_size):
                    chunk = put.first // self.per_chunk + at // self.chunk_size
                    end(engine.IN_FLIGHT - 1)
                    self._claim(chunk, lambda: end(0))
                    piece = data[at : at + self.chunk_size]
                    under_way.append(
                        (
                            index,
                            chunk,
                            self.engine.put(self.snapshot, chunk, piece, _checksum(piece, self.grain, put.origin)),
                        )
                    )
        finally:
            end(0)
            self.syncs.commits += 1
        if failed:
            chunk, error = failed[0]
            raise self._error(chunk * self.per_chunk, error, writing=True) from error
        return results

    def _check(self, put: contract.Put) -> None:
        end = (put.first + put.blocks) * self.block_size
        if put.first % self.per_chunk or (end % self.chunk_size and end != self.size):
            raise block_device.NotSupported(f"writes of parts of {self.chunk_size} bytes to {self.engine.name}")
        if put.mark:
            raise block_device.NotSupported(f"writes of initiators to {self.engine.name}")

    def _claim(self, chunk: int, end_own: object) -> None:
        """Wait until no other call of this process is putting the chunk, and take its space.  Raises SpaceExhausted."""
        assert callable(end_own)
        while True:
            with self._changed:
                if chunk not in self._pending:
                    if not self._space.take(self.chunk_size):
                        break
                    self._pending.add(chunk)
                    return
            end_own()  # it may be one of our own, and others may wait for those
            with self._changed:
                while chunk in self._pending:
                    self._changed.wait()
        end_own()
        if self._has(chunk):
            with self._changed:
                self._space.add(self.chunk_size)  # the refusal, which comes for certain, gives it back
                self._pending.add(chunk)
            return
        raise block_device.SpaceExhausted(chunk * self.per_chunk)

    def _has(self, chunk: int) -> bool:
        try:
            return self.engine.has(self.snapshot, chunk).result()
        except engine.EngineError as error:
            raise self._error(chunk * self.per_chunk, error, writing=True) from error

    def _release(self, chunk: int, *, stored: bool) -> None:
        with self._changed:
            self._pending.discard(chunk)
            if stored:
                self._count += 1
                self._last |= chunk == self.chunks - 1
            else:
                self._space.add(-self.chunk_size)
            self._changed.notify_all()

    def flush(self) -> None:
        """Return: whatever was put is durable."""

    def set_durability(self, durability: Durability) -> None:
        self.durability = durability

    # -- contents

    def extents(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        at, last = first, first + count
        for begin, end in self._runs(first, last):
            if begin > at:
                yield at, begin - at, False
            yield begin, end - begin, True
            at = end
        if last > at:
            yield at, last - at, False

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of written blocks of [first, last), adjacent ones merged.  Raises MediumError."""
        begin = end = first
        chunks = self._numbers(first // self.per_chunk, -(-last // self.per_chunk))
        try:
            for chunk in chunks:
                low, high = max(first, chunk * self.per_chunk), min(last, (chunk + 1) * self.per_chunk)
                if low > end and end > begin:
                    yield begin, end
                if low > end:
                    begin = low
                end = high
        except engine.EngineError as error:
            raise self._error(end, error, writing=False) from error
        if end > begin:
            yield begin, end

    def _numbers(self, first: int, end: int) -> Iterator[int]:
        """Yield the numbers of the chunks of [first, end) that there are."""
        if end - first > _FEW:
            yield from self.engine.chunks(self.snapshot, first, end)
            return
        asked = [(chunk, self.engine.has(self.snapshot, chunk)) for chunk in range(first, end)]
        for chunk, call in asked:
            if call.result():
                yield chunk

    def on_their_way(self) -> tuple[tuple[int, int], ...]:
        return ()

    def used_bytes(self) -> int:
        return self.allocated_bytes

    def written_bytes(self) -> int:
        return self.allocated_bytes - (self._last and self.chunks * self.chunk_size - self.size)

    def verify(self, passed_over: pyroaring.BitMap = contract.NOTHING) -> Iterator[contract.ChunkReport]:
        under_way: collections.deque[tuple[int, engine.Pending[engine.Chunk | None]]] = collections.deque()
        try:
            for chunk in self.engine.chunks(self.snapshot, 0, self.chunks):
                if chunk not in passed_over:
                    under_way.append((chunk, self.engine.get(self.snapshot, chunk)))
                if len(under_way) >= engine.IN_FLIGHT // 2:
                    yield self._report(*under_way.popleft())
            while under_way:
                yield self._report(*under_way.popleft())
        except engine.EngineError as error:
            raise self._error(0, error, writing=False) from error

    def _report(self, chunk: int, call: engine.Pending[engine.Chunk | None]) -> contract.ChunkReport:
        offset, length = chunk * self.chunk_size, self.length(chunk)
        try:
            found = call.result()
            reason = "it is gone" if found is None else fault(found, length)
        except engine.EngineError as error:
            reason = f"it cannot be read: {error}"
        self._reader.found(chunk, damaged=bool(reason))
        verdict = contract.Verdict.DAMAGED if reason else contract.Verdict.GOOD
        return contract.ChunkReport(offset, length, verdict, reason)

    def check_headers(self) -> list[str]:
        try:
            mark = self.engine.mark(self.snapshot, _CREATED)
        except engine.EngineError as error:
            return [f"{self.engine.name}: the mark of the snapshot cannot be read: {error}"]
        if mark is None:
            return [f"{self.engine.name}: the mark of the snapshot is gone"]
        return []

    def length(self, chunk: int) -> int:
        """Return the bytes of a chunk; the last one may be shorter."""
        return min(self.chunk_size, self.size - chunk * self.chunk_size)

    def _error(self, lba: int, error: engine.EngineError, *, writing: bool) -> block_device.BlockDeviceError:
        if isinstance(error, engine.EngineFull):
            return block_device.SpaceExhausted(lba)
        return block_device.MediumError(lba, writing, f"{self.engine.name}: {error}")

    def error(self, lba: int, error: engine.EngineError) -> block_device.MediumError:
        """Return the error of a read at `lba`."""
        return block_device.MediumError(lba, False, f"{self.engine.name}: {error}")

    def close(self) -> None:
        self._reader.drop()
        del self._reader  # it refers to the store


class Reader:
    """The reader of a store in an engine; see `contract.Reader`.  It reads and compares whole chunks."""

    def __init__(self, store: EngineStore, cache: Cache) -> None:
        self.verify = True
        self.damaged = pyroaring.BitMap64()
        self._store = store
        self._cache = cache

    def read(self, first: int, count: int, buffers: Buffers, *, now: bool = False) -> bool:
        if now:
            return False
        self._read(first, count, buffers, None, always=False)
        return True

    def read_checked(self, first: int, count: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        self._read(first, count, buffers, on_damage, always=True)

    def _read(self, first: int, count: int, buffers: Buffers, on_damage: OnDamage | None, *, always: bool) -> None:
        store = self._store
        for begin in range(first // store.per_chunk, -(-(first + count) // store.per_chunk), engine.IN_FLIGHT):
            chunks = range(begin, min(begin + engine.IN_FLIGHT, -(-(first + count) // store.per_chunk)))
            cached = {chunk: None if always else self._cache.get(store.snapshot, chunk) for chunk in chunks}
            calls = {chunk: store.engine.get(store.snapshot, chunk) for chunk in chunks if cached[chunk] is None}
            for chunk in chunks:
                low = max(first, chunk * store.per_chunk)
                high = min(first + count, (chunk + 1) * store.per_chunk)
                data = cached[chunk]
                if data is None:
                    data = self._data(chunk, low, high - low, calls[chunk], on_damage, always=always)
                at = (low - chunk * store.per_chunk) * store.block_size
                length = (high - low) * store.block_size
                part = block_device.slice_buffers(buffers, (low - first) * store.block_size, length)
                _fill(part, memoryview(data)[at : at + length])

    def _data(
        self,
        chunk: int,
        lba: int,
        blocks: int,
        call: engine.Pending[engine.Chunk | None],
        on_damage: OnDamage | None,
        *,
        always: bool,
    ) -> bytes:
        """Return the data of a chunk, of which `blocks` blocks from `lba` on are asked for."""
        store = self._store
        whole = store.length(chunk)
        offset, length = lba * store.block_size, blocks * store.block_size
        try:
            found = call.result()
        except engine.EngineError as error:
            if on_damage is None:
                raise store.error(lba, error) from error
            on_damage(Damage(offset, length, f"{store.engine.name}: {error}", store.snapshot))
            return bytes(whole)
        if found is None:
            raise block_device.BlankBlock(lba)
        reason = fault(found, whole) if always or self.verify or len(found[0]) != whole else ""
        if not reason:
            self._cache.put(store.snapshot, chunk, found[0])
            if self.damaged:
                self.found(chunk, damaged=False)
            return found[0]
        self.found(chunk, damaged=True)
        damage = Damage(offset, length, reason, store.snapshot)
        if on_damage is None:
            raise block_device.DamagedBlocks(lba, False, f"{store.engine.name}: {reason}", damage)
        on_damage(damage)
        return found[0][:whole].ljust(whole, b"\0")

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
        store = self._store
        chunk = first // store.per_chunk
        length, at = count * store.block_size, first % store.per_chunk * store.block_size
        offset = first * store.block_size
        fills = (
            at == 0 and offset % grain == 0 and offset + length in (size, (chunk + 1) * store.chunk_size, store.size)
        )

        def origin(checksum: int, *, damaged: bool = False) -> contract.Origin:
            return contract.Origin(store.grain, (checksum,), damaged)

        try:
            found = store.engine.get(store.snapshot, chunk).result()
        except engine.EngineError as error:
            if not (accept_loss and fills):
                raise store.error(first, error) from error
            _fill(buffers, memoryview(bytes(length)))
            on_damage(Damage(offset, length, f"{store.engine.name}: {error}", store.snapshot))
            return origin(chunk_file.checksum(buffers) ^ 1 or 2, damaged=True)
        if found is None:
            raise block_device.BlankBlock(first)
        data, checksum = found
        whole = store.length(chunk)
        reason = fault(found, whole)
        _fill(buffers, memoryview(data[:whole].ljust(whole, b"\0"))[at : at + length])
        if reason:
            self.found(chunk, damaged=True)
            damage = Damage(offset, length, reason, store.snapshot)
            if not fills:
                raise block_device.DamagedBlocks(first, False, f"{store.engine.name}: {reason}", damage)
            on_damage(damage)
            moved = chunk_file.checksum(buffers)
            return origin(checksum if checksum not in (0, moved) else moved ^ 1 or 2, damaged=True)
        return origin(checksum if length == whole else contract.COMPUTE)

    def found(self, chunk: int, *, damaged: bool) -> None:
        if damaged:
            self.damaged.add(chunk)
        else:
            self.damaged.discard(chunk)

    def drop(self) -> None:
        """Forget what is cached."""
        self._cache.drop(self._store.snapshot)


class EngineStores:
    """The stores of a volume in an engine; see `contract.Stores`."""

    def __init__(self, volume: uuid.UUID, of: engine.Engine, *, counts: bool = True) -> None:
        """With `counts` False nothing is counted: other hosts put chunks, too, and no limit is kept."""
        self.volume = volume
        self._counts = counts
        self.engine = of
        self._cache = Cache()

    def check(self, *, new: bool) -> None:
        with self._reached():
            self.engine.check()
            if new:
                self.engine.set_mark(None, _VOLUME, str(self.volume).encode())
            elif self.engine.mark(None, _VOLUME) is None:
                reason = f"there is nothing of the volume {self.volume} at this place"
                raise contract.StoreUnfit(self.engine.name, reason, "correct the settings of `store`")

    def create(self, geometry: contract.Geometry, *, durability: Durability, space: Space) -> EngineStore:
        if not self.make(geometry):
            raise contract.StoreUnavailable(self._place(geometry.snapshot), "it exists already")
        with self._reached():
            return EngineStore(geometry, self.engine, self._cache, durability, space, count=False)

    def make(self, geometry: contract.Geometry) -> bool:
        """Make an empty store, and open it not; return False if it exists.  Raises StoreUnavailable, SpaceExhausted."""
        fields = {
            "snapshot": str(geometry.snapshot),
            "volume": str(geometry.volume),
            **{key: getattr(geometry, key) for key in ("size", "block_size", "chunk_size")},
        }
        with self._reached():
            return self.engine.set_mark(geometry.snapshot, _CREATED, json.dumps(fields).encode())

    def open(self, snapshot: uuid.UUID, *, durability: Durability, space: Space) -> EngineStore:
        place = self._place(snapshot)
        with self._reached():
            mark = self.engine.mark(snapshot, _CREATED)
            if mark is None and self.engine.mark(None, _VOLUME) is None:
                raise contract.StoreUnavailable(place, "there is nothing of the volume at this place")
            if mark is None:
                raise contract.StoreMissing(place)
            try:
                geometry = contract.Geometry(**json.loads(mark))
                geometry = dataclasses.replace(
                    geometry, snapshot=uuid.UUID(str(geometry.snapshot)), volume=uuid.UUID(str(geometry.volume))
                )
            except (ValueError, TypeError) as error:
                raise contract.StoreDamaged(place, "geometry", str(error), _REMEDY) from error
            if geometry.snapshot != snapshot:
                fault = f"it is of snapshot {geometry.snapshot}"
                raise contract.StoreDamaged(place, "geometry", fault, _REMEDY)
            return EngineStore(geometry, self.engine, self._cache, durability, space, count=self._counts)

    def remove(self, snapshot: uuid.UUID) -> None:
        with self._reached():
            self.engine.sweep(snapshot)
            self.engine.forget(snapshot)

    def remove_leftovers(self, named: Container[uuid.UUID]) -> None:
        with contextlib.suppress(engine.EngineError):
            for snapshot in self.engine.snapshots():
                if snapshot not in named:
                    self.engine.sweep(snapshot)
                    self.engine.forget(snapshot)

    def clear(self) -> None:
        with self._reached():
            for _ in range(2):  # an engine may keep a deleted snapshot in mind, to sweep it once more
                for snapshot in self.engine.snapshots():
                    self.engine.sweep(snapshot)
                    self.engine.forget(snapshot)
            self.engine.forget(None)

    def close(self) -> None:
        self.engine.close()

    def sync(self, snapshot: uuid.UUID) -> None:
        """Return: whatever was put is durable."""

    def _place(self, snapshot: uuid.UUID) -> str:
        return f"{self.engine.name}, snapshot {snapshot}"

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except engine.EngineFull as error:
            raise block_device.SpaceExhausted(0) from error
        except engine.EngineError as error:
            raise contract.StoreUnavailable(self.engine.name, str(error)) from error


def fault(found: engine.Chunk, length: int) -> str:
    """Return what is wrong with a chunk of `length` bytes; empty if it is as it was put."""
    data, expected = found
    if len(data) != length:
        return f"it has {len(data)} bytes, not {length}"
    actual = chunk_file.checksum([memoryview(data)])
    if actual != expected:
        return f"CRC32C is {actual:#010x}, was {expected:#010x} when written"
    return ""


def _checksum(data: bytes, grain: int, origin: contract.Origin | None) -> int:
    """Return the checksum to store: the one that came with moved data, or else a new one."""
    computed = chunk_file.checksum([memoryview(data)])
    if origin is None:
        return computed
    if origin.grain == grain and origin.checksums[0] > 0:
        return origin.checksums[0]
    return (computed ^ 1 or 2) if origin.damaged else computed


def _fill(buffers: Buffers, data: memoryview) -> None:
    done = 0
    for buffer in buffers:
        buffer[:] = data[done : done + len(buffer)]
        done += len(buffer)
