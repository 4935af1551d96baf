# SPDX-License-Identifier: Apache-2.0
"""A daemon's administration without a network, on two small volumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from target.administration.administration import Administration
from target.configuration import reader
from target.service.service import Service
from tests.target.administration.fabric import BookFabric

IQN = "iqn.2026-11.io.wolun:t"
LISTEN = "127.0.0.1:3260"
TEXT = f"""
target: {IQN}
portal:
  listen: {LISTEN}
access:
  networks: [127.0.0.0/8]
volumes:
  - {{name: vol0, lun: 0, size: 1MiB}}
  - {{name: vol1, lun: 1, size: 1MiB}}
"""


@pytest.fixture
def fabric() -> BookFabric:
    return BookFabric(LISTEN)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wolun.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def service(file: Path, tmp_path: Path, fabric: BookFabric) -> Iterator[Service]:
    running = Service(reader.load(file), tmp_path / "state")
    running.fabric_started(fabric)
    yield running
    running.stop()
    running.close()


@pytest.fixture
def admin(service: Service, fabric: BookFabric, file: Path) -> Administration:
    return Administration(service, fabric, file, reader.load(file))
