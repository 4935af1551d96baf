# SPDX-License-Identifier: Apache-2.0
"""The figures of the cluster's README keep their promises, in smaller simulations."""

from __future__ import annotations

import dataclasses

import pytest

from tests.simulate import figures, locking, sharing


@pytest.mark.parametrize("exclusive", [True, False], ids=["8h", "7h"])
@pytest.mark.parametrize("nodes", [1, 2, 64])
def test_write_waits_for_no_other_node(nodes: int, exclusive: bool) -> None:
    messages, first, later = figures.messages_per_write(nodes, exclusive=exclusive)
    assert messages == 0
    assert (first, later) == (3 if exclusive else 4, 1)  # read, put, write; with 7h a look at the log


def test_trackers_save_futile_copies() -> None:
    shares = {}
    for name, load in figures.WAYS:
        small = dataclasses.replace(load, grains=20_000, seconds=10.0)
        shares[name] = sharing.run(small).share
    assert shares["none"] > 0.3
    assert shares["both"] < 0.01
    assert shares["both"] <= shares["riding on lock messages"] < shares["asynchronous, every 100 ms"] < 0.05


def test_map_below_a_lock_makes_first_writes_slower() -> None:
    here, locked = (locking.first_writes(8, locked=way, writes=50) for way in (False, True))
    assert locked[len(locked) // 2] > 2 * here[len(here) // 2]


def test_plot_has_a_bar_for_each_way() -> None:
    assert figures.draw([(2, 0.001, 0.003), (8, 0.001, 0.004)]).count('height="190"') == 1
