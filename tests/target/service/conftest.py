# SPDX-License-Identifier: Apache-2.0
"""A service without a fabric, on two small volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends.volumes import manifest
from target.configuration import reader
from target.service.service import Service
from tests.target.service.scheduling import Clock

IQN = "iqn.2026-11.io.wolun:t"
VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n  - {name: vol1, lun: 1, size: 1MiB}\n"
Serve = Callable[..., Service]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that makes a service of these volumes in the one state directory, and ends the one before."""
    running: list[Service] = []

    def end() -> None:
        while running:
            service = running.pop()
            service.stop()
            service.close()

    def start(volumes: str = VOLUMES, extra: str = "", access: str = "networks: [127.0.0.0/8]") -> Service:
        end()
        text = f"target: {IQN}\naccess: {{{access}}}\n{extra}volumes:\n{volumes}"
        running.append(Service(reader.parse(text, "f.yaml"), tmp_path / "state"))
        return running[0]

    yield start
    end()


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock by which snapshots are dated."""
    made = Clock()
    monkeypatch.setattr(manifest, "now", made)
    return made
