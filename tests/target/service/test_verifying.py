# SPDX-License-Identifier: Apache-2.0
"""Scheduled checks: when they run, what they find and remember, and how fast they read."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest

from target.control import metrics
from target.service.service import Service
from target.service.verifying import FILE, Throttle
from tests.lun_backends.rotting import rot
from tests.target.service.conftest import Serve
from tests.target.service.scheduling import HOUR, START, Clock, scheduler_of

CHUNK = 64 << 10
ONE = "  - {name: vol0, lun: 0, size: 1MiB, verify: {schedule: {every: 12h}}}\n"


@pytest.fixture
def service(serve: Serve, clock: Clock) -> Service:
    """Return a service of a volume with two snapshots that keep three chunks, checked each 12 hours."""
    service = serve(ONE)
    owner = service.inventory.volume("vol0")
    owner.device.writev(0, [memoryview(bytes([1]) * 3 * CHUNK)])
    for name, chunks in (("a", 1), ("b", 2)):
        service.snapshots.create_snapshot("vol0", name)
        owner.device.writev(0, [memoryview(bytes([7]) * chunks * CHUNK)])
    return service


def test_damage_is_an_alert_until_a_check_finds_none(service: Service, clock: Clock) -> None:
    rot(service.inventory.volume("vol0").snapshots[1], 0)
    scheduler = scheduler_of(service, clock)
    scheduler.look()
    scheduler.wait()
    again = scheduler_of(service, clock)  # another daemon remembers
    assert "found 4 KiB of damaged data in vol0@b" in again.checks.trouble("vol0")
    service.scheduler.checks = again.checks
    alert = next(alert for alert in service.status.alerts() if alert.code == "verify-failed")
    assert alert.subject == "vol0"
    samples = {
        sample.name: sample.value for family in metrics.Collector(service).collect() for sample in family.samples
    }
    assert samples["wolun_volume_check_damaged_bytes"] == 4096
    assert samples["wolun_schedule_kept"] == 0
    service.snapshots.delete_snapshot("vol0", "b", damaged=True).wait()
    service.snapshots.delete_snapshot("vol0", "a", damaged=True).wait()
    clock.now += 12 * HOUR
    again.look()
    again.wait()
    assert again.checks.trouble("vol0") == ""


def test_check_reads_all_old_data_once_per_period(service: Service, clock: Clock) -> None:
    scheduler = scheduler_of(service, clock)
    for _ in range(2):
        scheduler.look()
        scheduler.wait()
    found = scheduler.checks.found("vol0")
    assert found is not None
    assert (found.began, found.read_bytes, found.damaged) == (START, 3 * CHUNK, {})
    assert [job.kind for job in service.jobs.all()] == ["verify"]
    clock.now += 12 * HOUR
    again = scheduler_of(service, clock)  # another daemon knows of the first check
    assert again.checks.last("vol0") == START
    again.look()
    again.wait()
    assert again.checks.last("vol0") == clock.now
    assert len(service.jobs.all()) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"vol0": {}}', b"\xff", b'{"vol0": {"began": "x"}}'])
def test_unreadable_file_of_results_makes_the_check_due(service: Service, clock: Clock, content: bytes) -> None:
    (service.inventory.state_dir / FILE).write_bytes(content)
    scheduler = scheduler_of(service, clock)
    scheduler.look()
    scheduler.wait()
    assert scheduler.checks.last("vol0") == START


def test_check_that_is_cancelled_is_made_when_the_next_is_due(service: Service, clock: Clock) -> None:
    scheduler = scheduler_of(service, clock)

    def stop(*_: object) -> Iterator[object]:
        (job,) = service.jobs.all()
        job.cancel()
        return iter([None])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(service.inventory.volume("vol0").snapshots[0]), "verify", stop)
        scheduler.look()
        scheduler.wait()
    assert service.jobs.all()[0].message().state == "cancelled"
    assert scheduler.checks.found("vol0") is None
    scheduler.look()
    assert len(service.jobs.all()) == 1
    clock.now += 12 * HOUR
    scheduler.look()
    scheduler.wait()
    assert scheduler.checks.last("vol0") == clock.now


def test_disk_error_is_an_alert(service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = scheduler_of(service, clock)

    def fail(*_: object) -> Iterator[object]:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(service.inventory.volume("vol0").snapshots[0]), "verify", fail)
        scheduler.look()
        scheduler.wait()
    assert "does not end: Input/output error" in scheduler.checks.trouble("vol0")
    clock.now += 12 * HOUR
    scheduler.look()
    scheduler.wait()
    assert scheduler.checks.trouble("vol0") == ""


def test_throttle_waits_until_the_bytes_are_within_the_limit() -> None:
    now, naps = 100.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now
        naps.append(seconds)
        now += seconds

    throttle = Throttle(1000, lambda: now, sleep)
    for _ in range(4):
        throttle.spend(500, lambda: False)
    assert now == pytest.approx(102.0)
    assert max(naps) <= 0.5
    throttle.spend(10**9, lambda: True)  # cancelled
    assert now == pytest.approx(102.0)
    unlimited = Throttle(None, lambda: now, sleep)
    unlimited.spend(10**12, lambda: False)
    assert now == pytest.approx(102.0)


def test_interval_of_checks_is_shown(service: Service, clock: Clock) -> None:
    (schedule,) = scheduler_of(service, clock).schedules()
    assert (schedule.kind, schedule.subject, schedule.when) == ("verify", "vol0", "every 12h")
    assert schedule.period_seconds == datetime.timedelta(hours=12).total_seconds()
