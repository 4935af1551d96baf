# SPDX-License-Identifier: Apache-2.0
"""Words that an interrupted commit left in a map stay without effect, and zeroes stay zeroes, whenever the power is cut."""

from __future__ import annotations

import pytest

from tests.powercut import mutants, promises, stale_words

CASES: dict[mutants.Mutant, stale_words.Case] = {
    mutants.stale_words_kept: stale_words.STALE,
    mutants.stale_words_cleaned_unsynced: stale_words.STALE,
    mutants.zeroes_replaced_unsynced: stale_words.ZEROES,
}


@pytest.mark.parametrize("case", [stale_words.STALE, stale_words.ZEROES], ids=["stale words", "zeroes"])
def test_no_cut_brings_words_to_life(case: stale_words.Case) -> None:
    assert stale_words.cut_everywhere(case, 1000, seed=1) >= 200


@pytest.mark.parametrize("mutant", CASES, ids=lambda mutant: str(mutant.__name__))
def test_careless_treatment_of_words_is_found(mutant: mutants.Mutant) -> None:
    with pytest.raises(promises.Violation), mutant():
        for seed in range(20):
            stale_words.cut_everywhere(CASES[mutant], 3000, seed)
