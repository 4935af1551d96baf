# SPDX-License-Identifier: Apache-2.0
"""A name whose sessions come from changing addresses: a warning at once, and a clash when it happens again."""

from __future__ import annotations

import pytest

from target.iscsi.name_clashes import NAMES, WITHIN_SECONDS, NameClashes

ANN = "iqn.2026-11.org.example:ann"
HERE, THERE = "192.0.2.1", "192.0.2.2"


def test_host_that_moves_once_is_a_warning_and_no_clash(caplog: pytest.LogCaptureFixture) -> None:
    clashes = NameClashes()
    clashes.replaced(ANN, HERE, HERE, 0)
    assert not caplog.records
    clashes.replaced(ANN, HERE, THERE, 1)
    assert f"{ANN} logged in from {THERE}, and that ended its session from {HERE}" in caplog.text
    assert clashes.current(1) == {}


def test_two_hosts_are_a_clash_for_an_hour() -> None:
    clashes = NameClashes()
    clashes.replaced(ANN, HERE, THERE, 0)
    clashes.replaced(ANN, THERE, HERE, WITHIN_SECONDS - 1)
    assert clashes.current(WITHIN_SECONDS) == {ANN: (HERE, THERE)}
    assert clashes.current(2 * WITHIN_SECONDS) == {}
    clashes.replaced(ANN, HERE, THERE, 3 * WITHIN_SECONDS)
    assert clashes.current(3 * WITHIN_SECONDS) == {}


def test_names_are_bounded() -> None:
    clashes = NameClashes()
    for number in range(NAMES + 1):
        for before, after in ((HERE, THERE), (THERE, HERE)):
            clashes.replaced(f"{ANN}{number}", before, after, 0)
    assert len(clashes.current(0)) == NAMES
    assert f"{ANN}0" not in clashes.current(0)
