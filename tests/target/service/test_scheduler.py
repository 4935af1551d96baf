# SPDX-License-Identifier: Apache-2.0
"""The thread for all schedules: each hour has its snapshot, and no volume waits for another."""

from __future__ import annotations

import threading

import pytest

from target.configuration import schedule
from target.service import scheduler as module
from target.service.schedule_keeper import ScheduleKeeper
from target.service.service import Service
from tests.target.service.conftest import Serve
from tests.target.service.scheduling import HOUR, Clock, look, names, scheduler_of, until

KEYS = "size: 1MiB, schedule: hourly, keep: {hourly: 1}"
TWO = f"  - {{name: slow, lun: 0, {KEYS}}}\n  - {{name: vol0, lun: 1, {KEYS}}}\n"


@pytest.fixture
def two(serve: Serve, clock: Clock) -> Service:
    """Return a service of the volumes slow and vol0, each with an hourly schedule that keeps one snapshot."""
    return serve(TWO)


def test_each_hour_has_one_snapshot_and_old_ones_are_deleted(serve: Serve, clock: Clock) -> None:
    service = serve("  - {name: vol0, lun: 0, size: 1MiB, schedule: hourly, keep: {hourly: 2, daily: 2}}\n")
    service.snapshots.create_snapshot("vol0", "mine")
    scheduler = scheduler_of(service, clock)
    for _ in range(4):
        look(scheduler)
        look(scheduler)  # takes nothing twice
        clock.now += HOUR
    assert names(service) == ["mine", "auto-2026-11-22T2320Z", "auto-2026-11-23T0120Z", "auto-2026-11-23T0220Z"]
    assert [snapshot.scheduled for snapshot in service.snapshots.list_snapshots("vol0")] == [False, True, True, True]
    clock.now += 50 * HOUR  # the machine slept; only one snapshot is taken
    look(scheduler)
    assert names(service) == ["mine", "auto-2026-11-23T0220Z", "auto-2026-11-25T0520Z"]


@pytest.mark.parametrize("step", ["create_snapshot", "delete_snapshot"])
def test_slow_volume_delays_no_other(
    two: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, step: str
) -> None:
    """One volume's disk hangs while its schedule takes or deletes a snapshot.  The other's schedule and requests continue."""
    scheduler, disk, stuck = scheduler_of(two, clock), threading.Event(), threading.Event()
    request.addfinalizer(scheduler.close)
    request.addfinalizer(disk.set)
    slow = two.inventory.volume("slow")
    work = getattr(slow, step)

    def hang(*args: object, **options: object) -> object:
        stuck.set()
        disk.wait()
        return work(*args, **options)

    look(scheduler)
    clock.now += HOUR
    monkeypatch.setattr(slow, step, hang)

    def as_far_as_it_goes() -> bool:
        scheduler.look()
        return stuck.is_set() and names(two) == ["auto-2026-11-23T0020Z"]

    until(as_far_as_it_goes)
    two.snapshots.create_snapshot("vol0", "by-hand")
    two.snapshots.delete_snapshot("vol0", "by-hand").wait()
    assert names(two) == ["auto-2026-11-23T0020Z"]


def test_long_deletion_does_not_delay_the_next_snapshot(
    two: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    scheduler, disk = scheduler_of(two, clock), threading.Event()
    request.addfinalizer(scheduler.close)
    request.addfinalizer(disk.set)
    monkeypatch.setattr(two.inventory.volume("vol0"), "delete_snapshot", lambda *_, **__: disk.wait())

    def taken() -> bool:
        scheduler.look()
        return schedule.name(clock.now) in names(two)

    for _ in range(3):
        until(taken)
        clock.now += HOUR
    assert len(names(two)) == 3


def test_volume_that_is_not_served_has_no_kept_schedule(two: Service, clock: Clock) -> None:
    scheduler = scheduler_of(two, clock)
    look(scheduler)
    assert scheduler.unkept() == {}
    two.inventory.remove_volume(two.inventory.settings.volumes[0])
    look(scheduler)
    assert scheduler.unkept() == {"slow": "the volume is not served"}
    two.inventory.add_volume(two.inventory.settings.volumes[0])
    clock.now += HOUR
    look(scheduler)
    assert scheduler.unkept() == {}
    assert names(two, "slow") == ["auto-2026-11-23T0020Z"]


def test_bug_in_a_look_is_an_alert_of_each_schedule_until_a_look_succeeds(
    two: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    scheduler = scheduler_of(two, clock)
    request.addfinalizer(scheduler.close)
    with monkeypatch.context() as broken:
        broken.delattr(ScheduleKeeper, "look")
        scheduler.start()
        until(lambda: "unexpected error: AttributeError" in scheduler.unkept().get("slow", ""))
        assert set(scheduler.unkept()) == {"slow", "vol0"}
    until(lambda: scheduler.unkept() == {})
    until(lambda: names(two) == ["auto-2026-11-22T2320Z"])
