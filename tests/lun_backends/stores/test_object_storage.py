# SPDX-License-Identifier: Apache-2.0
"""Stores in object storage: Ceph's S3 gateway, behind a proxy that fails on demand, and killed while it works."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.stores import contract, engine, engine_store, object_storage, settings
from tests import ceph, faulty_http
from tests.faulty_http import Fault
from tests.lun_backends.stores import kinds, race
from tests.lun_backends.stores.kinds import data, put, put_many, read, written

KIND = kinds.KINDS["gateway"]
CHUNK = KIND.chunk_size


@pytest.fixture
def proxy() -> Iterator[faulty_http.Proxy]:
    ceph.gateway()
    with faulty_http.Proxy(ceph.cluster().port) as running:
        yield running


def through(proxy: faulty_http.Proxy, place: Path, timeout: float = 20.0) -> engine_store.EngineStores:
    """Return new stores that are reached through a proxy."""
    stores = kinds.at_gateway(place, f"http://127.0.0.1:{proxy.port}", uuid.uuid4(), timeout)
    stores.check(new=True)
    return stores


def once(method: str, fault: Fault, *, times: int = 1) -> Callable[[str, str], Fault]:
    """Return a choice that lets the first requests of a method for a chunk meet a fault."""
    count = itertools.count()

    def choose(asked: str, path: str) -> Fault:
        is_chunk = asked == method and path.count("/") == 6
        return fault if is_chunk and next(count) < times else faulty_http.NONE

    return choose


def test_a_service_that_ignores_the_condition_is_refused(proxy: faulty_http.Proxy, tmp_path: Path) -> None:
    proxy.choose = lambda method, _path: Fault(status=200 if method == "PUT" else 0)
    with pytest.raises(contract.StoreUnfit, match="ignores If-None-Match"):
        through(proxy, tmp_path)


def test_a_place_without_the_volume_is_refused_and_loses_nothing(proxy: faulty_http.Proxy, tmp_path: Path) -> None:
    stores = through(proxy, tmp_path)
    store = kinds.create(stores, kinds.geometry(KIND))
    store.close()
    elsewhere = kinds.at_gateway(tmp_path, f"http://127.0.0.1:{proxy.port}", uuid.uuid4())
    with pytest.raises(contract.StoreUnfit, match="nothing of the volume"):
        elsewhere.check(new=False)
    with pytest.raises(contract.StoreUnavailable, match="nothing of the volume"):
        kinds.reopen(elsewhere, store.snapshot)
    stores.close()
    elsewhere.close()


def test_a_service_out_of_reach_is_unavailable_and_nothing_is_lost(proxy: faulty_http.Proxy, tmp_path: Path) -> None:
    stores = through(proxy, tmp_path, 2.0)
    store = kinds.create(stores, kinds.geometry(KIND))
    store.close()
    proxy.choose = lambda _method, _path: Fault(drop=True)
    with pytest.raises(contract.StoreUnavailable):
        kinds.reopen(stores, store.snapshot)
    proxy.choose = lambda _method, _path: faulty_http.NONE
    kinds.reopen(stores, store.snapshot).close()
    stores.close()


@pytest.mark.parametrize("status", [409, 412])
def test_a_refusal_of_nothing_is_put_again(proxy: faulty_http.Proxy, tmp_path: Path, status: int) -> None:
    stores = through(proxy, tmp_path)
    store = kinds.create(stores, kinds.geometry(KIND))
    proxy.choose = once("PUT", Fault(status=status), times=2)
    assert put(store, CHUNK, data(1, CHUNK))
    assert read(store, CHUNK, CHUNK) == data(1, CHUNK)
    stores.close()


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=503), Fault(drop=True), Fault(delay=1)])
def test_a_passing_fault_is_overcome(proxy: faulty_http.Proxy, tmp_path: Path, fault: Fault) -> None:
    stores = through(proxy, tmp_path)
    store = kinds.create(stores, kinds.geometry(KIND))
    proxy.choose = once("PUT", fault)
    put(store, CHUNK, data(1, CHUNK))
    assert read(store, CHUNK, CHUNK) == data(1, CHUNK)
    assert written(store) == [(CHUNK, CHUNK)]
    stores.close()


def test_a_lost_answer_is_no_second_content(proxy: faulty_http.Proxy, tmp_path: Path) -> None:
    """The put is repeated and refused, because the first one had stored it: nobody loses."""
    stores = through(proxy, tmp_path)
    store = kinds.create(stores, kinds.geometry(KIND))
    proxy.choose = once("PUT", Fault(lose=True))
    put(store, CHUNK, data(1, CHUNK))
    assert not put(store, CHUNK, data(2, CHUNK))
    assert read(store, CHUNK, CHUNK) == data(1, CHUNK)
    stores.close()


def test_a_put_that_times_out_is_not_known_and_may_land_later(proxy: faulty_http.Proxy, tmp_path: Path) -> None:
    stores = through(proxy, tmp_path, 1.0)
    store = kinds.create(stores, kinds.geometry(KIND))
    proxy.choose = once("PUT", Fault(delay=3), times=100)
    with pytest.raises(block_device.MediumError):
        put(store, CHUNK, data(1, CHUNK))
    assert store.allocated_bytes == 0
    time.sleep(3)
    assert read(store, CHUNK, CHUNK) == data(1, CHUNK)  # it landed: a true pre-image
    proxy.choose = lambda _method, _path: faulty_http.NONE
    assert not put(store, CHUNK, data(2, CHUNK))
    stores.close()


def test_writers_race_through_a_bad_network(proxy: faulty_http.Proxy, tmp_path: Path) -> None:
    dice = random.Random(7)
    faults = [Fault(status=409), Fault(status=503), Fault(drop=True), Fault(lose=True), Fault(delay=0.05)]
    proxy.choose = lambda method, path: (
        dice.choice(faults) if path.count("/") == 6 and dice.random() < 0.3 else faulty_http.NONE
    )
    stores = through(proxy, tmp_path)
    geometry = kinds.geometry(KIND, 40)
    stored = [[False] * 40 for _ in range(3)]
    kinds.create(stores, geometry).close()
    others = [kinds.reopen(stores, geometry.snapshot) for _ in range(3)]

    def write(own: int) -> None:
        for chunk in range(40):
            try:
                stored[own][chunk] = put(others[own], chunk * CHUNK, data(own, CHUNK))
            except block_device.MediumError:
                continue  # not known

    threads = [threading.Thread(target=write, args=(own,), daemon=True) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    proxy.choose = lambda _method, _path: faulty_http.NONE
    for chunk in range(40):
        winners = [own for own in range(3) if stored[own][chunk]]
        assert len(winners) <= 1
        content = read(others[0], chunk * CHUNK, CHUNK)
        assert content in [data(own, CHUNK) for own in winners or range(3)]
    assert {report.verdict for report in others[0].verify()} == {contract.Verdict.GOOD}
    stores.close()


def test_a_killed_gateway_loses_no_put_that_returned(tmp_path: Path) -> None:
    stores = kinds.at_gateway(tmp_path, ceph.gateway(), uuid.uuid4(), 60.0)
    stores.check(new=True)
    store = kinds.create(stores, kinds.geometry(KIND, 2000))
    done: list[int] = []
    enough = threading.Event()

    def write() -> None:
        for first in range(0, 2000, 8):
            try:
                put_many(store, [(chunk * CHUNK, data(chunk, CHUNK)) for chunk in range(first, first + 8)])
            except block_device.MediumError:
                return
            done.extend(range(first, first + 8))
            if len(done) > 100:
                enough.set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert enough.wait(60)
    ceph.cluster().kill("radosgw")
    ceph.cluster().start_gateway()
    thread.join(120)
    for chunk in done:
        assert read(store, chunk * CHUNK, CHUNK) == data(chunk, CHUNK)
    assert {report.verdict for report in store.verify()} == {contract.Verdict.GOOD}
    stores.close()


def test_chunks_are_listed_in_order_past_the_length_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_storage, "_PAGE", 3)
    stores = kinds.objects(tmp_path)
    store = kinds.create(stores, kinds.geometry(KIND, 400))
    chunks = sorted(random.Random(3).sample(range(400), 200))
    put_many(store, [(chunk * CHUNK, data(chunk, CHUNK)) for chunk in chunks])
    assert isinstance(store, engine_store.EngineStore)
    of: engine.Engine = store.engine
    assert list(of.chunks(store.snapshot, 0, 400)) == chunks
    assert list(of.chunks(store.snapshot, 37, 222)) == [chunk for chunk in chunks if 37 <= chunk < 222]
    of.sweep(store.snapshot)
    assert list(of.chunks(store.snapshot, 0, 400)) == []
    stores.close()


def test_a_chunk_that_lands_during_the_deletion_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = kinds.objects(tmp_path)
    assert isinstance(stores, engine_store.EngineStores)
    store = kinds.create(stores, kinds.geometry(KIND))
    store.close()
    sweep, late = object_storage.ObjectStorage._sweep, iter(range(8))

    def swept(self: object_storage.ObjectStorage, prefix: str) -> None:
        sweep(self, prefix)
        for chunk in late:  # some of them in shards that were swept a moment ago
            assert self._create(self._key(store.snapshot, chunk), data(1, CHUNK), {})

    monkeypatch.setattr(object_storage.ObjectStorage, "_sweep", swept)
    stores.engine.sweep(store.snapshot)
    assert list(stores.engine.chunks(store.snapshot, 0, 8)) == []
    stores.close()


def test_credentials_come_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(contract.StoreUnfit, match="No such file"):
        object_storage.ObjectStorage.open(settings.Objects("s3://b", credentials=tmp_path / "none"), uuid.UUID(int=1))
    (tmp_path / "bad").write_text("nonsense\n")
    with pytest.raises(contract.StoreUnfit, match="line 1 is not KEY=VALUE"):
        object_storage.ObjectStorage.open(settings.Objects("s3://b", credentials=tmp_path / "bad"), uuid.UUID(int=1))


def test_two_processes_race_for_the_same_chunks(tmp_path: Path) -> None:
    race.run("gateway", tmp_path, rounds=race.ROUNDS)
