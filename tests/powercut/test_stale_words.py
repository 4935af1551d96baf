# SPDX-License-Identifier: Apache-2.0
"""Words that an interrupted commit left in a map stay without effect, whenever the power is cut."""

from __future__ import annotations

import pytest

from tests.powercut import mutants, promises, stale_words


def test_words_of_an_interrupted_commit_never_come_to_life() -> None:
    assert stale_words.cut_everywhere(1000, seed=1) >= 300


@pytest.mark.parametrize("mutant", mutants.STALE, ids=lambda mutant: str(mutant.__name__))
def test_careless_treatment_of_stale_words_is_found(mutant: mutants.Mutant) -> None:
    with pytest.raises(promises.Violation), mutant():
        for seed in range(20):
            stale_words.cut_everywhere(3000, seed)
