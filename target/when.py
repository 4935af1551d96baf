# SPDX-License-Identifier: Apache-2.0
"""Moments as people write them: `30d`, `12h`, `2026-12-24`, `2026-12-24 18:00`, `2026-12-24T18:00Z`, `never`."""

from __future__ import annotations

import datetime
import re

FORMS = "write a time from now like 12h, 30d or 8w, a date like 2026-12-24 or 2026-12-24T18:00, or never"

_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
_SPAN = re.compile(r"([0-9]{1,5})([hdw])")


def parse(text: str, now: datetime.datetime) -> datetime.datetime | None:
    """Return the moment in UTC; None for `never`.  A date without a zone is in this host's zone.

    Raises ValueError, whose text is one for people.
    """
    if text == "never":
        return None
    if span := _SPAN.fullmatch(text):
        return now.astimezone(datetime.UTC) + datetime.timedelta(hours=int(span[1]) * _HOURS[span[2]])
    try:
        moment = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r} is no moment: {FORMS}") from error
    if moment <= now:
        raise ValueError(f"{text!r} has passed already: {FORMS}")
    return moment
