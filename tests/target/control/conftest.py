# SPDX-License-Identifier: Apache-2.0
"""A daemon for each module, with one volume and the snapshot vol0@kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from target.control.client import Client
from tests import daemon
from tests.target.control.asking import VOLUMES


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    """Yield the daemon."""
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), VOLUMES) as served:
        served.run("snapshot", "create", "vol0", "kept")
        yield served


@pytest.fixture
def client(running: daemon.Daemon) -> Iterator[Client]:
    """Yield a client of the daemon."""
    talking = Client(running.state)
    yield talking
    talking.close()
