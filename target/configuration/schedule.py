# SPDX-License-Identifier: Apache-2.0
"""When a schedule takes a snapshot, and which of its snapshots it keeps.  Nothing here looks at a clock; all times are UTC.

A schedule has periods: hours, days, weeks (from Monday), months.  It is due once in each; periods that passed while nobody
was there to act are past, and the one that is running is caught up once.

Of each kind of period, `keep` names how many to keep: of the newest so many periods that have a snapshot at all, the last
one each.  What is kept for one kind may be what is kept for another.  The newest of all is always kept.  What was not kept
once would not be kept later either, so it does not matter how often this is applied.
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
    """The start of the period that `moment` is in."""
    moment = moment.astimezone(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    if every is Every.HOURLY:
        return moment
    moment = moment.replace(hour=0)
    if every is Every.WEEKLY:
        return moment - datetime.timedelta(days=moment.weekday())
    return moment.replace(day=1) if every is Every.MONTHLY else moment


def due(now: datetime.datetime, every: Every, taken: Iterable[datetime.datetime]) -> bool:
    """Whether a snapshot is to be taken now; `taken` is when the schedule's snapshots were.  (A clock that was set back finds
    snapshots of the future and waits until it has come up to them.)
    """
    return all(period(moment, every) < period(now, every) for moment in taken)


def kept(taken: Iterable[datetime.datetime], keep: Mapping[Every, int]) -> set[datetime.datetime]:
    """Which of the moments at which the schedule's snapshots were taken are to be kept."""
    moments = sorted(taken)
    found = set(moments[-1:])
    for every, count in keep.items():
        last_of = {period(moment, every): moment for moment in moments}
        found.update(last_of[start] for start in sorted(last_of, reverse=True)[:count])
    return found


def name(moment: datetime.datetime) -> str:
    """What a snapshot that the schedule takes now is called: `auto-2026-11-22T2300Z`."""
    return f"auto-{moment.astimezone(datetime.UTC):%Y-%m-%dT%H%MZ}"
