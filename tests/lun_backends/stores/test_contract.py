# SPDX-License-Identifier: Apache-2.0
"""The contract of a write-once store, for each kind: first writes, refusals, reads, states, space, moves, reopening."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.damage import Damage
from lun_backends.durability import Durability
from lun_backends.stores import contract, space
from tests.lun_backends.stores import kinds
from tests.lun_backends.stores.kinds import data, put, put_many, read, written


@pytest.fixture(params=[*kinds.KINDS, *os.environ.get("WOLUN_STORES", "").split()])
def kind(request: pytest.FixtureRequest) -> kinds.Kind:
    return kinds.ALL[request.param]


@pytest.fixture
def stores(kind: kinds.Kind, tmp_path: Path) -> Iterator[contract.Stores]:
    made = kind.stores(tmp_path)
    made.check(new=True)
    yield made
    made.close()


@pytest.fixture
def geometry(kind: kinds.Kind) -> contract.Geometry:
    return kinds.geometry(kind)


@pytest.fixture(params=Durability)
def store(
    stores: contract.Stores, geometry: contract.Geometry, request: pytest.FixtureRequest
) -> Iterator[contract.Store]:
    made = kinds.create(stores, geometry, request.param)
    yield made
    made.close()


def refused(store: contract.Store, offset: int, content: bytes) -> int:
    """Return the block that a refusal names."""
    first, blocks = offset // store.block_size, len(content) // store.block_size
    (result,) = store.put_many([contract.Put(first, blocks, [memoryview(content)])])
    assert result is not None
    return result.lba


def blank(store: contract.Store, offset: int, length: int) -> int:
    """Return the block that a read of blank blocks names."""
    with pytest.raises(block_device.BlankBlock) as caught:
        read(store, offset, length)
    return caught.value.lba


def test_geometry_and_grain_are_as_they_were_asked_for(store: contract.Store, geometry: contract.Geometry) -> None:
    assert (store.snapshot, store.volume, store.size) == (geometry.snapshot, geometry.volume, geometry.size)
    assert (store.block_size, store.chunk_size) == (geometry.block_size, geometry.chunk_size)
    assert store.grain % store.unit == 0
    assert store.unit % store.block_size == 0
    assert store.chunk_size % store.grain == 0


def test_the_first_put_is_stored_and_the_second_refused(store: contract.Store) -> None:
    unit = store.unit
    assert put(store, 3 * unit, data(1, 2 * unit))
    assert refused(store, 3 * unit, data(2, 2 * unit)) == 3 * unit // store.block_size
    assert refused(store, 4 * unit, data(2, unit)) == 4 * unit // store.block_size
    assert read(store, 3 * unit, 2 * unit) == data(1, 2 * unit)
    assert written(store) == [(3 * unit, 2 * unit)]
    assert store.written_bytes() == 2 * unit


def test_a_refused_put_stores_nothing(kind: kinds.Kind, store: contract.Store) -> None:
    chunk = store.chunk_size
    assert put(store, 2 * chunk, data(1, chunk))
    assert put_many(store, [(0, data(2, 4 * chunk)), (4 * chunk, data(3, chunk))]) == [False, True]
    assert read(store, 2 * chunk, chunk) == data(1, chunk)
    want = [(2 * chunk, chunk), (4 * chunk, chunk)] if kind.whole else [(0, 5 * chunk)]
    assert written(store) == want


def test_blank_blocks_are_named(store: contract.Store) -> None:
    unit, block = store.unit, store.block_size
    assert put(store, 0, data(1, 2 * unit))
    assert put(store, 3 * unit, data(1, unit))
    assert blank(store, 0, 4 * unit) == 2 * unit // block
    assert blank(store, 2 * unit + unit // 2, block) == (2 * unit + unit // 2) // block
    assert read(store, block, 2 * unit - block) == data(1, 2 * unit)[block:]


def test_puts_of_one_call_meet_each_other(store: contract.Store) -> None:
    unit = store.unit
    requests = [(0, data(1, 2 * unit)), (unit, data(2, unit)), (2 * unit, data(3, unit)), (5 * unit, b"")]
    assert put_many(store, requests) == [True, False, True, True]
    assert read(store, 0, 3 * unit) == data(1, 2 * unit) + data(3, unit)
    assert written(store) == [(0, 3 * unit)]


def test_buffers_may_be_used_again_for_the_next_put(store: contract.Store) -> None:
    chunk, count = store.chunk_size, store.chunk_size // store.block_size
    buffer = bytearray(chunk)

    def puts() -> Iterator[contract.Put]:
        for number in range(8):
            buffer[:] = data(number, chunk)
            yield contract.Put(number * count, count, [memoryview(buffer)])

    assert list(store.put_many(puts())) == [None] * 8
    for number in range(8):
        assert read(store, number * chunk, chunk) == data(number, chunk)


def test_zeroes_are_data(store: contract.Store) -> None:
    unit, block = store.unit, store.block_size
    assert list(store.put_many([contract.Put(unit // block, 2 * unit // block, None)])) == [None]
    assert put(store, 4 * unit, bytes(unit))
    assert read(store, unit, 2 * unit) == bytes(2 * unit)
    assert written(store) == [(unit, 2 * unit), (4 * unit, unit)]


def test_the_last_unit_may_be_short(kind: kinds.Kind, stores: contract.Stores) -> None:
    geometry = kinds.geometry(kind, 3, cut=1536)
    store = kinds.create(stores, geometry)
    tail = (store.size - 1) // store.unit * store.unit
    assert put(store, tail, data(1, store.size - tail))
    store.close()
    store = kinds.reopen(stores, geometry.snapshot)
    assert written(store) == [(tail, store.size - tail)]
    assert read(store, tail, store.size - tail) == data(1, store.size - tail)
    store.close()


def test_a_part_of_a_unit_is_refused(store: contract.Store) -> None:
    if store.unit == store.block_size:
        assert put(store, store.block_size, data(1, store.block_size))
        return
    with pytest.raises(block_device.NotSupported):
        put(store, store.block_size, data(1, store.block_size))
    assert written(store) == []


def test_the_puts_before_an_error_are_stored(store: contract.Store) -> None:
    chunk, count = store.chunk_size, store.chunk_size // store.block_size

    def puts() -> Iterator[contract.Put]:
        yield contract.Put(0, count, [memoryview(data(1, chunk))])
        raise block_device.SnapshotInvalid("meanwhile")

    with pytest.raises(block_device.SnapshotInvalid):
        store.put_many(puts())
    assert read(store, 0, chunk) == data(1, chunk)


@pytest.mark.parametrize("durability", Durability)
def test_all_is_there_after_reopening(
    stores: contract.Stores, geometry: contract.Geometry, durability: Durability
) -> None:
    store = kinds.create(stores, geometry, durability)
    unit, chunk = store.unit, store.chunk_size
    assert put(store, unit, data(1, unit))
    assert put(store, 4 * chunk, data(2, 3 * chunk))
    store.flush()
    before = written(store)
    store.close()
    store = kinds.reopen(stores, store.snapshot)
    assert written(store) == before
    assert store.written_bytes() == unit + 3 * chunk
    assert read(store, 4 * chunk, 3 * chunk) == data(2, 3 * chunk)
    assert refused(store, 0, data(3, 2 * chunk)) == unit // store.block_size
    assert (store.reason, store.broken) == (None, False)
    store.close()


def test_every_chunk_is_verified(kind: kinds.Kind, store: contract.Store) -> None:
    chunk = store.chunk_size
    for number in (1, 2, 6):
        assert put(store, number * chunk, data(number, chunk))
    want = contract.Verdict.GOOD if kind.checksums else contract.Verdict.UNVERIFIABLE
    assert [(report.offset, report.verdict) for report in store.verify()] == [
        (number * chunk, want) for number in (1, 2, 6)
    ]
    passed_over = contract.NOTHING.copy()
    passed_over.update([1, 6])
    assert [report.offset for report in store.verify(passed_over)] == [2 * chunk]
    assert store.check_headers() == []


def test_an_invalid_store_says_so_for_ever_and_frees_its_space(
    stores: contract.Stores, geometry: contract.Geometry
) -> None:
    counted = space.Space()
    store = kinds.create(stores, geometry, counted=counted)
    put(store, 0, data(1, 4 * store.chunk_size))
    assert store.allocated_bytes == counted.used >= 4 * store.chunk_size
    store.invalidate("the disk was full")
    assert store.reason == "the disk was full"
    store.discard()
    assert counted.used == store.allocated_bytes == 0
    store.close()
    store = kinds.reopen(stores, geometry.snapshot, counted=counted)
    assert store.reason == "the disk was full"
    assert counted.used == 0
    store.close()


def test_the_limit_is_kept_and_counted_again_after_reopening(
    stores: contract.Stores, geometry: contract.Geometry
) -> None:
    chunk = geometry.chunk_size
    counted = space.Space(limit=2 * chunk)
    store = kinds.create(stores, geometry, counted=counted)
    assert put(store, 0, data(1, 2 * chunk))
    with pytest.raises(block_device.SpaceExhausted):
        put(store, 2 * chunk, data(1, chunk))
    assert written(store) == [(0, 2 * chunk)]
    assert not put(store, 0, data(1, 2 * chunk))  # a refusal takes no space
    store.close()
    again = space.Space()
    store = kinds.reopen(stores, geometry.snapshot, counted=again)
    assert again.used == 2 * chunk
    store.close()


def test_data_moves_with_its_checksum(kind: kinds.Kind, stores: contract.Stores) -> None:
    old, new = (kinds.create(stores, kinds.geometry(kind)) for _ in range(2))
    chunk, count = old.chunk_size, old.chunk_size // old.block_size
    found: list[Damage] = []
    put(new, chunk, data(1, chunk))
    buffer = [memoryview(bytearray(chunk))]
    origin = new.reader.read_to_move(
        count, count, buffer, found.append, grain=old.grain, size=old.size, accept_loss=False
    )
    assert origin.grain == new.grain
    assert (set(origin.checksums) == {contract.UNVERIFIED}) is not kind.checksums
    assert list(old.put_many([contract.Put(count, count, buffer, origin)])) == [None]
    assert read(old, chunk, chunk) == data(1, chunk)
    assert [report.verdict for report in old.verify()] == [report.verdict for report in new.verify()]
    if kind.checksums:  # a chunk that does not fit the checksum it came with is damaged, now and later
        wrong = contract.Origin(origin.grain, tuple(checksum ^ 1 for checksum in origin.checksums), damaged=True)
        assert list(old.put_many([contract.Put(3 * count, count, buffer, wrong)])) == [None]
        with pytest.raises(block_device.DamagedBlocks):
            read(old, 3 * chunk, chunk)
        old.reader.read_checked(3 * count, count, buffer, found.append)
        assert {damage.offset // chunk for damage in found} == {3}
        assert sum(damage.length for damage in found) == chunk
        assert list(old.reader.damaged) == [3]
        old.close()
        old = kinds.reopen(stores, old.snapshot)
        verdicts = {report.offset // chunk: report.verdict for report in old.verify()}
        assert verdicts == {1: contract.Verdict.GOOD, 3: contract.Verdict.DAMAGED}
    old.close()
    new.close()


def test_marks_are_kept_where_a_store_can(kind: kinds.Kind, stores: contract.Stores) -> None:
    store = kinds.create(stores, kinds.geometry(kind))
    count = store.chunk_size // store.block_size
    marked = contract.Put(2 * count, count, [memoryview(data(1, store.chunk_size))], None, True)
    if not kind.marks:
        with pytest.raises(block_device.NotSupported):
            store.put_many([marked])
        assert written(store) == []
        store.close()
        return
    store.put_many([marked])
    store.close()
    again = kinds.reopen(stores, store.snapshot)
    assert list(again.marked) == [2]
    assert again.is_marked(2)
    assert not again.is_marked(1)
    again.close()


@pytest.mark.parametrize("together", [1, 4])
def test_threads_that_race_for_chunks_have_one_winner_each(store: contract.Store, together: int) -> None:
    chunk, won = store.chunk_size, [[0] * 8 for _ in range(4)]
    barrier = threading.Barrier(4)

    def race(own: int) -> None:
        barrier.wait(10)
        for first in range(0, 8, together):
            numbers = range(first, first + together)
            results = put_many(store, [(number * chunk, data(own, chunk)) for number in numbers])
            for number, stored in zip(numbers, results, strict=True):
                won[own][number] = stored

    threads = [threading.Thread(target=race, args=(own,), daemon=True) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number in range(8):
        (winner,) = [own for own in range(4) if won[own][number]]
        assert read(store, number * chunk, chunk) == data(winner, chunk)


def test_stores_are_listed_and_removed(kind: kinds.Kind, stores: contract.Stores) -> None:
    stores.check(new=True)
    kept, gone, left = (kinds.create(stores, kinds.geometry(kind)) for _ in range(3))
    for store in (kept, gone, left):
        put(store, 0, data(1, 2 * store.chunk_size))
        stores.sync(store.snapshot)
        store.close()
    stores.remove(gone.snapshot)
    stores.remove(gone.snapshot)  # a second time, as after a crash
    stores.remove_leftovers({kept.snapshot})
    for store in (gone, left):
        with pytest.raises(contract.StoreMissing):
            kinds.reopen(stores, store.snapshot)
    again = kinds.reopen(stores, kept.snapshot)
    assert written(again) == [(0, 2 * again.chunk_size)]
    again.close()
    stores.remove(kept.snapshot)
    stores.sync(uuid.uuid4())


def test_all_stores_of_a_volume_go_together(kind: kinds.Kind, stores: contract.Stores) -> None:
    made = [kinds.create(stores, kinds.geometry(kind)) for _ in range(2)]
    for store in made:
        put(store, 0, data(1, 2 * store.chunk_size))
        store.close()
    stores.clear()
    for store in made:
        with pytest.raises(contract.StoreError):
            kinds.reopen(stores, store.snapshot)
    if not kind.local:
        with pytest.raises(contract.StoreUnfit, match="nothing of the volume"):
            stores.check(new=False)
