# SPDX-License-Identifier: Apache-2.0
"""Two thousand simulated clusters keep the promises, and clusters without one of the guards break them."""

from __future__ import annotations

import dataclasses

import pytest

from lun_backends.cluster.guards import Guards
from tests.simulate import wires, world
from tests.simulate.__main__ import campaign, without

FOUND_BY = {
    "fenced_first": 7,
    "look_after_register": 46,
    "look_at_keys": 41254,
    "drain_before_join": 6,
    "read_again_after_fence": 38,
    "fence_before_key": 7221,
    "unchanged_key": 2035,
    "reset_in_fence": 7,
    "fresh_tracker": 0,
    "verify_blank": 2,
    "reread_lost_race": 10,
    "look_before_put": 222,
    "look_after_view": 71,
    "second_look": 21,
    "copy_first": 0,
    "fence_after_loss": 126,
    "answers_what_was_read": 18,
    "expelled_stay_out": 8,
    "others_stay_out": 19,
    "closed_for_rollback": 39,
    "restore_asks_again": 42,
    "rolled_back_names_its_rollback": 480,
    "rollback_keeps_its_source": 19,
    "move_behind_fence": 1691,
    "hidden_takes_no_chunks": 791,
    "deleted_names_its_target": 845,
    "every_path_joins": 47,
}
"""The first seed that breaks a promise when that guard is missing, as `python -m tests.simulate --without GUARD` prints it.

A change of the simulation changes what each seed means, so the seeds have to be looked up again.
"""


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


def test_each_guard_has_a_seed() -> None:
    assert list(FOUND_BY) == [guard.name for guard in dataclasses.fields(Guards)]


@pytest.mark.parametrize("guard", FOUND_BY)
def test_missing_guard_breaks_a_promise(guard: str) -> None:
    seed = FOUND_BY[guard]
    world.run(seed)
    with pytest.raises(wires.Wrong):
        world.run(seed, without(guard))
