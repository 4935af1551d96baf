# SPDX-License-Identifier: Apache-2.0
"""Fixtures of this room."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.volumes import volume
from tests.lun_backends.volumes.sample import CHUNK, SIZE


@pytest.fixture
def made(tmp_path: Path) -> Iterator[volume.Volume]:
    opened = volume.Volume.create(tmp_path / "state", "vol0", tmp_path / "disk.img", size=SIZE, chunk_size=CHUNK)
    pattern = random.Random(1).randbytes(SIZE - 8 * CHUNK)
    opened.device.writev(0, [memoryview(pattern)])
    yield opened
    opened.close()
