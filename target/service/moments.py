# SPDX-License-Identifier: Apache-2.0
"""The form of moments in requests and answers: ISO 8601, in answers in UTC and to the millisecond."""

from __future__ import annotations

import datetime

from target.service import problems


def utc(moment: datetime.datetime) -> str:
    """Return a moment as text, like `2026-11-22T23:20:00.000Z`."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read(text: str) -> datetime.datetime:
    """Return the moment of a text with a time zone.  Raise Problem."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise problems.refused("nothing was changed", f"{text!r} is no moment", "write it like 2026-12-24T18:00:00Z")
    return moment.astimezone(datetime.UTC)
