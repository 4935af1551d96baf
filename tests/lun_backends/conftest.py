# SPDX-License-Identifier: Apache-2.0
"""A primary and a write-once device in memory, and copy-on-write armed with them."""

from __future__ import annotations

import pytest

from lun_backends.copy_on_write import CopyOnWrite
from tests.lun_backends.memory_side import CHUNK, SIZE, MemorySide
from tests.memory_device import MemoryDevice


@pytest.fixture
def primary() -> MemoryDevice:
    device = MemoryDevice(SIZE)
    device.fill(bytes(i // 512 % 251 for i in range(SIZE)))
    return device


@pytest.fixture
def side() -> MemorySide:
    return MemorySide(SIZE)


@pytest.fixture
def cow(primary: MemoryDevice, side: MemorySide) -> CopyOnWrite:
    device = CopyOnWrite(primary, CHUNK)
    with device.hold():
        device.arm(side)
    return device
