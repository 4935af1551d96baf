# SPDX-License-Identifier: Apache-2.0
"""Schedules: when they are due, and which snapshots they keep."""

from __future__ import annotations

import datetime
import os
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends import names
from target.configuration import occurrences, reader, schedule, settings, writer
from target.configuration.schedule import Every, Timing
from tests import peers
from tests.target.configuration.files import HEAD

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
    assert schedule.due(START, Timing(calendar=every.value), None)
    assert not schedule.due(START, Timing(calendar=every.value), at(start))
    assert schedule.due(START, Timing(calendar=every.value), at(start) - datetime.timedelta(seconds=1))


@pytest.mark.parametrize("every", Every)
@pytest.mark.parametrize("wrong", ["2031-01-01T10:05+00:00", "1970-01-01T00:00+00:00"])
def test_wrong_date_of_the_last_snapshot_holds_up_no_schedule(every: Every, wrong: str) -> None:
    assert schedule.due(START, Timing(calendar=every.value), at(wrong))
    assert schedule.due(at(wrong), Timing(calendar=every.value), START)


BERLIN = "Europe/Berlin"


def timing(text: str) -> Timing:
    """Return the value of a volume's key `schedule`; fail unless it is right."""
    file = f"{HEAD}volumes: [{{name: vol0, lun: 0, size: 1MiB, keep: {{daily: 1}}, schedule: {text}}}]"
    (volume,) = reader.parse(file, "f.yaml").volumes
    assert volume.schedule is not None
    return volume.schedule


@pytest.mark.parametrize(
    ("text", "now", "latest", "following"),
    [
        ("hourly", "2026-11-27T12:07Z", "2026-11-27T12:00Z", "2026-11-27T13:00Z"),
        ("{every: 15m}", "2026-11-27T12:07Z", "2026-11-27T12:00Z", "2026-11-27T12:15Z"),
        ("{every: 36h}", "2026-11-27T12:07Z", "2026-11-27T00:00Z", "2026-11-28T12:00Z"),
        ("{at: 02:00, zone: Europe/Berlin}", "2026-11-27T12:07Z", "2026-11-27T01:00Z", "2026-11-28T01:00Z"),
        ("{at: [18:30, 6:00]}", "2026-11-27T12:07Z", "2026-11-27T06:00Z", "2026-11-27T18:30Z"),
        ("{calendar: Mon..Fri 02:00 Europe/Berlin}", "2026-11-27T12:07Z", "2026-11-27T01:00Z", "2026-11-30T01:00Z"),
        (
            "{calendar: '*-*-01 04:30', zone: Asia/Kathmandu}",
            "2026-11-27T12:07Z",
            "2026-10-31T22:45Z",
            "2026-11-30T22:45Z",
        ),
        ("{calendar: 2027-01-01}", "2026-11-27T12:07Z", None, "2027-01-01T00:00Z"),
        ("{calendar: 2020-01-01}", "2026-11-27T12:07Z", "2020-01-01T00:00Z", None),
        # The clock goes from 02:00 to 03:00, and back from 03:00 to 02:00.
        ("{at: 02:30, zone: Europe/Berlin}", "2026-03-28T12:00Z", "2026-03-28T01:30Z", "2026-03-29T01:00Z"),
        ("{at: 02:30, zone: Europe/Berlin}", "2026-03-29T01:00Z", "2026-03-29T01:00Z", "2026-03-30T00:30Z"),
        ("{at: 02:30, zone: Europe/Berlin}", "2026-10-24T12:00Z", "2026-10-24T00:30Z", "2026-10-25T00:30Z"),
        ("{at: 02:30, zone: Europe/Berlin}", "2026-10-25T01:45Z", "2026-10-25T00:30Z", "2026-10-26T01:30Z"),
        ("{calendar: '*:00 Europe/Berlin'}", "2026-10-25T00:30Z", "2026-10-25T00:00Z", "2026-10-25T01:00Z"),
        ("{calendar: '*:00 Europe/Berlin'}", "2026-10-25T01:30Z", "2026-10-25T01:00Z", "2026-10-25T02:00Z"),
        ("{every: 1h}", "2026-10-25T00:30Z", "2026-10-25T00:00Z", "2026-10-25T01:00Z"),
    ],
)
def test_period_begins_when_the_schedule_says(text: str, now: str, latest: str | None, following: str | None) -> None:
    schedule_ = timing(text)
    assert schedule_.latest(at(now)) == (None if latest is None else at(latest))
    assert schedule_.following(at(now)) == (None if following is None else at(following))
    assert reader.parse(writer.render(_settings(text), None, "f.yaml"), "f.yaml") == _settings(text)


