# SPDX-License-Identifier: Apache-2.0
"""The names that volumes and snapshots may have."""

from __future__ import annotations

import pytest

from lun_backends import names


@pytest.mark.parametrize("name", ["a", "0", "vol0", "2026-11-26T00.00+01", "A_b.c-d+e", "x" * 64])
def test_names_within_the_rule_are_valid(name: str) -> None:
    assert names.valid(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "+a", "_a", "a/b", "a@b", "a b", "a\n", "é", "x" * 65])
def test_names_that_would_break_a_path_a_url_or_an_option_are_refused(name: str) -> None:
    assert not names.valid(name)
