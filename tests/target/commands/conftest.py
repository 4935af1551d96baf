# SPDX-License-Identifier: Apache-2.0
"""A daemon for all tests of a module, and the deletion of snapshots that a test leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import daemon
from tests.target.commands import commanding


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), commanding.VOLUMES) as running:
        yield running


@pytest.fixture
def no_snapshots_left(served: daemon.Daemon) -> Iterator[None]:
    yield
    for snapshot in served.json("snapshot", "list"):
        served.run("snapshot", "delete", f"{snapshot['volume']}@{snapshot['name']}")
