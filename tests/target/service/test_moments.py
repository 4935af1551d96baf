# SPDX-License-Identifier: Apache-2.0
"""Moments are shown in UTC, whatever their zone."""

from __future__ import annotations

import datetime

from target.service import moments


def test_moment_is_shown_in_utc_to_the_millisecond() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=5))
    moment = datetime.datetime(2026, 11, 23, 4, 20, 0, 1999, tzinfo=zone)
    assert moments.utc(moment) == "2026-11-22T23:20:00.001Z"