def _settings(text: str) -> settings.Settings:
    return reader.parse(
        f"{HEAD}volumes: [{{name: v, lun: 0, size: 1MiB, keep: {{daily: 1}}, schedule: {text}}}]", "f.yaml"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "write one of every, at and calendar"),
        ("{every: 1h, at: 02:00}", "write one of every, at and calendar"),
        ("{every: 90s}", "schedule.every: '90s' is no interval: write minutes, hours or days"),
        ("{at: 24:00}", "'24:00' is no time of the day"),
        ("{at: 0200}", "'0200' is no time of the day"),
        ("{at: 02:00, zone: Europe/Berlim}", "schedule.zone: 'Europe/Berlim' is no time zone"),
        ("{at: 02:00, zone: ../Berlin}", "'../Berlin' is no time zone"),
        ("{every: 1h, zone: Europe/Berlin}", "schedule.zone: it does nothing with every"),
        (
            "{calendar: 02:00 UTC, zone: Europe/Berlin}",
            "schedule.zone: the calendar expression names a time zone already",
        ),
        ("{calendar: Mon 02:00 Europe/Berlim}", "'Europe/Berlim' is no time zone"),
        ("{calendar: Foo 02:00}", "'Foo 02:00' is no calendar expression, bad day-of-week"),
        ("{calendar: 02:61}", "bad minute"),
        ("{calendar: ''}", "is no calendar expression"),
        ("{calendar: '*-02-30'}", "'*-02-30' never comes"),
        ("{calendar: '*:*:0/5'}", "comes more than once in a minute"),
        (f"{{calendar: '{'1' * 300}'}}", "it is too long"),
        ("{hourly: true}", "unknown key; allowed: every, at, calendar, zone"),
        ("dayly", "'dayly' is unknown; did you mean daily? allowed: hourly"),
    ],
)
def test_wrong_schedule_is_explained(text: str, problem: str) -> None:
    with pytest.raises(reader.ConfigurationError) as refused:
        _settings(text)
    assert problem in str(refused.value)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(
    "expression",
    ["Mon..Fri 02:00", "*:0/20", "Sat,Sun *-*-1..7 18:00", "*-02~03 01:00", "quarterly", "*-2,4-* 23:59", "weekly"],
)
def test_systemd_reads_calendar_expressions_alike(expression: str) -> None:
    base = "2026-11-27 12:07:00 UTC"
    command = [
        peers.require("systemd-analyze"),
        "calendar",
        "--iterations=4",
        f"--base-time={base}",
        f"{expression} UTC",
    ]
    said = subprocess.run(
        command, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True, check=True
    )
    found = re.findall(r"(?:Next elapse|Iter[a-z.]* #\d+): \w{3} (\S+ \S+) UTC", said.stdout)
    schedule_, moment, mine = Timing(calendar=expression), at("2026-11-27T12:07Z"), []
    for _ in range(4):
        following = schedule_.following(moment)
        assert following is not None
        mine.append(f"{following:%Y-%m-%d %H:%M:%S}")
        moment = following
    assert mine == found


@given(
    st.sampled_from(["Mon..Fri 02:00", "*:0/20", "02:30", "*-*-29 01:30", "Sun 3:00", "0/5:15"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"]),
    st.datetimes(datetime.datetime(2025, 1, 1), datetime.datetime(2027, 12, 31), timezones=st.just(datetime.UTC)),
)
def test_moment_is_between_its_period_and_the_next(expression: str, zone: str, moment: datetime.datetime) -> None:
    """Nothing lies between them, seen from either end, also where clocks change."""
    fresh, other = (occurrences.Calendar(expression, occurrences.zone(zone)) for _ in range(2))
    latest, following = fresh.latest(moment), fresh.following(moment)
    assert latest is not None
    assert following is not None
    assert latest <= moment < following
    assert fresh.following(latest) == following
    assert other.latest(following) == following
    assert other.latest(following - datetime.timedelta(seconds=1)) == latest


@given(st.text(alphabet="0123456789*:-./,~ MonSat", max_size=30))
def test_any_text_is_a_calendar_or_refused(text: str) -> None:
    try:
        calendar = occurrences.Calendar(text, occurrences.zone("UTC"))
    except ValueError:
        return
    latest = calendar.latest(START)
    assert latest is None or latest <= START


def test_hours_that_come_twice_are_two_periods() -> None:
    """The days of `keep` are those of the schedule's zone, and an hour is an hour."""
    first, second = at("2026-10-25T00:10Z"), at("2026-10-25T01:10Z")
    assert schedule.period(first, Every.HOURLY, BERLIN) != schedule.period(second, Every.HOURLY, BERLIN)
    assert schedule.period(at("2026-10-24T22:30Z"), Every.DAILY, BERLIN) == at("2026-10-24T22:00Z")
    assert schedule.period(at("2026-11-01T22:59Z"), Every.WEEKLY, BERLIN) == at("2026-10-25T23:00Z")


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
