# SPDX-License-Identifier: Apache-2.0
"""Layers over devices that fail: the error reaches the command that it concerns, and all other commands succeed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from lun_backends import block_device, copy_on_write, snapshot_view, view_chain, write_once
from lun_backends.stores import thin
from lun_backends.stores.superblock import Superblock
from tests.faults.device import FaultyDevice
from tests.memory_device import MemoryDevice

CHUNK = 4096
SIZE = 16 * CHUNK


@pytest.fixture
def primary() -> FaultyDevice:
    device = MemoryDevice(SIZE)
    device.fill(bytes(range(16)) * CHUNK)
    return FaultyDevice(device)


@pytest.fixture
def side(tmp_path: Path) -> write_once.WriteOnce:
    superblock = Superblock(uuid.uuid4(), uuid.uuid4(), SIZE, 512, CHUNK)
    return write_once.WriteOnce(thin.ThinStore.create(tmp_path / "side", superblock))


def data(value: int, length: int = 512) -> list[memoryview]:
    return [memoryview(bytearray([value]) * length)]


def test_a_pre_image_that_cannot_be_read_refuses_its_write_only(
    primary: FaultyDevice, side: write_once.WriteOnce
) -> None:
    device = copy_on_write.CopyOnWrite(primary, CHUNK)
    device.arm(side)
    primary.fail("readv", block_device.MediumError(9, False, "rot"), offset=9 * 512, length=512)
    with pytest.raises(block_device.PreserveFailed, match="rot"):
        device.writev(CHUNK, data(200))
    device.writev(2 * CHUNK, data(200))
    device.write_zeroes(3 * CHUNK, CHUNK, discard=True)
    primary.heal()
    device.writev(CHUNK, data(200))
    buffer = data(0, 2 * CHUNK)
    side.readv(CHUNK, buffer)
    assert bytes(buffer[0]) == bytes(range(16)) * (2 * CHUNK // 16)


def test_a_write_that_fails_after_its_copy_leaves_the_view_exact(
    primary: FaultyDevice, side: write_once.WriteOnce
) -> None:
    device = copy_on_write.CopyOnWrite(primary, CHUNK)
    device.arm(side)
    view = snapshot_view.SnapshotView(primary, view_chain.Chain([side]), side)
    primary.fail("writev", block_device.MediumError(8, True, "rot"), times=1)
    with pytest.raises(block_device.MediumError):
        device.writev(CHUNK, data(200))
    device.writev(CHUNK, data(201))
    buffer = data(0, SIZE)
    view.readv(0, buffer)
    assert bytes(buffer[0]) == bytes(range(16)) * (SIZE // 16)


def test_a_view_reports_the_error_of_its_primary(primary: FaultyDevice, side: write_once.WriteOnce) -> None:
    view = snapshot_view.SnapshotView(primary, view_chain.Chain([side]), side)
    primary.fail("readv", block_device.MediumError(40, False, "rot"), offset=40 * 512, length=512)
    with pytest.raises(block_device.MediumError, match="40"):
        view.readv(5 * CHUNK, data(0, CHUNK))
    view.readv(6 * CHUNK, data(0, CHUNK))
