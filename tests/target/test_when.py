# SPDX-License-Identifier: Apache-2.0
"""Moments as people write them."""

from __future__ import annotations

import datetime

import pytest

from target import when

NOW = datetime.datetime(2026, 11, 27, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("12h", "2026-11-28T00:00:00+00:00"),
        ("30d", "2026-12-27T12:00:00+00:00"),
        ("8w", "2027-01-22T12:00:00+00:00"),
        ("2026-12-24T18:00Z", "2026-12-24T18:00:00+00:00"),
        ("2026-12-24T18:00+02:00", "2026-12-24T16:00:00+00:00"),
    ],
)
def test_moments_are_read(text: str, moment: str) -> None:
    found = when.parse(text, NOW)
    assert found is not None
    assert found.isoformat() == moment


def test_a_date_without_a_zone_is_that_of_this_host() -> None:
    assert when.parse("2026-12-24", NOW) == datetime.datetime(2026, 12, 24).astimezone()


def test_never_is_no_moment() -> None:
    assert when.parse("never", NOW) is None


@pytest.mark.parametrize("text", ["", "soon", "30", "d", "-3d", "2026-13-01", "2026-11-26", "0001-01-01"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a time from now like 12h"):
        when.parse(text, NOW)
