# SPDX-License-Identifier: Apache-2.0
"""The keeper of one volume's schedule: any failure is reported, and ends by itself."""

from __future__ import annotations

import threading

import pytest

from lun_backends import write_once
from target.service import alerts, problems, schedule_keeper
from target.service.jobs import Job
from target.service.service import Service
from tests.target.service.conftest import Serve
from tests.target.service.scheduling import HOUR, START, Clock, look, names, scheduler_of

CHUNK = 64 << 10


def serve_one(serve: Serve, extra: str) -> Service:
    return serve(f"  - {{name: vol0, lun: 0, size: 1MiB, schedule: hourly, {extra}}}\n")


def test_snapshot_deleted_by_hand_is_not_taken_again(serve: Serve, clock: Clock) -> None:
    service = serve_one(serve, "keep: {hourly: 2}")
    scheduler = scheduler_of(service, clock)
    look(scheduler)
    service.snapshots.delete_snapshot("vol0", "auto-2026-11-22T2320Z").wait()
    look(scheduler)
    assert names(service) == []
    again = scheduler_of(service, clock)  # a daemon that has just started cannot know
    look(again)
    assert names(service) == ["auto-2026-11-22T2320Z"]


def test_schedule_that_fails_is_an_alert_until_it_succeeds(
    serve: Serve, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve_one(serve, "keep: {hourly: 1}, max_snapshots: 2")
    for number in range(2):
        service.snapshots.create_snapshot("vol0", f"mine{number}")
    scheduler = scheduler_of(service, clock)
    look(scheduler)
    current = alerts.current(service.inventory, scheduler.unkept(), 1, 1, clock.now)
    (alert,) = [alert for alert in current if alert.code == "schedule-failed"]
    assert "as many as are allowed" in alert.message
    assert len([record for record in caplog.records if "is not kept" in record.message]) == 1
    service.snapshots.delete_snapshot("vol0", "mine0").wait()
    look(scheduler)
    assert names(service) == ["mine1", "auto-2026-11-22T2320Z"]
    assert scheduler.unkept() == {}


def test_old_snapshots_are_deleted_even_if_no_new_one_can_be_taken(serve: Serve, clock: Clock) -> None:
    """The snapshots have reached their limit.  The administrator keeps fewer, and that is enough."""
    service = serve_one(serve, "limit: 192KiB, keep: {hourly: 4}")
    scheduler, device = scheduler_of(service, clock), service.inventory.volume("vol0").device
    device.writev(0, [memoryview(bytes([1]) * 3 * CHUNK)])  # zeroes would take no space
    for chunk in range(3):
        look(scheduler)
        device.writev(chunk * CHUNK, [memoryview(bytes([7]) * 512)])
        clock.now += HOUR
    look(scheduler)
    assert names(service) == ["auto-2026-11-22T2320Z", "auto-2026-11-23T0020Z", "auto-2026-11-23T0120Z"]
    assert "196608 of 196608 bytes" in scheduler.unkept()["vol0"]
    again = serve_one(serve, "limit: 192KiB, keep: {hourly: 2}")
    scheduler = scheduler_of(again, clock)
    look(scheduler)
    assert names(again) == ["auto-2026-11-23T0120Z", "auto-2026-11-23T0220Z"]
    assert scheduler.unkept() == {}


def test_displaced_snapshot_is_deleted_first_at_max_snapshots(serve: Serve, clock: Clock) -> None:
    """Four are allowed: three of the schedule and one that was taken by hand."""
    service = serve_one(serve, "keep: {hourly: 3}, max_snapshots: 4")
    service.snapshots.create_snapshot("vol0", "before-upgrade")
    scheduler = scheduler_of(service, clock)
    for _ in range(5):
        look(scheduler)
        assert scheduler.unkept() == {}
        clock.now += HOUR
    assert names(service) == [
        "before-upgrade",
        "auto-2026-11-23T0120Z",
        "auto-2026-11-23T0220Z",
        "auto-2026-11-23T0320Z",
    ]


def test_snapshot_with_a_future_date_stops_nothing(serve: Serve, clock: Clock) -> None:
    service = serve_one(serve, "keep: {hourly: 2}")
    clock.now = START + 40_000 * HOUR
    look(scheduler_of(service, clock))
    clock.now = START
    scheduler = scheduler_of(service, clock)
    look(scheduler)
    assert names(service) == ["auto-2031-06-16T1520Z", "auto-2026-11-22T2320Z"]
    clock.now += HOUR
    look(scheduler)
    assert names(service) == ["auto-2026-11-22T2320Z", "auto-2026-11-23T0020Z"]
    assert scheduler.unkept() == {}


def test_clock_that_was_set_back_gives_names_a_number(serve: Serve, clock: Clock) -> None:
    service = serve_one(serve, "keep: {hourly: 4}")
    scheduler = scheduler_of(service, clock)
    look(scheduler)
    clock.now += HOUR
    look(scheduler)
    clock.now -= HOUR
    look(scheduler)
    assert names(service) == ["auto-2026-11-23T0020Z", "auto-2026-11-22T2320Z-2"]  # each hour's last one
    assert scheduler.unkept() == {}


def test_invalid_snapshot_takes_no_place_and_expires_like_a_good_one(serve: Serve, clock: Clock) -> None:
    service = serve_one(serve, "keep: {hourly: 2, daily: 2}")
    scheduler = scheduler_of(service, clock)
    look(scheduler)
    device = service.inventory.volume("vol0").snapshots[0].write_once
    assert isinstance(device, write_once.WriteOnce)
    device.invalidate("for a test")
    clock.now += HOUR
    look(scheduler)
    assert names(service) == ["auto-2026-11-22T2320Z", "auto-2026-11-23T0020Z"]
    clock.now += 60 * HOUR
    look(scheduler)
    assert names(service) == ["auto-2026-11-23T0020Z", "auto-2026-11-25T1220Z"]


def test_snapshot_whose_taking_hangs_is_reported(
    serve: Serve, clock: Clock, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    service = serve_one(serve, "keep: {hourly: 2}")
    scheduler, disk = scheduler_of(service, clock), threading.Event()
    request.addfinalizer(scheduler.close)
    request.addfinalizer(disk.set)
    owner = service.inventory.volume("vol0")
    create = owner.create_snapshot

    def hang(*args: object, **options: object) -> object:
        disk.wait()
        return create(*args, **options)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(owner, "create_snapshot", hang)
    scheduler.look()
    assert scheduler.unkept() == {}
    monkeypatch.setattr(schedule_keeper, "GRACE", 0.0)
    assert scheduler.unkept() == {"vol0": "a snapshot has been due for 0 min, and is not taken yet"}
    disk.set()
    look(scheduler)
    assert scheduler.unkept() == {}
    assert names(service) == ["auto-2026-11-22T2320Z"]


def test_snapshot_that_cannot_be_deleted_does_not_keep_others(
    serve: Serve, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve_one(serve, "keep: {hourly: 9}")
    scheduler = scheduler_of(service, clock)
    for _ in range(4):
        look(scheduler)
        clock.now += HOUR
    service = serve_one(serve, "keep: {hourly: 1}")
    scheduler, delete = scheduler_of(service, clock), service.snapshots.delete_snapshot

    def refuse_the_first(volume: str, name: str) -> Job:
        if name == "auto-2026-11-22T2320Z":
            raise problems.refused(f"{volume}@{name}", "for a test", "wait")
        return delete(volume, name)

    with monkeypatch.context() as broken:
        broken.setattr(service.snapshots, "delete_snapshot", refuse_the_first)
        look(scheduler)
    assert names(service) == ["auto-2026-11-22T2320Z", "auto-2026-11-23T0320Z"]
    assert scheduler.unkept() == {"vol0": "vol0@auto-2026-11-22T2320Z: for a test"}
    look(scheduler)
    assert names(service) == ["auto-2026-11-23T0320Z"]
    assert scheduler.unkept() == {}


def test_bug_is_reported_and_does_not_end_the_keeper(
    serve: Serve, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve_one(serve, "keep: {hourly: 1}")
    scheduler = scheduler_of(service, clock)
    with monkeypatch.context() as broken:
        broken.delattr(service.snapshots.__class__, "create_snapshot")
        look(scheduler)
    assert "unexpected error: AttributeError" in scheduler.unkept()["vol0"]
    look(scheduler)
    assert scheduler.unkept() == {}
