# SPDX-License-Identifier: Apache-2.0
"""Damage that the jobs of snapshots meet: it is named, refused unless accepted, and shown until its snapshot goes."""

from __future__ import annotations

import uuid

import pytest

from lun_backends import block_device, write_once
from lun_backends.damage import Damage
from lun_backends.stores import chunk_map, record_map
from lun_backends.volumes import manifest
from target import messages
from target.configuration import reader
from target.control import metrics
from target.service import alerts, damage_met, jobs, volumes
from target.service.service import Service
from tests.lun_backends import store_factory
from tests.lun_backends.rotting import rot
from tests.target.service.conftest import VOLUMES, Serve

CHUNK = 64 << 10
BLOCKS = CHUNK // 512


@pytest.fixture
def damaged(service: Service) -> Service:
    """Return a service whose vol0@a has chunks 0 to 2, with chunk 1 damaged, and whose vol0@b has chunk 4."""
    owner = service.inventory.volume("vol0")
    for chunk in range(5):
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([7]) * CHUNK)])
    service.snapshots.create_snapshot("vol0", "a")
    for chunk in range(3):
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([8]) * CHUNK)])
    service.snapshots.create_snapshot("vol0", "b")
    owner.device.writev(4 * CHUNK, [memoryview(bytes([8]) * CHUNK)])
    rot(owner.snapshot("a"), 1)
    return service


def ended(job: jobs.Job) -> messages.Job:
    assert job.wait(60)
    return job.message()


def content(service: Service, chunk: int) -> bytes:
    data = bytearray(CHUNK)
    service.inventory.volume("vol0").device.readv(chunk * CHUNK, [memoryview(data)])
    return bytes(data)


def lose(service: Service, name: str, chunk: int) -> None:
    """Let the map of a snapshot forget where it has a chunk, so that it cannot be read."""
    device = service.inventory.find("vol0", name)[1].write_once
    assert isinstance(device, write_once.WriteOnce)
    words = store_factory.thin_of(device)._map
    assert isinstance(words, record_map.RecordMap)
    words.confirm([chunk])
    words._io.store(words._fd, bytes(8), chunk_map.WORDS + chunk * words._size + words._slot_at)


def codes(service: Service) -> dict[str, messages.Alert]:
    return {alert.code: alert for alert in alerts.current(service.inventory, {}, 1, 1, manifest.now())}


def test_rollback_over_damage_needs_consent(damaged: Service) -> None:
    refused = ended(damaged.reshaping.restore("vol0", "a", force=False))
    assert refused.refusal is not None
    assert refused.refusal.error == "damaged"
    assert f"blocks {BLOCKS} to {BLOCKS + 7} of 'a'" in refused.refusal.message
    assert content(damaged, 0) == bytes([8]) * CHUNK
    accepted = ended(damaged.reshaping.restore("vol0", "a", force=False, damaged=True))
    assert (accepted.state, accepted.damaged_bytes) == ("done", 4096)
    assert [(extent.kept_in, extent.lba, extent.blocks) for extent in accepted.damage] == [("a", BLOCKS, 8)]
    assert content(damaged, 0) == bytes([7]) * CHUNK
    assert content(damaged, 1) != bytes([8]) * CHUNK


def test_rollback_that_meets_damage_on_its_way_goes_on_with_consent(service: Service) -> None:
    owner = service.inventory.volume("vol0")
    owner.device.writev(CHUNK, [memoryview(bytes([7]) * CHUNK)])
    service.snapshots.create_snapshot("vol0", "a")
    owner.device.writev(CHUNK, [memoryview(bytes([8]) * CHUNK)])
    owner.begin_rollback("a")
    rot(owner.snapshot("a"), 1)
    stopped = ended(service.reshaping.restore("vol0", "a", force=False))
    assert stopped.refusal is not None
    assert stopped.refusal.error == "damaged"
    assert "wolun snapshot restore vol0@a --damaged" in stopped.refusal.remedy
    assert ended(service.reshaping.restore("vol0", "a", force=False, damaged=True)).state == "done"
    assert owner.rolling_back_to is None


