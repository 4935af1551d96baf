# SPDX-License-Identifier: Apache-2.0
"""The model for two nodes, two blocks and two snapshots: every state is right, and each missing guard is found.

`make model` searches all states for three nodes.
"""

from __future__ import annotations

import pytest

from tests.model import spin


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> spin.Verifier:
    return spin.Verifier(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("variant", (*spin.VARIANTS, spin.OVERLAPPING[0]), ids=str)
def test_every_state_of_the_protocol_is_right(verifier: spin.Verifier, variant: spin.Variant) -> None:
    outcome = verifier.run(variant)
    assert outcome.right, "\n".join(outcome.trail)


@pytest.mark.parametrize("variant", spin.mutants(), ids=str)
def test_protocol_without_a_guard_makes_a_snapshot_wrong(verifier: spin.Verifier, variant: spin.Variant) -> None:
    assert not verifier.run(variant).right
