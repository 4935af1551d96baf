# SPDX-License-Identifier: Apache-2.0
"""Calendar expressions, in the form of systemd.time(7), and the moments that they stand for in a time zone.

oncalendar reads the expressions.  It knows all of systemd's form but fractions of seconds.  This module adds the rules
for clocks that are set for summer time, which are those of cron:

| the expression names                                   | it stands for                                  |
| ------------------------------------------------------ | ---------------------------------------------- |
| a time that the clock skips (02:30, in spring)         | the moment of the change                       |
| a time that comes twice (02:30, in autumn)             | the first of the two                           |
| a time in each hour, like `*:00`, while it comes twice | both, so that no hour is left out              |

A moment is a whole second.  Years go from 1970 to 2199.  A period begins with the year 1970, too, because a clock that is wrong
often shows it.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator

import oncalendar

LONGEST = 200
"""The most characters that an expression may have."""

EXAMPLES = "write one like `Mon..Fri 02:00`, `*:0/15` or `*-*-01 04:30`, as `man systemd.time` describes them"

_SECOND = datetime.timedelta(seconds=1)
_DAY = datetime.timedelta(days=1)
_FIRST = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST = datetime.datetime(2199, 1, 1, tzinfo=datetime.UTC)
_TRIED = 100


def zone(name: str) -> zoneinfo.ZoneInfo:
    """Return a time zone.  Raise ValueError."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone: write one like Europe/Berlin or UTC") from None


class Calendar:
    """An expression in a time zone.  Thread-safe."""

    def __init__(self, expression: str, zone: zoneinfo.ZoneInfo) -> None:
        """Read the expression, which names no zone.  Raise ValueError."""
        self.expression = " ".join(expression.split())
        self.zone = zone
        self._current: tuple[datetime.datetime | None, datetime.datetime, datetime.datetime | None] | None = None
        if len(expression) > LONGEST:
            raise ValueError(f"it is too long: at most {LONGEST} characters")
        try:
            parsed = oncalendar.BaseIterator(self.expression, datetime.datetime(1970, 1, 1))
        except oncalendar.OnCalendarError as error:
            why = str(error)
            raise ValueError(
                f"{expression!r} is no calendar expression, {why[:1].lower()}{why[1:]}: {EXAMPLES}"
            ) from None
        if len(parsed.seconds) > 1:
            raise ValueError(f"{expression!r} comes more than once in a minute: {EXAMPLES}")
        self._each_hour = len(parsed.hours) == 24
        if next(parsed, None) is None:
            raise ValueError(f"{expression!r} never comes: {EXAMPLES}")

    def following(self, moment: datetime.datetime) -> datetime.datetime | None:
        """Return the first occurrence after a moment, in UTC; None if there is none."""
        moment = moment.astimezone(datetime.UTC)
        local = moment.astimezone(self.zone).replace(tzinfo=None)
        found = next((instant for instant in self._instants(local) if instant > moment), None)
        hours = 3 * datetime.timedelta(hours=1)
        if self._each_hour and self._offset(moment) > self._offset(moment + hours):  # a change comes that repeats times
            change = self._change(moment, moment + hours)
            repeated = change.astimezone(self.zone).replace(tzinfo=None)
            again = next(oncalendar.BaseIterator(self.expression, repeated - _SECOND), None)
            if again is not None:
                second = again.replace(tzinfo=self.zone, fold=1).astimezone(datetime.UTC)
                found = second if found is None else min(found, second)
        return found

    def latest(self, moment: datetime.datetime) -> datetime.datetime | None:
        """Return the last occurrence that is not after a moment, in UTC; None if there is none.

        Within the year 1970 it may be the year's first moment.
        """
        moment = moment.astimezone(datetime.UTC)
        known = self._current
        if known is not None and known[1] <= moment and (known[2] is None or moment < known[2]):
            return known[0]
        found = self._search(moment)
        following = self.following(moment)
        self._current = (found, moment if found is None else found, following)
        return found

    def _search(self, moment: datetime.datetime) -> datetime.datetime | None:
        if moment < _FIRST:
            return None
        back = datetime.timedelta(minutes=1)
        while True:
            start = max(moment - back, _FIRST - _SECOND)
            found = self.following(start)
            if found is not None and found <= moment:
                break
            if start < _FIRST:
                return _FIRST if moment - _FIRST < 366 * _DAY else None
            back *= 2
        end = moment
        while (later := self.following(found)) is not None and later <= moment:
            middle = self.following(max(later - _SECOND, found + (end - found) / 2))
            if middle is not None and middle <= moment:
                found = middle
            else:
                found, end = later, found + (end - found) / 2
        return found

    def longest(self, moment: datetime.datetime) -> datetime.timedelta | None:
        """Return the longest time between the occurrences that come next; None if there is only one."""
        gaps: list[datetime.timedelta] = []
        before = self.following(moment)
        while before is not None and len(gaps) < _TRIED and before < _LAST:
            after = self.following(before)
            if after is not None:
                gaps.append(after - before)
            before = after
        return max(gaps, default=None)

    def _instants(self, local: datetime.datetime) -> Iterator[datetime.datetime]:
        """Yield the moments of all occurrences after a local time, in UTC."""
        for naive in oncalendar.BaseIterator(self.expression, local):
            first = naive.replace(tzinfo=self.zone).astimezone(datetime.UTC)
            second = naive.replace(tzinfo=self.zone, fold=1).astimezone(datetime.UTC)
            if second < first:  # skipped
                yield self._change(second - _SECOND, first)
            else:
                yield first
                if self._each_hour and second > first:
                    yield second

    def _offset(self, moment: datetime.datetime) -> datetime.timedelta:
        offset = moment.astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset

    def _change(self, start: datetime.datetime, end: datetime.datetime) -> datetime.datetime:
        """Return the first second after `start` from which on the clock has the offset that it has at `end`."""
        start, end = start.replace(microsecond=0), end.replace(microsecond=0)
        before = self._offset(start)
        while end - start > _SECOND:
            middle = (start + (end - start) / 2).replace(microsecond=0)
            if self._offset(middle) == before:
                start = middle
            else:
                end = middle
        return end