def test_damaged_blocks_move_down_and_are_named(damaged: Service) -> None:
    rot(damaged.inventory.volume("vol0").snapshot("b"), 4)
    job = ended(damaged.snapshots.delete_snapshot("vol0", "b"))
    assert (job.state, job.damaged_bytes) == ("done", 4096)
    assert [(extent.kept_in, extent.lba) for extent in job.damage] == [("a", 4 * BLOCKS)]
    view = damaged.inventory.find("vol0", "a")[1].view
    with pytest.raises(block_device.DamagedBlocks):
        view.readv(4 * CHUNK, [memoryview(bytearray(512))])


def test_unreadable_blocks_stop_a_deletion_without_consent(damaged: Service) -> None:
    lose(damaged, "b", 4)
    refused = ended(damaged.snapshots.delete_snapshot("vol0", "b"))
    assert refused.refusal is not None
    assert refused.refusal.error == "damaged"
    assert "--damaged" in refused.refusal.remedy
    accepted = ended(damaged.snapshots.delete_snapshot("vol0", "b", damaged=True))
    assert (accepted.state, accepted.damaged_bytes) == ("done", CHUNK)


def test_damage_is_an_alert_and_a_metric_until_its_snapshot_goes(damaged: Service) -> None:
    assert "snapshot-damaged" not in codes(damaged)
    owner, snapshot = damaged.inventory.find("vol0", "a")
    with pytest.raises(block_device.DamagedBlocks):
        snapshot.view.readv(CHUNK, [memoryview(bytearray(512))])
    alert = codes(damaged)["snapshot-damaged"]
    assert alert.subject == "vol0@a"
    assert "1 chunk of 64KiB" in alert.message
    families = {family.name: family for family in metrics.Collector(damaged).collect()}
    samples = {sample.labels["snapshot"]: sample.value for sample in families["wolun_snapshot_damaged_chunks"].samples}
    assert samples == {"a": 1, "b": 0}
    owner.delete_snapshot("a")
    assert "snapshot-damaged" not in codes(damaged)


def test_reads_compare_unless_the_configuration_says_otherwise(serve: Serve) -> None:
    service = serve()
    service.inventory.volume("vol0").device.writev(0, [memoryview(bytes([2]) * CHUNK)])
    service.snapshots.create_snapshot("vol0", "a")
    service.inventory.volume("vol0").device.writev(0, [memoryview(bytes(CHUNK))])
    rot(service.inventory.volume("vol0").snapshot("a"), 0, at=3)
    service = serve(VOLUMES.replace("lun: 0,", "lun: 0, verify_reads: false,"))
    owner = service.inventory.volume("vol0")
    data = bytearray(512)
    owner.snapshot("a").view.readv(0, [memoryview(data)])
    assert data[3] == 3
    service.snapshots.create_snapshot("vol0", "later")
    later = owner.snapshot("later").write_once
    assert isinstance(later, write_once.WriteOnce)
    assert not later.verify_reads
    configured = reader.parse(f"target: iqn.2026-11.io.wolun:t\nvolumes:\n{VOLUMES}", "f.yaml").volumes[0]
    owner.keep_by(volumes.rules(configured))
    assert later.verify_reads
    with pytest.raises(block_device.DamagedBlocks):
        owner.snapshot("a").view.readv(0, [memoryview(data)])


def test_a_job_names_a_limited_number_of_extents(service: Service) -> None:
    owner = service.inventory.volume("vol0")
    where = uuid.uuid4()

    def work(job: jobs.Job) -> None:
        for _ in range(2):
            with damage_met.noted(job, owner) as found:
                for number in range(damage_met.NAMED - 30):
                    found(Damage(number * 2 * CHUNK, CHUNK, "x", where))

    message = ended(service.jobs.start("test", "vol0@a", work))
    assert len(message.damage) == damage_met.NAMED
    assert message.damaged_bytes == 2 * (damage_met.NAMED - 30) * CHUNK
