# SPDX-License-Identifier: Apache-2.0
"""No power cut turns a rotten chunk that moves to an older snapshot into good data; a move that does so is found."""

from __future__ import annotations

import pytest

from tests.powercut import mutants, rotten_move
from tests.powercut.promises import Violation

STATES = 1500


@pytest.mark.timeout(600)
def test_rot_stays_rot_whenever_the_power_is_cut() -> None:
    assert rotten_move.cut_everywhere(STATES, seed=1) >= STATES


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", mutants.MOVES, ids=lambda mutant: str(mutant.__name__))
def test_a_move_that_launders_rot_is_found(mutant: mutants.Mutant) -> None:
    with mutant(), pytest.raises(Violation):
        for seed in range(4):
            rotten_move.cut_everywhere(STATES, seed)
