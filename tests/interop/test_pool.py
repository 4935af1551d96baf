# SPDX-License-Identifier: Apache-2.0
"""A pool of write-once LUNs as a node meets it: over iSCSI, with a storage host that is killed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.cluster import records
from lun_backends.cluster.records import Record, Type
from lun_backends.initiator import libiscsi, unit
from lun_backends.initiator.discovery import Discovery, Found, Portals
from lun_backends.initiator.disk import Disk
from tests.daemon import IQN, Daemon

pytestmark = pytest.mark.interop

VOLUMES = "  - {name: archive, lun: 0, size: 16MiB}\n"
POOL = "write_once:\n  - {volume: archive, size: 16MiB, pool: 2}\n"
MANY = 7
SECONDS = 20.0


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, VOLUMES, extra=POOL) as daemon:
        yield daemon


@pytest.fixture
def node(storage: Daemon) -> Iterator[Discovery]:
    initiator = libiscsi.Initiator("iqn.2026-11.io.wolun:node")
    yield Discovery([Portals(initiator, [(storage.portal, IQN)])])
    initiator.close()


def until(node: Discovery, true: Callable[[Found], bool]) -> Found:
    """Return what the node finds as soon as that is true."""
    end = time.monotonic() + SECONDS
    while True:
        found = node.find("archive")
        if true(found):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.01)


def append(log: Disk, volume: uuid.UUID, position: int, kind: Type, **fields: object) -> None:
    record = Record(kind, volume, **fields)  # type: ignore[arg-type]  # the caller names fields of a record
    log.writev(position * 4096, [memoryview(records.encode(record, position, 4096))], fua=True)


def test_node_takes_luns_and_gives_them_up_while_the_storage_host_is_killed(storage: Daemon, node: Discovery) -> None:
    found = node.find("archive")
    assert len(found.pool) == 2
    log = Disk(node.open(found.log), write_once=True, patience=SECONDS)
    used: dict[uuid.UUID, int] = {}
    snapshots: list[tuple[uuid.UUID, uuid.UUID]] = []
    position = 0
    for epoch in range(MANY):
        blank = sorted(set(found.pool) - {lun for lun, _ in snapshots})
        lun, snapshot = blank[0], uuid.uuid4()
        number = found.pool[lun].number
        assert lun not in used
        assert number not in used.values()
        used[lun] = number
        append(log, found.volume, position, Type.EPOCH, epoch=epoch, snapshot=snapshot, lun=lun, name=f"s{epoch}")
        append(log, found.volume, position + 1, Type.FENCED, epoch=epoch, answers=position)
        position += 2
        snapshots.append((lun, snapshot))
        if epoch == 2:
            storage.kill()
            storage.start()
        with node.open(found.pool[lun]) as opened:
            Disk(opened, write_once=True, patience=SECONDS).writev(0, [memoryview(bytes([epoch]) * 512)])
        found = until(node, lambda now: len(set(now.pool) - {taken for taken, _ in snapshots}) == 2)
        if len(snapshots) > 2:  # the oldest is deleted
            gone, deleted = snapshots.pop(0)
            append(log, found.volume, position, Type.DELETE, snapshot=deleted)
            append(log, found.volume, position + 1, Type.DELETED, snapshot=deleted)
            position += 2
            if epoch == 4:
                storage.kill()
                storage.start()
            found = until(node, lambda now, gone=gone: gone not in now.pool)  # type: ignore[misc]
    for lun, _ in snapshots:
        side = Disk(node.open(found.pool[lun]), write_once=True)
        data = bytearray(512)
        side.readv(0, [memoryview(data)])
        assert data == bytes([MANY - len(snapshots) + [taken for taken, _ in snapshots].index(lun)]) * 512
        with pytest.raises(block_device.BlankBlock):
            side.readv(512, [memoryview(data)])
    (shown,) = storage.json("status")["pools"]
    assert [lun["state"] for lun in shown["luns"]].count("taken") == len(snapshots)
    assert f"log at LUN {found.log.number} with {position} records" in storage.run("status").stdout


def test_initiators_learn_of_the_lun_that_takes_the_place_of_a_taken_one(storage: Daemon, node: Discovery) -> None:
    found = node.find("archive")
    assert found.primary is not None
    log, primary = Disk(node.open(found.log), write_once=True), node.open(found.primary)
    primary.execute(bytes(6))
    primary.take_attentions()
    append(log, found.volume, 0, Type.EPOCH, snapshot=uuid.uuid4(), lun=next(iter(found.pool)))
    end = time.monotonic() + SECONDS
    while unit.REPORTED_LUNS_DATA_HAS_CHANGED not in primary.take_attentions():
        assert time.monotonic() < end
        primary.execute(bytes(6))
    assert len(node.find("archive").pool) == 3


def test_other_units_do_not_get_the_numbers_of_a_pool(storage: Daemon, node: Discovery) -> None:
    found = node.find("archive")
    refused = storage.run(
        "shell", f"/volumes create other 1MiB lun={next(iter(found.pool.values())).number}", check=False
    )
    assert refused.returncode
    assert "belongs to the pool of archive" in refused.stdout + refused.stderr
