# SPDX-License-Identifier: Apache-2.0
"""The model for two nodes and two snapshots: every state is right, and each missing guard is found.

There are two blocks; one where commands wait at the device, and with two paths.  `make model` searches all states for
three nodes, and all states of each of the others.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.model import spin

Run = Callable[[spin.Variant], spin.Outcome]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    built: dict[tuple[int, int], spin.Verifier] = {}

    def search(variant: spin.Variant) -> spin.Outcome:
        size = (1 if variant.paths > 1 or variant.device == spin.OVERLAP else 2, variant.paths)
        if size not in built:
            built[size] = spin.Verifier(tmp_path_factory.mktemp("model"), blocks=size[0], paths=size[1])
        return built[size].run(variant)

    return search


@pytest.mark.parametrize("variant", (*spin.VARIANTS, spin.OVERLAPPING[0]), ids=str)
def test_every_state_of_the_protocol_is_right(run: Run, variant: spin.Variant) -> None:
    outcome = run(variant)
    assert outcome.right, "\n".join(outcome.trail)


@pytest.mark.parametrize("variant", spin.mutants(), ids=str)
def test_protocol_without_a_guard_makes_a_snapshot_wrong(run: Run, variant: spin.Variant) -> None:
    assert not run(variant).right
