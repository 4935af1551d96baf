# SPDX-License-Identifier: Apache-2.0
"""A portal in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lun_backends.initiator.serving import Served


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()
