# SPDX-License-Identifier: Apache-2.0
"""Sizes, percentages and durations as text and back."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from target import units

COUNTS = strategies.integers(0, 1 << 60)


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("512", 512), ("7B", 7), ("64 KiB", 65536), ("1GiB", 1 << 30), ("2PiB", 2 << 50)]
)
def test_sizes_are_parsed_with_their_unit(text: str, count: int) -> None:
    assert units.parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1KiB", "1.5GiB", "1  KiB", "٣KiB", "1KiB "])
def test_text_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)


@pytest.mark.parametrize(("text", "suggestion"), [("1GB", "1GiB"), ("64k", "64KiB"), ("3 tib", "3TiB")])
def test_a_wrong_unit_is_refused_with_a_suggestion(text: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=f"is not a unit of size; did you mean {suggestion}"):
        units.parse_size(text)


@hypothesis.given(COUNTS)
def test_an_exact_size_is_parsed_back(count: int) -> None:
    assert units.parse_size(units.exact_size(count)) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1 << 20, "1 MiB"),
        (1343225856, "1.25 GiB"),
        (99.96 * 1024, "100 KiB"),
        (5000 << 50, "5000 PiB"),
    ],
)
def test_a_size_has_three_digits(count: float, text: str) -> None:
    assert units.human_size(count) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 8, "0 %"), (1, 8, "12.5 %"), (8, 8, "100 %"), (0, 0, "0 %"), (1, 1 << 40, "<0.1 %")],
)
def test_a_percentage_is_rounded_and_never_hides_a_part(part: int, whole: int, text: str) -> None:
    assert units.human_percent(part, whole) == text


def test_an_incomplete_part_is_not_all_of_it() -> None:
    assert units.human_percent((1 << 40) - 1, 1 << 40) != "100 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00085, "850 us"),
        (0.0032, "3.2 ms"),
        (12, "12 s"),
        (240, "4 min"),
        (3 * 3600, "3 h"),
        (5 * 86400, "5 d"),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, text: str) -> None:
    assert units.human_seconds(seconds) == text
