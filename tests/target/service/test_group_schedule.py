# SPDX-License-Identifier: Apache-2.0
"""Groups of volumes with a schedule: all or none at one moment, beside the schedules of their own volumes."""

from __future__ import annotations

import pytest

from target import show
from target.service.service import Service
from tests.target.service.conftest import Serve
from tests.target.service.scheduling import HOUR, Clock, look, names, scheduler_of

VOLUMES = """\
  - {name: data, lun: 0, size: 1MiB, schedule: daily, keep: {daily: 1}}
  - {name: log, lun: 1, size: 1MiB}
"""
GROUPS = "groups: [{name: db, volumes: [data, log], schedule: hourly, keep: {hourly: 2}}]\n"


@pytest.fixture
def service(serve: Serve, clock: Clock) -> Service:
    return serve(VOLUMES + GROUPS)


def test_each_volume_of_the_group_has_the_snapshots_and_keeps_its_own(service: Service, clock: Clock) -> None:
    scheduler = scheduler_of(service, clock)
    for _ in range(4):
        look(scheduler)
        look(scheduler)  # takes nothing twice
        clock.now += HOUR
    group = ["auto-db-2026-11-23T0120Z", "auto-db-2026-11-23T0220Z"]
    assert names(service, "log") == group
    assert sorted(names(service, "data")) == ["auto-2026-11-23T0020Z", *group]
    assert scheduler.unkept() == {}
    again = scheduler_of(service, clock)  # a new daemon knows what was taken
    clock.now -= HOUR
    look(again)
    assert names(service, "log") == group


def test_snapshots_of_a_group_are_of_one_moment(service: Service, clock: Clock) -> None:
    look(scheduler_of(service, clock))
    records = [
        snapshot
        for volume in ("data", "log")
        for snapshot in service.inventory.volume(volume).snapshots
        if snapshot.labels.get("group") == "db"
    ]
    assert len(records) == 2
    assert all(record.scheduled for record in records)
    assert records[0].held_seconds == records[1].held_seconds


def test_group_with_a_volume_that_fails_takes_none(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole group is tried again, and the schedule of its other volume goes on."""
    scheduler = scheduler_of(service, clock)
    service.snapshots.create_snapshot(
        "log", "auto-db-2026-11-22T2320Z"
    )  # the name is taken: the group gets another one
    look(scheduler)
    assert names(service, "log")[-1] == "auto-db-2026-11-22T2320Z-2"
    service.inventory.remove_volume(service.inventory.settings.volumes[1])
    clock.now += HOUR
    look(scheduler)
    assert scheduler.unkept() == {"group db": "the volume log is not served"}
    assert "auto-db-2026-11-23T0020Z" not in names(service, "data")
    service.inventory.add_volume(service.inventory.settings.volumes[1])
    look(scheduler)
    assert names(service, "data")[-1] == names(service, "log")[-1] == "auto-db-2026-11-23T0020Z"
    assert scheduler.unkept() == {}


def test_schedules_say_when_they_are_due_next(service: Service, clock: Clock) -> None:
    scheduler = scheduler_of(service, clock)
    before = {schedule.subject: schedule for schedule in scheduler.schedules()}
    assert before["db"].next == "2026-11-22T23:20:00.000Z"  # now
    look(scheduler)
    shown = list(scheduler.schedules())
    assert [(schedule.kind, schedule.subject, schedule.next, schedule.when) for schedule in shown] == [
        ("snapshots", "data", "2026-11-23T00:00:00.000Z", "daily UTC"),
        ("group", "db", "2026-11-23T00:00:00.000Z", "hourly UTC"),
    ]
    assert [schedule.last for schedule in shown] != [None, None]
    assert "2026-11-23 00:00:00 UTC" in show.schedules(shown)
