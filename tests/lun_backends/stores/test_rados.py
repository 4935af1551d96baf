# SPDX-License-Identifier: Apache-2.0
"""Stores in RADOS: an OSD that stops, dies or is full, a chunk that lands late, and two processes that race."""

from __future__ import annotations

import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.stores import contract, engine_store, rados
from tests import ceph
from tests.lun_backends.stores import kinds, race
from tests.lun_backends.stores.kinds import data, put, put_many, read, written

KIND = kinds.KINDS["rados"]
CHUNK = KIND.chunk_size


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[engine_store.EngineStores]:
    made = at(tmp_path)
    made.check(new=True)
    yield made
    made.close()


def at(place: Path, timeout: float = 30.0, volume: uuid.UUID = kinds.VOLUME) -> engine_store.EngineStores:
    return kinds.in_pool(place, str(ceph.cluster().conf), volume, timeout)


def test_a_place_without_the_volume_or_the_pool_loses_nothing(
    stores: engine_store.EngineStores, tmp_path: Path
) -> None:
    store = kinds.create(stores, kinds.geometry(KIND))
    store.close()
    elsewhere = at(tmp_path, volume=uuid.uuid4())
    with pytest.raises(contract.StoreUnfit, match="nothing of the volume"):
        elsewhere.check(new=False)
    no_pool = kinds.in_pool(tmp_path, str(ceph.cluster().conf), pool="none")
    with pytest.raises(contract.StoreUnavailable):
        no_pool.check(new=True)
    for other in (elsewhere, no_pool):
        with pytest.raises(contract.StoreUnavailable):
            kinds.reopen(other, store.snapshot)
        other.close()
    no_cluster = kinds.in_pool(tmp_path, str(tmp_path / "none.conf"), timeout=2.0)
    with pytest.raises(contract.StoreUnavailable):
        kinds.reopen(no_cluster, store.snapshot)
    no_cluster.close()


def test_a_put_that_times_out_is_not_known_and_may_land_later(
    stores: engine_store.EngineStores, tmp_path: Path
) -> None:
    store = kinds.create(stores, kinds.geometry(KIND))
    hasty = at(tmp_path, 2.0)
    other = kinds.reopen(hasty, store.snapshot)
    ceph.cluster().signal("ceph-osd", signal.SIGSTOP)
    try:
        with pytest.raises(block_device.MediumError, match="ETIMEDOUT"):
            put(other, CHUNK, data(1, CHUNK))
    finally:
        ceph.cluster().signal("ceph-osd", signal.SIGCONT)
    assert other.allocated_bytes == 0
    time.sleep(0.5)
    stored = put(store, CHUNK, data(1, CHUNK))  # the same pre-image: whoever was first, the content is the same
    assert read(store, CHUNK, CHUNK) == data(1, CHUNK)
    assert written(other) == [(CHUNK, CHUNK)]
    assert stored in (True, False)
    other.close()
    hasty.close()
    store.close()


def test_a_killed_osd_loses_no_put_that_returned(stores: engine_store.EngineStores) -> None:
    store = kinds.create(stores, kinds.geometry(KIND, 800))
    done: list[int] = []
    enough = threading.Event()

    def write() -> None:
        for first in range(0, 800, 16):
            try:
                put_many(store, [(chunk * CHUNK, data(chunk, CHUNK)) for chunk in range(first, first + 16)])
            except block_device.MediumError:
                return
            done.extend(range(first, first + 16))
            if len(done) > 200:
                enough.set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert enough.wait(60)
    ceph.cluster().kill("ceph-osd")
    ceph.cluster().ceph("osd", "down", "0")  # so that the monitor does not wait until it misses it
    ceph.cluster().start_osd()
    thread.join(120)
    for chunk in done:
        assert read(store, chunk * CHUNK, CHUNK) == data(chunk, CHUNK)
    assert {report.verdict for report in store.verify()} == {contract.Verdict.GOOD}
    store.close()


def test_a_full_pool_refuses_puts_and_deletions_go_on(stores: engine_store.EngineStores, tmp_path: Path) -> None:
    cluster = ceph.cluster()
    cluster.start_mgr()
    cluster.ceph("osd", "pool", "create", "small", "1")
    cluster.ceph("osd", "pool", "set-quota", "small", "max_objects", "20")
    small = kinds.in_pool(tmp_path, str(cluster.conf), pool="small")
    small.check(new=True)
    store = kinds.create(small, kinds.geometry(KIND, 4000))
    with pytest.raises(block_device.SpaceExhausted):
        for chunk in range(4000):
            put(store, chunk * CHUNK, data(chunk, CHUNK))
            time.sleep(0.02)  # the manager counts every few seconds
    stored = written(store)
    assert store.written_bytes() == sum(length for _, length in stored)
    assert read(store, 0, CHUNK) == data(0, CHUNK)
    store.close()
    small.remove(store.snapshot)
    assert list(small.engine.chunks(store.snapshot, 0, 4000)) == []
    small.close()
    cluster.kill("ceph-mgr")


def test_a_chunk_that_lands_after_the_deletion_is_swept_by_the_next_start(
    stores: engine_store.EngineStores, tmp_path: Path
) -> None:
    store = kinds.create(stores, kinds.geometry(KIND))
    put(store, 0, data(1, CHUNK))
    store.close()
    stores.remove(store.snapshot)
    stores.engine.put(store.snapshot, 5, data(1, CHUNK), 1).result()  # the late one
    with pytest.raises(contract.StoreMissing):
        kinds.reopen(stores, store.snapshot)
    again = at(tmp_path)
    assert store.snapshot in again.engine.snapshots()
    again.remove_leftovers(())
    assert list(again.engine.chunks(store.snapshot, 0, 8)) == []
    assert store.snapshot not in again.engine.snapshots()
    again.close()


def test_a_chunk_that_lands_during_the_deletion_goes_too(
    stores: engine_store.EngineStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = kinds.create(stores, kinds.geometry(KIND))
    put(store, 0, data(1, CHUNK))
    store.close()
    keys, late = rados.RadosEngine._keys, iter([5])

    def listed(self: rados.RadosEngine, snapshot: uuid.UUID) -> list[str]:
        found = keys(self, snapshot)
        for chunk in late:
            assert self.put(snapshot, chunk, data(1, CHUNK), 1).result()
        return found

    monkeypatch.setattr(rados.RadosEngine, "_keys", listed)
    stores.remove(store.snapshot)
    assert list(stores.engine.chunks(store.snapshot, 0, 8)) == []


def test_a_pool_that_creates_what_exists_is_refused(
    stores: engine_store.EngineStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = rados.binding()
    monkeypatch.setattr(module, "LIBRADOS_CREATE_EXCLUSIVE", module.LIBRADOS_CREATE_IDEMPOTENT)
    for new in (True, False):
        with pytest.raises(contract.StoreUnfit, match="it creates what exists"):
            stores.check(new=new)


def test_a_missing_binding_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rados, "DEBIAN", tmp_path)
    monkeypatch.setitem(sys.modules, "rados", None)
    with pytest.raises(contract.StoreUnfit, match="apt install python3-rados"):
        rados.binding()


def test_two_processes_race_for_the_same_chunks(tmp_path: Path) -> None:
    race.run("rados", tmp_path, rounds=race.ROUNDS)
