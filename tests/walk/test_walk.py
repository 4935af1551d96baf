# SPDX-License-Identifier: Apache-2.0
"""A short walk; `make walk` takes a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walk import __main__ as walk

STEPS = 80


@pytest.mark.timeout(300)
def test_every_view_is_right_after_every_step(tmp_path: Path) -> None:
    assert walk.walk(STEPS, "short", tmp_path).total() == STEPS
