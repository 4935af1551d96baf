# SPDX-License-Identifier: Apache-2.0
"""The tracker is a set that only grows, and grains are 4 KiB each, the last one perhaps less."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lun_backends import tracking
from lun_backends.tracking import GRAIN
from tests.memory_device import MemoryDevice

GRAINS = 1 << 24
sets = st.sets(st.integers(0, GRAINS - 1), max_size=50)


def ranges(grains: set[int]) -> list[tracking.Grains]:
    return [(grain, grain + 1) for grain in grains]


@given(sets, sets)
def test_a_tracker_keeps_each_grain_once(several: set[int], single: set[int]) -> None:
    tracker = tracking.Tracker(GRAINS)
    tracker.add_all(ranges(several))
    for grain in single:
        tracker.add(grain)
    assert set(tracker) == several | single
    assert len(tracker) == len(several | single)
    assert all(grain in tracker for grain in several | single)


@given(sets, st.integers(0, GRAINS - 1), st.integers(0, 20))
def test_covers_and_count_look_at_ranges(grains: set[int], first: int, more: int) -> None:
    tracker = tracking.Tracker(GRAINS)
    tracker.add_all(ranges(grains))
    last = min(first + more, GRAINS - 1)
    looked = range(first, last + 1)
    assert tracker.covers(first, last) == all(grain in grains for grain in looked)
    assert tracker.count(first, last + 1) == sum(grain in grains for grain in looked)
    tracker.add_all([(first, last + 1)])
    assert tracker.covers(first, last)


@given(st.sets(st.integers(0, 200)), st.integers(0, 1 << 40))
def test_runs_join_neighbours(near: set[int], base: int) -> None:
    grains = {base + grain for grain in near}
    runs = list(tracking.runs(tracking.BitMap(grains)))
    assert {grain for first, end in runs for grain in range(first, end)} == grains
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(runs))


def test_bytes_end_with_the_lun() -> None:
    grains = tracking.BitMap([0, 2, 3, 4, 7])
    assert list(tracking.bytes_of(grains, 4 * GRAIN + 512)) == [(0, GRAIN), (2 * GRAIN, 2 * GRAIN + 512)]


@given(st.lists(st.integers(0, 8 * 4 + 2), max_size=20))
def test_grains_are_touched_by_any_block_and_whole_with_all_of_them(written: list[int]) -> None:
    device = MemoryDevice(4 * GRAIN + 3 * 512, write_once=True)
    for block in set(written):
        device.fill(b"x" * 512, block * 512)
    blocks = [set(range(8 * grain, min(8 * grain + 8, 35))) for grain in range(5)]
    touched = {grain for first, end in tracking.touched(device) for grain in range(first, end)}
    assert touched == {grain for grain in range(5) if blocks[grain] & set(written)}
    whole = {grain for first, end in tracking.whole(device) for grain in range(first, end)}
    assert whole == {grain for grain in range(5) if blocks[grain] <= set(written)}
