# SPDX-License-Identifier: Apache-2.0
"""Schedules: when they are due, and which snapshots they keep."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends import names
from target.configuration import schedule
from target.configuration.schedule import Every

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
def test_each_period_begins_at_its_first_moment_in_utc(every: Every, start: str) -> None:
    assert schedule.period(START, every) == at(start)
    assert schedule.period(START.astimezone(datetime.timezone(5 * HOUR)), every) == at(start)
    assert schedule.due(START, every, None)
    assert not schedule.due(START, every, at(start))
    assert schedule.due(START, every, at(start) - datetime.timedelta(seconds=1))


@pytest.mark.parametrize("every", Every)
@pytest.mark.parametrize("wrong", ["2031-01-01T10:05+00:00", "1970-01-01T00:00+00:00"])
def test_wrong_date_of_the_last_snapshot_holds_up_no_schedule(every: Every, wrong: str) -> None:
    assert schedule.due(START, every, at(wrong))
    assert schedule.due(at(wrong), every, START)


def test_name_is_a_valid_snapshot_name() -> None:
    assert schedule.name(START) == "auto-2026-11-22T2320Z"
    assert names.valid(schedule.name(START))


def test_name_that_is_taken_gets_a_number() -> None:
    assert schedule.name(START, {"auto-2026-11-22T2320Z"}) == "auto-2026-11-22T2320Z-2"
    assert schedule.name(START, {"auto-2026-11-22T2320Z", "auto-2026-11-22T2320Z-2"}) == "auto-2026-11-22T2320Z-3"
    assert names.valid(schedule.name(START, {schedule.name(START)}))


def kept(taken: list[datetime.datetime], keep: dict[Every, int]) -> list[datetime.datetime]:
    return [taken[position] for position in sorted(schedule.kept(taken, keep))]


def test_last_snapshot_of_each_period_is_kept() -> None:
    taken = [START - n * HOUR for n in reversed(range(24 * 40))]
    assert kept(taken, {Every.HOURLY: 3, Every.DAILY: 3, Every.MONTHLY: 2}) == [
        at("2026-10-31T23:20+00:00"),  # the last of October
        at("2026-11-20T23:20+00:00"),
        at("2026-11-21T23:20+00:00"),
        at("2026-11-22T21:20+00:00"),
        at("2026-11-22T22:20+00:00"),
        START,
    ]


def test_snapshot_with_a_future_date_makes_way_for_newer_ones() -> None:
    """By its date it would be the newest for years, and each right one would be deleted as soon as it is taken."""
    taken = [START - HOUR, START + 40_000 * HOUR, START]
    assert kept(taken, {Every.HOURLY: 1}) == [START]
    assert kept(taken, {Every.HOURLY: 2}) == taken[1:]
    assert kept([*taken, START + HOUR], {Every.HOURLY: 2}) == [START, START + HOUR]


def test_clock_that_is_wrong_at_each_start_costs_one_place_and_not_the_past() -> None:
    """A machine without a battery starts in 1970, takes a snapshot, and then learns the time."""
    taken: list[datetime.datetime] = []
    for day in range(30):
        taken += [at("1970-01-01T00:01+00:00") + day * datetime.timedelta(seconds=1), START + 24 * day * HOUR]
    left = kept(taken, {Every.DAILY: 5})
    assert [moment for moment in left if moment.year > 2000] == taken[1::2][-4:]
    assert len(left) == 5


@given(moments, keeps)
def test_at_most_the_configured_number_is_kept(taken: list[datetime.datetime], keep: dict[Every, int]) -> None:
    left = kept(taken, keep)
    assert len(left) <= max(1, sum(keep.values()))
    assert not taken or left[-1] == taken[-1]
    for every, count in keep.items():
        periods = {schedule.period(moment, every) for moment in taken}
        assert len({schedule.period(moment, every) for moment in left}) >= min(count, len(periods))


@given(moments, keeps)
def test_result_does_not_depend_on_how_often_it_is_applied(
    taken: list[datetime.datetime], keep: dict[Every, int]
) -> None:
    remaining: list[datetime.datetime] = []
    for moment in taken:
        remaining = kept([*remaining, moment], keep)
    assert remaining == kept(taken, keep)
