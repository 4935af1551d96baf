# SPDX-License-Identifier: Apache-2.0
"""Daemons with the volumes that a test's module calls VOLUMES."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[daemon.Daemon]:
    """Yield a daemon for one test."""
    with daemon.Daemon(tmp_path, request.module.VOLUMES) as running:
        yield running


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    """Yield a daemon for tests that leave it as it was."""
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), request.module.VOLUMES) as running:
        yield running
