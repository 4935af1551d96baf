# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of schedules: when one is due, and which of its snapshots it keeps.

No function here looks at a clock, and all times are UTC.

A schedule has periods: hours, days, weeks (from Monday), months.  It is due once in each.  Periods that passed while no
daemon ran are skipped; the current one is caught up once.

`keep` has a number for each kind of period.  For the newest so many periods of that kind that have a snapshot at all,
the last snapshot of each period is kept.  One snapshot may be kept for several kinds, and the newest of all is always
kept.  A snapshot that was dropped once would not be kept later either, so it does not matter how often this runs.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable, Mapping


class Every(enum.Enum):
    """A kind of period."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


def period(moment: datetime.datetime, every: Every) -> datetime.datetime:
    """Return the start of the period that `moment` is in."""
    moment = moment.astimezone(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    if every is Every.HOURLY:
        return moment
    moment = moment.replace(hour=0)
    if every is Every.WEEKLY:
        return moment - datetime.timedelta(days=moment.weekday())
    return moment.replace(day=1) if every is Every.MONTHLY else moment


def due(now: datetime.datetime, every: Every, taken: Iterable[datetime.datetime]) -> bool:
    """Return whether it is time for a snapshot; `taken` holds the moments of the schedule's earlier snapshots.

    After a clock was set back, some of these lie in the future.  The schedule waits until the clock has passed them.
    """
    return all(period(moment, every) < period(now, every) for moment in taken)


def kept(taken: Iterable[datetime.datetime], keep: Mapping[Every, int]) -> set[datetime.datetime]:
    """Return the moments, out of those at which the schedule took snapshots, whose snapshots are kept."""
    moments = sorted(taken)
    chosen = set(moments[-1:])
    for every, count in keep.items():
        last_of = {period(moment, every): moment for moment in moments}
        chosen.update(last_of[start] for start in sorted(last_of, reverse=True)[:count])
    return chosen


def name(moment: datetime.datetime) -> str:
    """Return the name of a snapshot that the schedule takes at this moment, like `auto-2026-11-22T2300Z`."""
    return f"auto-{moment.astimezone(datetime.UTC):%Y-%m-%dT%H%MZ}"
