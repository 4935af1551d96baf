# SPDX-License-Identifier: Apache-2.0
"""The tracker: a set that only grows, and may be merged with another node's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends import tracking

CHUNKS = 1 << 20
sets = st.sets(st.integers(0, CHUNKS - 1), max_size=50)


@given(sets, sets)
def test_a_tracker_is_a_set_and_merging_is_union(ours: set[int], theirs: set[int]) -> None:
    a, b = tracking.Tracker(CHUNKS), tracking.Tracker(CHUNKS)
    a.add_many(ours)
    for chunk in theirs:
        b.add(chunk)
    assert a.merge(b.serialise()) == len(theirs - ours)
    assert set(a) == ours | theirs
    assert len(a) == len(ours | theirs)
    assert all(chunk in a for chunk in theirs)


@given(sets, st.integers(0, CHUNKS - 1), st.integers(0, 20))
def test_covers_and_count(chunks: set[int], first: int, more: int) -> None:
    tracker = tracking.Tracker(CHUNKS)
    tracker.add_many(chunks)
    last = min(first + more, CHUNKS - 1)
    wanted = range(first, last + 1)
    assert tracker.covers(first, last) == all(chunk in chunks for chunk in wanted)
    assert tracker.count(first, last + 1) == sum(chunk in chunks for chunk in wanted)
    tracker.add_range(first, last)
    assert tracker.covers(first, last)


@given(st.binary(max_size=200))
def test_damage_is_refused_and_changes_nothing(noise: bytes) -> None:
    tracker = tracking.Tracker(CHUNKS)
    tracker.add(7)
    whole = tracker.serialise()
    for damaged in (whole[:-1], whole[:5], b""):
        with pytest.raises(tracking.TrackerDamaged):
            tracker.merge(damaged)
    try:
        tracker.merge(noise)
    except tracking.TrackerDamaged:
        assert set(tracker) == {7}


def test_another_volumes_tracker_is_refused() -> None:
    larger = tracking.Tracker(CHUNKS)
    larger.add(CHUNKS - 1)
    with pytest.raises(tracking.TrackerDamaged, match="beyond"):
        tracking.Tracker(CHUNKS - 1).merge(larger.serialise())
