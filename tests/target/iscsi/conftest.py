# SPDX-License-Identifier: Apache-2.0
"""A target with one device, a portal without sockets, and sessions on it."""

from __future__ import annotations

import pytest

from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import (
    MIB,
    PATTERN,
    TARGET,
    Connect,
    FakePortal,
    Initiator,
    make_target,
)


@pytest.fixture
def device() -> MemoryDevice:
    device = MemoryDevice(4 * MIB)
    device.fill(PATTERN)
    return device


@pytest.fixture
def portal(device: MemoryDevice) -> FakePortal:
    return FakePortal({TARGET: make_target(device)})


@pytest.fixture
def connect(portal: FakePortal) -> Connect:
    def connect(*offers: tuple[str, str]) -> Initiator:
        initiator = Initiator(portal)
        initiator.log_in(*({"MaxRecvDataSegmentLength": "262144"} | dict(offers)).items())
        initiator.clear_attention()
        return initiator

    return connect
