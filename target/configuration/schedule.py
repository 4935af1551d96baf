# SPDX-License-Identifier: Apache-2.0
"""Schedules: when one is due, and which of its snapshots it keeps.  No function here looks at a clock.

A schedule has periods.  Each begins at a moment that `Timing` names: `hourly`, `daily`, `weekly` (on Monday) and `monthly` in
UTC, every so many minutes or hours, at times of the day, or at the occurrences of a calendar expression.  It is due once
in each period.  Periods that passed while no daemon ran are skipped; the current one is caught up once.

`keep` has a number for each kind of period: hours, days, weeks and months in the schedule's time zone.  The schedule
looks at that many of the newest periods that have a snapshot, and keeps the last snapshot of each.  One snapshot may be kept
for several kinds, and the newest of all is always kept.  A snapshot that is not kept now is never kept later, so it does not
matter how often this runs.

A clock can be wrong.  So the order in which two snapshots were taken says which is newer, and their dates do not.  A
snapshot that is dated in the future, or in 1970, stops no schedule.  It takes the place of one period, and loses that
place like any other when newer ones have been taken.
"""

from __future__ import annotations

import datetime
import difflib
import enum
import functools
import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pydantic

from target.configuration import occurrences, values
from target.configuration.values import Problems


class Every(enum.Enum):
    """A kind of period."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


UTC = "UTC"

_EVERY = re.compile(r"([1-9][0-9]{0,3})(m|h|d)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):[0-5][0-9]")


def _interval(text: str) -> str:
    if not _EVERY.fullmatch(text):
        raise ValueError(f"{text!r} is no interval: write minutes, hours or days, like 15m, 4h or 1d")
    return text


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no time of the day: write one like 02:00 or 18:30")
    return text


def _zone(name: str) -> str:
    occurrences.zone(name)
    return name


def _expression(text: str) -> str:
    words, zone = _split(text)
    _calendar(words, zone or UTC)
    return text


def _split(text: str) -> tuple[str, str | None]:
    """Return a calendar expression without its time zone, and the name of the zone.  Raise ValueError."""
    *words, last = text.split() or [""]
    if not words or not last[0].isalpha():
        return text, None
    try:
        occurrences.zone(last)
    except ValueError:
        if "/" in last:
            raise
        return text, None
    return " ".join(words), last


@functools.lru_cache(maxsize=1024)
def _calendar(expression: str, zone: str) -> occurrences.Calendar:
    """Return the calendar, which remembers the period that it met last.  Raise ValueError."""
    return occurrences.Calendar(expression, occurrences.zone(zone))


Times = Annotated[
    tuple[Annotated[str, pydantic.AfterValidator(_time)], ...],
    pydantic.BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    pydantic.PlainSerializer(lambda value: value[0] if len(value) == 1 else value),
    pydantic.WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{_TIME.pattern}$"},
                {"type": "array", "items": {"type": "string", "pattern": f"^{_TIME.pattern}$"}},
            ]
        }
    ),
]


class Timing(values.Group):
    """When something happens by itself: one of `every`, `at` and `calendar`, or just `hourly`, `daily`, `weekly` or `monthly`, in UTC.

    A time that the clock skips for summer time stands for the moment of the change, and one that comes twice for the first of
    the two. An hour that comes twice counts twice for what happens in each hour.
    """

    every: (
        Annotated[
            str,
            pydantic.AfterValidator(_interval),
            pydantic.Field(json_schema_extra={"pattern": f"^{_EVERY.pattern}$"}),
        ]
        | None
    ) = None
    """The time from one to the next, like 15m, 4h or 1d, counted from midnight UTC of 1 January 1970."""

    at: Times = ()
    """The times of the day, like 02:00 or [06:00, "18:30"]."""

    calendar: Annotated[str, pydantic.AfterValidator(_expression)] | None = None
    """A calendar expression in the form of systemd.time(7), like `Mon..Fri 02:00 Europe/Berlin` or `*-*-01 04:30`. It comes at most once in
    a minute."""

    zone: Annotated[str, pydantic.AfterValidator(_zone)] = UTC
    """The time zone of `at` and `calendar`, like Europe/Berlin."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        """Take `hourly` for `{calendar: hourly}`."""
        if not isinstance(value, str):
            return value
        names = [every.value for every in Every]
        if value not in names:
            close = difflib.get_close_matches(value, names, n=1, cutoff=0.6)
            meant = f" did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"{value!r} is unknown;{meant} allowed: {', '.join(names)}, or a group with every, at or calendar"
            )
        return {"calendar": value}

    @pydantic.model_serializer(mode="wrap")
    def _to_name(self, handler: pydantic.SerializerFunctionWrapHandler) -> Any:
        """Write `{calendar: hourly}` as `hourly`."""
        return self.calendar if self.kind is not None else handler(self)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: Any, handler: pydantic.GetJsonSchemaHandler
    ) -> pydantic.json_schema.JsonSchemaValue:
        group = handler.resolve_ref_schema(handler(core))
        return {
            "description": group["description"],
            "anyOf": [{"enum": [every.value for every in Every]}, group],
        }

    @property
    def kind(self) -> Every | None:
        """The kind of its periods, if it has one of the plain names in UTC."""
        plain = self.calendar in [every.value for every in Every] and self.zone == UTC
        return Every(self.calendar) if plain else None

    @property
    def zone_name(self) -> str:
        """The name of its time zone."""
        return (_split(self.calendar)[1] if self.calendar else None) or self.zone

    def __str__(self) -> str:
        """Return it on one line, for people."""
        if self.every is not None:
            return f"every {self.every}"
        words = f"at {', '.join(self.at)}" if self.at else _split(self.calendar or "")[0]
        return f"{words} {self.zone_name}"

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        given = [key for key in ("every", "at", "calendar") if getattr(self, key)]
        if len(given) != 1:
            return {(): "write one of every, at and calendar"}
        if self.zone != UTC and self.every is not None:
            return {("zone",): "it does nothing with every: intervals go on at the change of summer time"}
        if self.zone != UTC and self.calendar is not None and _split(self.calendar)[1] is not None:
            return {("zone",): "the calendar expression names a time zone already: write one of them"}
        return {}

    def latest(self, moment: datetime.datetime) -> datetime.datetime | None:
        """Return the start of the period that a moment is in, in UTC; None if it is before all of them."""
        if self.every is not None:
            return self._grid(moment)
        found = [calendar.latest(moment) for calendar in self._calendars()]
        return max((start for start in found if start is not None), default=None)

    def following(self, moment: datetime.datetime) -> datetime.datetime | None:
        """Return the start of the next period, in UTC; None if there is none."""
        if self.every is not None:
            return self._grid(moment) + self._step()
        found = [calendar.following(moment) for calendar in self._calendars()]
        return min((start for start in found if start is not None), default=None)

    def longest(self, moment: datetime.datetime) -> datetime.timedelta | None:
        """Return the length of the longest of the periods after a moment; None if they end."""
        if self.every is not None:
            return self._step()
        if self.kind is Every.MONTHLY:
            return datetime.timedelta(days=31)
        longest = [calendar.longest(moment) for calendar in self._calendars()]
        return min((gap for gap in longest if gap is not None), default=None)

    def _calendars(self) -> Iterator[occurrences.Calendar]:
        for words in self.at or (_split(self.calendar or "")[0],):
            yield _calendar(words, self.zone_name)

    def _step(self) -> datetime.timedelta:
        match = _EVERY.fullmatch(self.every or "")
        assert match is not None
        return datetime.timedelta(**{_UNITS[match[2]]: int(match[1])})

    def _grid(self, moment: datetime.datetime) -> datetime.datetime:
        start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return start + (moment - start) // self._step() * self._step()


def period(moment: datetime.datetime, every: Every, zone: str = UTC) -> datetime.datetime:
    """Return the start of the period that `moment` is in, as hours, days, weeks and months are in a time zone.  It is in UTC."""
    there = moment.astimezone(occurrences.zone(zone)).replace(minute=0, second=0, microsecond=0)
    if every is not Every.HOURLY:
        there = there.replace(hour=0, fold=0)
    if every is Every.WEEKLY:
        there -= datetime.timedelta(days=there.weekday())
    elif every is Every.MONTHLY:
        there = there.replace(day=1)
    return there.astimezone(datetime.UTC)


def due(now: datetime.datetime, timing: Timing, last: datetime.datetime | None) -> bool:
    """Return whether a snapshot is due; `last` is the moment of the schedule's last snapshot.

    After a clock was set back, `last` lies in the future.  Then a snapshot is due, as in every period other than that
    of `last`.
    """
    start = timing.latest(now)
    return start is not None and (last is None or timing.latest(last) != start)


def soonest(now: datetime.datetime, timing: Timing, last: datetime.datetime | None) -> datetime.datetime | None:
    """Return when the next snapshot is due: `now` if one is due; None if none ever will be."""
    return now if due(now, timing, last) else timing.following(now)


def kept(taken: Sequence[datetime.datetime], keep: Mapping[Every, int], zone: str = UTC) -> set[int]:
    """Return which of the snapshots that the schedule took are kept, as positions in `taken`.

    `taken` has the moment of each, in the order in which they were taken.  `zone` is the schedule's time zone.
    """
    chosen = {len(taken) - 1} if taken else set()
    for every, count in keep.items():
        periods: set[datetime.datetime] = set()
        for position in range(len(taken) - 1, -1, -1):
            if len(periods) == count:
                break
            start = period(taken[position], every, zone)
            if start not in periods:
                periods.add(start)
                chosen.add(position)
    return chosen


def name(moment: datetime.datetime, others: Container[str] = (), prefix: str = "auto") -> str:
    """Return the name of a snapshot that the schedule takes at this moment, like `auto-2026-11-22T2300Z`.

    `others` are names in use, because the same minute comes again after a clock was set back.
    """
    plain = f"{prefix}-{moment.astimezone(datetime.UTC):%Y-%m-%dT%H%MZ}"
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    return plain if plain not in others else next(other for other in numbered if other not in others)
