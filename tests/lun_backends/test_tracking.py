# SPDX-License-Identifier: Apache-2.0
"""The tracker is a set that only grows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lun_backends import tracking

CHUNKS = 1 << 20
sets = st.sets(st.integers(0, CHUNKS - 1), max_size=50)


@given(sets, sets)
def test_a_tracker_keeps_each_chunk_once(several: set[int], single: set[int]) -> None:
    tracker = tracking.Tracker(CHUNKS)
    tracker.add_many(several)
    for chunk in single:
        tracker.add(chunk)
    assert set(tracker) == several | single
    assert len(tracker) == len(several | single)
    assert all(chunk in tracker for chunk in several | single)


@given(sets, st.integers(0, CHUNKS - 1), st.integers(0, 20))
def test_covers_and_count_look_at_ranges(chunks: set[int], first: int, more: int) -> None:
    tracker = tracking.Tracker(CHUNKS)
    tracker.add_many(chunks)
    last = min(first + more, CHUNKS - 1)
    chunk_range = range(first, last + 1)
    assert tracker.covers(first, last) == all(chunk in chunks for chunk in chunk_range)
    assert tracker.count(first, last + 1) == sum(chunk in chunks for chunk in chunk_range)
    tracker.add_range(first, last)
    assert tracker.covers(first, last)
