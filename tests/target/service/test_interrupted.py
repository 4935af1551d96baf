# SPDX-License-Identifier: Apache-2.0
"""Work that a stop interrupted is finished by a later job."""

from __future__ import annotations

import pytest

from lun_backends import block_device
from lun_backends.damage import Damage
from lun_backends.stores import chunk_file
from lun_backends.volumes import rollback_overlay
from target.service import interrupted, jobs, problems
from target.service.service import Service
from tests.target.service.conftest import Serve
from tests.target.service.test_alerts import current

CHUNK = 64 << 10


def content(service: Service) -> bytes:
    data = bytearray(1 << 20)
    service.inventory.own_volume("vol0").primary.readv(0, [memoryview(data)])
    return bytes(data)


def rolled_back(service: Service) -> None:
    """Roll vol0 back to a snapshot and copy nothing yet."""
    owner = service.inventory.own_volume("vol0")
    service.snapshots.create_snapshot("vol0", "a")
    for chunk in range(4):
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([7]) * 512)])
    owner.begin_rollback("a")


def run(work: jobs.Job) -> str:
    work.start()
    assert work.wait(60)
    return work.message().state


def test_rollback_stops_with_the_daemon_and_not_with_the_job(service: Service) -> None:
    rolled_back(service)
    owner = service.inventory.own_volume("vol0")
    stopped = jobs.Job(1, "test", "vol0", lambda job: interrupted.finish_rollback(owner, job, lambda: True))
    assert run(stopped) == "cancelled"
    assert owner.rolling_back_to is not None
    cancelled = jobs.Job(2, "test", "vol0", lambda job: interrupted.finish_rollback(owner, job, lambda: False))
    cancelled.cancel()
    assert run(cancelled) == "done"
    assert owner.rolling_back_to is None
    assert content(service) == bytes(1 << 20)


def test_rollback_is_finished_at_the_next_start(serve: Serve) -> None:
    rolled_back(serve())
    service = serve()
    (job,) = service.jobs.all()
    assert (job.kind, job.subject) == ("restore", "vol0@a")
    assert job.wait(60)
    assert job.message().state == "done"
    assert content(service) == bytes(1 << 20)


def test_nothing_to_finish_is_done_at_once(service: Service) -> None:
    owner = service.inventory.own_volume("vol0")

    def work(job: jobs.Job) -> None:
        interrupted.finish_rollback(owner, job, lambda: pytest.fail("there is nothing to interrupt"))
        interrupted.finish_deletions(owner, job)

    assert run(jobs.Job(1, "test", "vol0", work)) == "done"


def stop(service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the rollback of vol0 stop because of `error`."""

    def refuse(*_: object) -> bool:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(rollback_overlay.RollbackOverlay, "settle_all", refuse)
        job = service.reshaping.restore("vol0", "a", force=True)
        job.wait()
        assert job.message().state == "failed"
        with pytest.raises(problems.Problem) as caught:
            job.check()
        assert "`wolun snapshot restore vol0@a" in caught.value.remedy


def jobs_of(service: Service) -> list[str]:
    for job in service.jobs.all():
        job.wait()
    return [f"{job.kind} {job.message().state}" for job in service.jobs.all()]


NO_SPACE = block_device.PreserveFailed(8, block_device.SpaceExhausted(8))


def test_rollback_without_space_is_an_alert_and_goes_on_by_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled_back(service)
    stop(service, monkeypatch, NO_SPACE)
    alert = current(service)["rollback-stopped"]
    assert alert.message.startswith("rolling vol0 back to a has stopped: block 8 could not be preserved")
    assert alert.remedy.startswith("free space where")
    assert "it goes on by itself then" in alert.remedy
    with pytest.raises(problems.Problem, match="which has stopped") as caught:
        service.snapshots.create_snapshot("vol0", "b")
    assert caught.value.remedy == alert.remedy
    with monkeypatch.context() as full:
        full.setattr(chunk_file, "has_room", lambda *_: False)
        service.inventory.resume_rollbacks()
    assert jobs_of(service) == ["restore failed"]  # it would only fail again
    service.inventory.resume_rollbacks()
    assert jobs_of(service) == ["restore failed", "restore done"]
    assert content(service) == bytes(1 << 20)
    assert current(service) == {}


def test_rollback_that_another_error_stopped_is_tried_again_with_patience(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled_back(service)
    stop(service, monkeypatch, block_device.MediumError(8, True, "the disk failed"))

    def refuse(*_: object) -> bool:
        raise block_device.MediumError(8, True, "the disk failed")

    with monkeypatch.context() as broken:
        broken.setattr(rollback_overlay.RollbackOverlay, "settle_all", refuse)
        for _ in range(3):
            service.inventory.resume_rollbacks()
            assert jobs_of(service) == ["restore failed"] * 2
    monkeypatch.setattr(service.inventory, "_patience", {})
    service.inventory.resume_rollbacks()
    assert jobs_of(service)[-1] == "restore done"


def test_rollback_that_needs_a_decision_waits_for_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled_back(service)
    damage = Damage(0, 512, "CRC32C is wrong", service.inventory.find("vol0", "a")[1].uuid)
    stop(service, monkeypatch, block_device.DamagedBlocks(0, False, damage.reason, damage))
    assert "--damaged" in current(service)["rollback-stopped"].remedy
    service.inventory.resume_rollbacks()
    assert jobs_of(service) == ["restore failed"]
