# SPDX-License-Identifier: Apache-2.0
"""An array that nodes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lun_backends.shared.rig import Array


@pytest.fixture
def array(tmp_path: Path) -> Iterator[Array]:
    made = Array(tmp_path)
    yield made
    made.close()
