# SPDX-License-Identifier: Apache-2.0
"""Schedules: when they are due, what they keep, and what they do to a volume as the hours go by."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends import names as names_of_snapshots
from lun_backends import write_once
from lun_backends.volumes import manifest
from target import explanations
from target.configuration import reader, schedule
from target.configuration.schedule import Every
from target.service import alerts, scheduler, service

HOUR = datetime.timedelta(hours=1)
START = datetime.datetime(2026, 11, 22, 23, 20, tzinfo=datetime.UTC)  # a Sunday

moments = st.lists(
    st.datetimes(datetime.datetime(2024, 1, 1), datetime.datetime(2026, 12, 31), timezones=st.just(datetime.UTC)),
    max_size=60,
)
keeps = st.dictionaries(st.sampled_from(Every), st.integers(0, 12))


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("every", "start"),
    [
        (Every.HOURLY, "2026-11-22T23:00+00:00"),
        (Every.DAILY, "2026-11-22T00:00+00:00"),
        (Every.WEEKLY, "2026-11-16T00:00+00:00"),
        (Every.MONTHLY, "2026-11-01T00:00+00:00"),
    ],
)
def test_periods(every: Every, start: str) -> None:
    assert schedule.period(START, every) == at(start)
    assert schedule.period(START.astimezone(datetime.timezone(5 * HOUR)), every) == at(start)
    assert schedule.due(START, every, [])
    assert not schedule.due(START, every, [at(start)])
    assert schedule.due(START, every, [at(start) - datetime.timedelta(seconds=1)])
    assert not schedule.due(START, every, [START + datetime.timedelta(days=99)])  # the clock was set back


def test_names() -> None:
    assert schedule.name(START) == "auto-2026-11-22T2320Z"
    assert names_of_snapshots.valid(schedule.name(START))


def test_what_is_kept() -> None:
    taken = [START - n * HOUR for n in range(24 * 40)]
    kept = schedule.kept(taken, {Every.HOURLY: 3, Every.DAILY: 3, Every.MONTHLY: 2})
    assert sorted(kept) == [
        at("2026-10-31T23:20+00:00"),  # the last of October
        at("2026-11-20T23:20+00:00"),
        at("2026-11-21T23:20+00:00"),
        at("2026-11-22T21:20+00:00"),
        at("2026-11-22T22:20+00:00"),
        START,
    ]


@given(moments, keeps)
def test_kept_are_some_of_them_and_no_more_than_asked_for(
    taken: list[datetime.datetime], keep: dict[Every, int]
) -> None:
    kept = schedule.kept(taken, keep)
    assert kept <= set(taken)
    assert len(kept) <= max(1, sum(keep.values()))
    assert not taken or max(taken) in kept
    for every, count in keep.items():
        periods = {schedule.period(moment, every) for moment in taken}
        assert len({schedule.period(moment, every) for moment in kept}) >= min(count, len(periods))


@given(moments, keeps)
def test_it_does_not_matter_how_often_it_is_applied(taken: list[datetime.datetime], keep: dict[Every, int]) -> None:
    there: set[datetime.datetime] = set()
    for moment in sorted(taken):
        there = schedule.kept(there | {moment}, keep)
    assert there == schedule.kept(taken, keep)


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


def serve(tmp_path: Path, extra: str) -> service.Service:
    text = f"target: iqn.2026-11.io.wolun:t\nvolumes:\n  - {{name: vol0, lun: 0, size: 1MiB, {extra}}}\n"
    return service.Service(reader.parse(text, "f.yaml"), tmp_path / "state")


@pytest.fixture
def served(tmp_path: Path, clock: Clock) -> Iterator[service.Service]:
    opened = serve(tmp_path, "schedule: hourly, keep: {hourly: 2, daily: 2}, max_snapshots: 6")
    yield opened
    opened.stop()
    opened.close()


def names(served: service.Service) -> list[str]:
    return [each.name for each in served.snapshots("vol0")]


def test_hours_go_by(served: service.Service, clock: Clock) -> None:
    served.create_snapshot("vol0", "mine")
    looking = scheduler.Scheduler(served, clock)
    for _ in range(4):
        looking.look()
        looking.look()  # nothing twice
        clock.now += HOUR
    assert names(served) == ["mine", "auto-2026-11-22T2320Z", "auto-2026-11-23T0120Z", "auto-2026-11-23T0220Z"]
    assert [each.scheduled for each in served.snapshots("vol0")] == [False, True, True, True]
    clock.now += 50 * HOUR  # nobody was there; one is caught up
    looking.look()
    assert names(served) == ["mine", "auto-2026-11-23T0220Z", "auto-2026-11-25T0520Z"]
    clock.now -= 9 * HOUR  # the clock is set back
    looking.look()
    assert len(names(served)) == 3


def test_one_deleted_by_hand_is_not_taken_again(served: service.Service, clock: Clock) -> None:
    looking = scheduler.Scheduler(served, clock)
    looking.look()
    served.delete_snapshot("vol0", "auto-2026-11-22T2320Z").wait()
    looking.look()
    assert names(served) == []
    again = scheduler.Scheduler(served, clock)  # a daemon that has just started cannot know
    again.look()
    assert names(served) == ["auto-2026-11-22T2320Z"]


def test_what_cannot_be_done_is_an_alert_until_it_is(served: service.Service, clock: Clock) -> None:
    for number in range(6):
        served.create_snapshot("vol0", f"mine{number}")
    served.scheduler = looking = scheduler.Scheduler(served, clock)
    looking.look()
    (alert,) = [each for each in alerts.current(served, 1, 1) if each.code == "schedule-failed"]
    assert "as many as are allowed" in alert.message
    assert "schedule-failed" in explanations.EXPLANATIONS
    served.delete_snapshot("vol0", "mine0").wait()
    looking.look()
    assert names(served)[-1] == "auto-2026-11-22T2320Z"
    assert looking.failures == {}


def test_an_invalid_one_takes_no_place_and_goes_in_its_time(served: service.Service, clock: Clock) -> None:
    looking = scheduler.Scheduler(served, clock)
    looking.look()
    device = served.served("vol0").snapshots[0].write_once
    assert isinstance(device, write_once.WriteOnce)
    device.invalidate("for a test")
    clock.now += HOUR
    looking.look()
    assert names(served) == ["auto-2026-11-22T2320Z", "auto-2026-11-23T0020Z"]
    clock.now += 60 * HOUR
    looking.look()
    assert names(served) == ["auto-2026-11-23T0020Z", "auto-2026-11-25T1220Z"]


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("schedule: hourly", "volumes[0].schedule: write which of its snapshots to keep"),
        ("schedule: hourly, keep: {}", "volumes[0].schedule: write which of its snapshots to keep"),
        ("keep: {daily: 1}", "volumes[0].keep: there is no schedule"),
        (
            "schedule: weekly, keep: {daily: 3, weekly: 1}",
            "volumes[0].keep.daily: it does nothing: the schedule is weekly",
        ),
        ("schedule: daily, keep: {daily: 3}, max_snapshots: 3", "volumes[0].max_snapshots: the schedule keeps 3"),
        ("schedule: often, keep: {daily: 3}", "allowed: hourly, daily, weekly, monthly"),
        ("schedule: daily, keep: {daily: -1}", "is too small: at least 0"),
    ],
)
def test_schedules_that_cannot_be(tmp_path: Path, extra: str, problem: str) -> None:
    with pytest.raises(reader.ConfigurationError) as caught:
        serve(tmp_path, extra)
    (only,) = caught.value.problems
    assert problem in str(only)
