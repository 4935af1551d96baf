# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of schedules: when one is due, and which of its snapshots it keeps.

No function here looks at a clock, and all times are UTC.

A schedule has periods: hours, days, weeks (from Monday), months.  It is due once in each.  Periods that passed while no
daemon ran are skipped; the current one is caught up once.

`keep` has a number for each kind of period.  The schedule looks at that many of the newest periods that have a
snapshot, and keeps the last snapshot of each.  One snapshot may be kept for several kinds, and the newest of all is
always kept.  A snapshot that is not kept now is never kept later, so it does not matter how often this runs.

A clock can be wrong.  So the order in which two snapshots were taken says which is newer, and their dates do not.  A
snapshot that is dated in the future, or in 1970, stops no schedule.  It takes the place of one period, and loses that
place like any other when newer ones have been taken.
"""

from __future__ import annotations

import datetime
import enum
import itertools
from collections.abc import Container, Mapping, Sequence


class Every(enum.Enum):
    """A kind of period."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"

    @property
    def longest(self) -> datetime.timedelta:
        """The length of the longest period."""
        return datetime.timedelta(hours=1) if self is Every.HOURLY else datetime.timedelta(days=_DAYS[self])


_DAYS = {Every.DAILY: 1, Every.WEEKLY: 7, Every.MONTHLY: 31}


def period(moment: datetime.datetime, every: Every) -> datetime.datetime:
    """Return the start of the period that `moment` is in."""
    moment = moment.astimezone(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    if every is Every.HOURLY:
        return moment
    moment = moment.replace(hour=0)
    if every is Every.WEEKLY:
        return moment - datetime.timedelta(days=moment.weekday())
    return moment.replace(day=1) if every is Every.MONTHLY else moment


def due(now: datetime.datetime, every: Every, last: datetime.datetime | None) -> bool:
    """Return whether a snapshot is due; `last` is the moment of the schedule's last snapshot.

    After a clock was set back, `last` lies in the future.  Then a snapshot is due, as in every period other than that
    of `last`.
    """
    return last is None or period(last, every) != period(now, every)


def kept(taken: Sequence[datetime.datetime], keep: Mapping[Every, int]) -> set[int]:
    """Return which of the snapshots that the schedule took are kept, as positions in `taken`.

    `taken` has the moment of each, in the order in which they were taken.
    """
    chosen = {len(taken) - 1} if taken else set()
    for every, count in keep.items():
        periods: set[datetime.datetime] = set()
        for position in range(len(taken) - 1, -1, -1):
            if len(periods) == count:
                break
            start = period(taken[position], every)
            if start not in periods:
                periods.add(start)
                chosen.add(position)
    return chosen


def name(moment: datetime.datetime, others: Container[str] = ()) -> str:
    """Return the name of a snapshot that the schedule takes at this moment, like `auto-2026-11-22T2300Z`.

    `others` are names in use, because the same minute comes again after a clock was set back.
    """
    plain = f"auto-{moment.astimezone(datetime.UTC):%Y-%m-%dT%H%MZ}"
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    return plain if plain not in others else next(other for other in numbered if other not in others)
