# SPDX-License-Identifier: Apache-2.0
"""Two thousand simulated clusters keep the promises, and clusters without one of the guards break them."""

from __future__ import annotations

import dataclasses

import pytest

from lun_backends.cluster.guards import Guards
from tests.simulate import wires, world
from tests.simulate.__main__ import campaign, without

RARE = {
    "look_at_keys",
    "fence_before_key",
    "unchanged_key",
    "move_behind_fence",
    "hidden_takes_no_chunks",
    "deleted_names_its_target",
}
"""Guards whose lack shows once in thousands of seeds; `tests/model` finds them at once."""
COMMON = [guard.name for guard in dataclasses.fields(Guards) if guard.name not in RARE]


def test_two_thousand_clusters_keep_the_promises() -> None:
    ran, broken = 0, []
    for count, wrong in campaign(2000):
        ran += count
        broken += wrong
    assert ran == 2000
    assert broken == []


def test_a_seed_runs_the_same_way_again() -> None:
    first, second = world.run(7), world.run(7)
    assert (first.counted, first.now, first.storage.log.blocks) == (
        second.counted,
        second.now,
        second.storage.log.blocks,
    )
    assert first.acknowledged and first.moments


@pytest.mark.parametrize("guard", COMMON)
def test_missing_guard_breaks_a_promise(guard: str) -> None:
    for seed in range(3000):
        try:
            world.run(seed, without(guard))
        except wires.Wrong:
            return
    pytest.fail(f"3000 seeds did not find that {guard} is missing")
