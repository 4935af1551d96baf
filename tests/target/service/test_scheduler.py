# SPDX-License-Identifier: Apache-2.0
"""Schedules: when they are due, which snapshots they keep, and what they do to a volume as the hours go by."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import write_once
from lun_backends.volumes import manifest
from target import explanations
from target.configuration import reader
from target.service import alerts
from target.service.scheduler import Scheduler
from target.service.service import Service

HOUR = datetime.timedelta(hours=1)
START = datetime.datetime(2026, 11, 22, 23, 20, tzinfo=datetime.UTC)  # a Sunday


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(manifest, "now", made)
    return made


def serve(tmp_path: Path, extra: str) -> Service:
    text = f"target: iqn.2026-11.io.wolun:t\nvolumes:\n  - {{name: vol0, lun: 0, size: 1MiB, {extra}}}\n"
    return Service(reader.parse(text, "f.yaml"), tmp_path / "state")


@pytest.fixture
def service(tmp_path: Path, clock: Clock) -> Iterator[Service]:
    opened = serve(tmp_path, "schedule: hourly, keep: {hourly: 2, daily: 2}, max_snapshots: 6")
    yield opened
    opened.stop()
    opened.close()


def scheduler_of(service: Service, clock: Clock) -> Scheduler:
    """Return a scheduler of the service's volumes that has not started."""
    return Scheduler(service.inventory, service.snapshots, clock)


def names(service: Service) -> list[str]:
    return [each.name for each in service.snapshots.list_snapshots("vol0")]


def test_each_hour_has_one_snapshot_and_old_ones_go(service: Service, clock: Clock) -> None:
    service.snapshots.create_snapshot("vol0", "mine")
    looking = scheduler_of(service, clock)
    for _ in range(4):
        looking.look()
        looking.look()  # takes nothing twice
        clock.now += HOUR
    assert names(service) == ["mine", "auto-2026-11-22T2320Z", "auto-2026-11-23T0120Z", "auto-2026-11-23T0220Z"]
    assert [each.scheduled for each in service.snapshots.list_snapshots("vol0")] == [False, True, True, True]
    clock.now += 50 * HOUR  # the machine slept; only one snapshot is taken
    looking.look()
    assert names(service) == ["mine", "auto-2026-11-23T0220Z", "auto-2026-11-25T0520Z"]
    clock.now -= 9 * HOUR  # the clock is set back
    looking.look()
    assert len(names(service)) == 3


def test_snapshot_deleted_by_hand_is_not_taken_again(service: Service, clock: Clock) -> None:
    looking = scheduler_of(service, clock)
    looking.look()
    service.snapshots.delete_snapshot("vol0", "auto-2026-11-22T2320Z").wait()
    looking.look()
    assert names(service) == []
    again = scheduler_of(service, clock)  # a daemon that has just started cannot know
    again.look()
    assert names(service) == ["auto-2026-11-22T2320Z"]


def test_failed_schedule_is_an_alert_until_it_succeeds(service: Service, clock: Clock) -> None:
    for number in range(6):
        service.snapshots.create_snapshot("vol0", f"mine{number}")
    looking = scheduler_of(service, clock)
    looking.look()
    (alert,) = [
        each for each in alerts.current(service.inventory, looking.failures, 1, 1) if each.code == "schedule-failed"
    ]
    assert "as many as are allowed" in alert.message
    assert "schedule-failed" in explanations.EXPLANATIONS
    service.snapshots.delete_snapshot("vol0", "mine0").wait()
    looking.look()
    assert names(service)[-1] == "auto-2026-11-22T2320Z"
    assert looking.failures == {}


def test_invalid_snapshot_takes_no_place_and_expires_in_its_time(service: Service, clock: Clock) -> None:
    looking = scheduler_of(service, clock)
    looking.look()
    device = service.inventory.volume("vol0").snapshots[0].write_once
    assert isinstance(device, write_once.WriteOnce)
    device.invalidate("for a test")
    clock.now += HOUR
    looking.look()
    assert names(service) == ["auto-2026-11-22T2320Z", "auto-2026-11-23T0020Z"]
    clock.now += 60 * HOUR
    looking.look()
    assert names(service) == ["auto-2026-11-23T0020Z", "auto-2026-11-25T1220Z"]
