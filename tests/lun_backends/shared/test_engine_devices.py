# SPDX-License-Identifier: Apache-2.0
"""The log and the write-once LUNs in an engine: consensus, late calls, and deleted chunks that do not look blank."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import obstore.store
import pytest

from lun_backends import block_device
from lun_backends.block_device import ExtentKind
from lun_backends.shared import engine_devices
from lun_backends.shared.engine_devices import EngineLog, EngineLun, EnginePool
from lun_backends.stores import contract, engine, object_storage
from lun_backends.volumes import errors

VOLUME = uuid.UUID(int=5)
CHUNK = 8192
SIZE = 8 * CHUNK
PRIMARY = "naa"


@pytest.fixture
def engines() -> Callable[[uuid.UUID], object_storage.ObjectStorage]:
    """Return what makes engines at one place, each for another node."""
    memory = obstore.store.MemoryStore()
    return lambda volume: object_storage.ObjectStorage(memory, volume, "memory")


def pool(engines: engine_devices.Engines, size: int = SIZE) -> EnginePool:
    of = engines(VOLUME)
    of.set_mark(None, "volume", b"")
    return EnginePool(of, VOLUME, size, 512, CHUNK)


def taken(of: EnginePool, epoch: int) -> EngineLun:
    (identity,) = of.blank(epoch)
    return found(of, identity)


def found(of: EnginePool, identity: uuid.UUID) -> EngineLun:
    lun = of.find(identity)
    assert lun is not None
    assert isinstance(lun.device, EngineLun)
    return lun.device


def put(lun: EngineLun, chunk: int, fill: int) -> bool:
    return lun.put_many([(chunk * CHUNK, [memoryview(bytes([fill]) * CHUNK)])]) == [None]


def read(lun: EngineLun, chunk: int) -> int:
    buffer = bytearray(CHUNK)
    lun.readv(chunk * CHUNK, [memoryview(buffer)])
    assert buffer == bytes([buffer[0]]) * CHUNK
    return buffer[0]


def kinds(lun: EngineLun) -> set[ExtentKind]:
    return {extent.kind for extent in lun.extents(0, SIZE)}


def test_the_first_record_of_a_block_stays_and_all_nodes_read_the_same(engines: engine_devices.Engines) -> None:
    one, two = EngineLog(engines(VOLUME)), EngineLog(engines(VOLUME))
    assert one.read(0) == ()
    assert one.append(0, b"a" * 4096)
    assert not two.append(0, b"b" * 4096)
    for number in range(1, 80):  # more than are read at once
        assert two.append(number, bytes([number]) * 4096)
    assert one.read(0) == (b"a" * 4096, *(bytes([number]) * 4096 for number in range(1, 80)))
    assert one.read(78) == (bytes([78]) * 4096, bytes([79]) * 4096)
    assert one.read(80) == ()


def test_nodes_that_take_one_epoch_make_one_lun(engines: engine_devices.Engines) -> None:
    one, two = pool(engines), pool(engines)
    assert one.blank(3) == two.blank(3) == one.blank(3)
    assert one.blank(3) != one.blank(4)
    assert one.blank(3) != pool(engines, 2 * SIZE).blank(3)  # the primary has grown
    lun = taken(one, 3)
    assert (lun.size, lun.grain, kinds(lun)) == (SIZE, CHUNK, {ExtentKind.BLANK})
    assert put(lun, 1, 7)
    assert not put(found(two, lun.uuid), 1, 8)
    assert read(found(two, lun.uuid), 1) == 7
    assert lun.written_bytes() == CHUNK
    with pytest.raises(block_device.BlankBlock):
        read(lun, 2)
    assert one.find(uuid.uuid4()) is None


def test_a_deleted_chunk_never_looks_blank(engines: engine_devices.Engines) -> None:
    deleter, reader = pool(engines), pool(engines)
    lun = taken(deleter, 1)
    put(lun, 1, 7)
    late = found(reader, lun.uuid)
    deleter.forget(lun.uuid)
    deleter.look()
    for chunk in (1, 2):
        with pytest.raises(block_device.NotReady, match="retired"):
            read(late, chunk)
        with pytest.raises(block_device.NotReady, match="retired"):
            late.read_checked(chunk * CHUNK, [memoryview(bytearray(CHUNK))])
    with pytest.raises(block_device.NotReady, match="retired"):
        kinds(late)
    assert reader.find(lun.uuid) is None


def test_nothing_is_deleted_before_the_tombstone(
    engines: engine_devices.Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleter, reader = pool(engines), pool(engines)
    lun = taken(deleter, 1)
    put(lun, 1, 7)
    late = found(reader, lun.uuid)

    def fail(*_: object) -> Any:
        raise engine.EngineError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(object_storage.ObjectStorage, "set_mark", fail)
        deleter.forget(lun.uuid)
        with pytest.raises(block_device.NoAnswer):
            deleter.look()
    assert read(late, 1) == 7
    assert ExtentKind.BLANK in kinds(late)
    deleter.look()  # it is still to be done
    with pytest.raises(block_device.NotReady):
        kinds(late)


def test_a_chunk_that_lands_in_a_deleted_lun_goes_with_the_next_start(engines: engine_devices.Engines) -> None:
    deleter = pool(engines)
    lun = taken(deleter, 1)
    deleter.forget(lun.uuid)
    deleter.look()
    of = engines(VOLUME)
    assert of.put(lun.uuid, 3, bytes(CHUNK), 1).result()
    again = pool(engines)
    again.forget(lun.uuid)
    again.look()
    assert list(of.chunks(lun.uuid, 0, 8)) == []
    assert engine_devices.is_retired(of, lun.uuid)  # for good


def test_other_nodes_leave_a_deletion_to_the_one_that_began(
    engines: engine_devices.Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pool(engines), pool(engines)
    first, second = taken(one, 1), taken(one, 2)
    for of in (one, two):
        of.forget(first.uuid)
        of.look()
    swept: list[uuid.UUID] = []
    sweep = object_storage.ObjectStorage.sweep

    def count(self: object_storage.ObjectStorage, snapshot: uuid.UUID) -> None:
        swept.append(snapshot)
        sweep(self, snapshot)

    monkeypatch.setattr(object_storage.ObjectStorage, "sweep", count)
    for of in (one, two):
        of.forget(second.uuid)
    assert engines(VOLUME).set_mark(None, f"retired.{second.uuid}", b"")  # a third one
    for of in (one, two):
        of.look()
    assert swept == []


def test_a_silent_engine_is_no_answer(engines: engine_devices.Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    of = pool(engines)
    lun, log = taken(of, 1), EngineLog(engines(VOLUME))

    def fail(*_: object) -> Any:
        raise engine.EngineError("it timed out")

    for name in ("_create", "_get", "_has", "mark", "count"):
        monkeypatch.setattr(object_storage.ObjectStorage, name, fail)
    for call in (
        lambda: put(lun, 0, 1),
        lambda: read(lun, 0),
        lambda: kinds(lun),
        lambda: lun.written_bytes(),
        lambda: log.read(0),
        lambda: log.append(0, bytes(4096)),
        lambda: of.blank(2),
        lambda: of.find(lun.uuid),
    ):
        with pytest.raises(block_device.NoAnswer, match="it timed out"):
            call()


def test_damage_of_a_lun_is_no_silence(engines: engine_devices.Engines) -> None:
    lun = taken(pool(engines), 1)
    engines(VOLUME).put(lun.uuid, 1, bytes(CHUNK), 12345).result()
    with pytest.raises(block_device.DamagedBlocks):
        read(lun, 1)


def test_the_first_node_makes_the_volume(engines: engine_devices.Engines) -> None:
    made = engine_devices.find_plate(engines, "archive", PRIMARY, lambda: False)
    assert engine_devices.find_plate(engines, "archive", PRIMARY, lambda: True) == made
    assert engine_devices.find_plate(engines, "other", PRIMARY, lambda: False) != made
    with pytest.raises(errors.VolumeError, match="correct `primary`"):
        engine_devices.find_plate(engines, "archive", "another", lambda: True)


def test_of_two_nodes_that_make_the_volume_one_is_first(engines: engine_devices.Engines) -> None:
    others: list[engine_devices.Plate] = []

    def is_used() -> bool:
        if not others:
            others.append(engine_devices.find_plate(engines, "archive", PRIMARY, lambda: False))
        return bool(len(others) % 2)

    assert engine_devices.find_plate(engines, "archive", PRIMARY, is_used) == others[0]

    def is_unused() -> bool:
        others.append(engine_devices.find_plate(engines, "new", PRIMARY, lambda: False))
        return False

    assert engine_devices.find_plate(engines, "new", PRIMARY, is_unused) == others[1]


def test_no_volume_is_made_where_the_primary_has_another_cluster(engines: engine_devices.Engines) -> None:
    with pytest.raises(errors.VolumeError, match="correct the place of the store"):
        engine_devices.find_plate(engines, "archive", PRIMARY, lambda: True)


def test_a_service_that_ignores_the_condition_is_refused(
    engines: engine_devices.Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_ = obstore.put

    def overwrite(store: Any, key: str, data: bytes, **options: Any) -> Any:
        return put_(store, key, data, **{**options, "mode": "overwrite"})

    made = engine_devices.find_plate(engines, "archive", PRIMARY, lambda: False)
    monkeypatch.setattr(obstore, "put", overwrite)
    with pytest.raises(contract.StoreUnfit, match="ignores If-None-Match"):
        engine_devices.find_plate(engines, "archive", PRIMARY, lambda: True)
    monkeypatch.undo()
    assert engine_devices.find_plate(engines, "archive", PRIMARY, lambda: True) == made
