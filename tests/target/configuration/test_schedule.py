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
def test_periods(every: Every, start: str) -> None:
    assert schedule.period(START, every) == at(start)
    assert schedule.period(START.astimezone(datetime.timezone(5 * HOUR)), every) == at(start)
    assert schedule.due(START, every, [])
    assert not schedule.due(START, every, [at(start)])
    assert schedule.due(START, every, [at(start) - datetime.timedelta(seconds=1)])
    assert not schedule.due(START, every, [START + datetime.timedelta(days=99)])  # the clock was set back


def test_name_is_a_valid_snapshot_name() -> None:
    assert schedule.name(START) == "auto-2026-11-22T2320Z"
    assert names.valid(schedule.name(START))


def test_last_snapshot_of_each_period_is_kept() -> None:
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
def test_no_more_are_kept_than_asked_for(taken: list[datetime.datetime], keep: dict[Every, int]) -> None:
    kept = schedule.kept(taken, keep)
    assert kept <= set(taken)
    assert len(kept) <= max(1, sum(keep.values()))
    assert not taken or max(taken) in kept
    for every, count in keep.items():
        periods = {schedule.period(moment, every) for moment in taken}
        assert len({schedule.period(moment, every) for moment in kept}) >= min(count, len(periods))


@given(moments, keeps)
def test_result_does_not_depend_on_how_often_it_is_applied(
    taken: list[datetime.datetime], keep: dict[Every, int]
) -> None:
    remaining: set[datetime.datetime] = set()
    for moment in sorted(taken):
        remaining = schedule.kept(remaining | {moment}, keep)
    assert remaining == schedule.kept(taken, keep)
