# SPDX-License-Identifier: Apache-2.0
"""The model of deletions, rollbacks, losses and expulsions: every state is right, and each missing guard is found."""

from __future__ import annotations

import pytest

from tests.model import jobs


@pytest.fixture(scope="module", params=jobs.WORKS, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[jobs.Work, jobs.Verifier]:
    work: jobs.Work = request.param
    return work, jobs.Verifier(tmp_path_factory.mktemp("jobs"), work)


def test_every_state_of_the_jobs_is_right(built: tuple[jobs.Work, jobs.Verifier]) -> None:
    assert built[1].run().right


def test_missing_guard_is_found(built: tuple[jobs.Work, jobs.Verifier]) -> None:
    work, verifier = built
    assert [mutant for mutant in work.mutants if verifier.run(mutant).right] == []


def test_each_mutant_belongs_to_a_part_of_the_model() -> None:
    assert {mutant for work in jobs.WORKS for mutant in work.mutants} == set(jobs.NUMBERS) - {"NONE"}
