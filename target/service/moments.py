# SPDX-License-Identifier: Apache-2.0
"""The form of moments in answers: ISO 8601 in UTC, to the millisecond."""

from __future__ import annotations

import datetime


def utc(moment: datetime.datetime) -> str:
    """Return a moment as text, like `2026-11-22T23:20:00.000Z`."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
