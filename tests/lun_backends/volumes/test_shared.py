# SPDX-License-Identifier: Apache-2.0
"""The stack of a shared volume: several nodes write one primary, and every view keeps the moment of the snapshot.

Real block devices are in tests/kernel/test_shared_storage.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.files import backing_file
from lun_backends.volumes import shared
from tests.lun_backends.memory_side import CHUNK, SIZE, block, read
from tests.lun_backends.remote_lun import Disk, Remote
from tests.memory_device import MemoryDevice

OLD = bytes([1]) * CHUNK


@pytest.fixture
def primary() -> MemoryDevice:
    device = MemoryDevice(SIZE)
    device.writev(0, [memoryview(OLD)])
    return device


@pytest.fixture
def disk() -> Disk:
    return Disk(SIZE, write_once=True)


def writer(primary: MemoryDevice, disk: Disk) -> shared.Shared:
    return shared.Shared(primary, Remote(disk), chunk_size=CHUNK)


def test_view_keeps_the_moment_while_the_volume_changes(primary: MemoryDevice, disk: Disk) -> None:
    stack = writer(primary, disk)
    assert stack.volume is not None
    stack.volume.writev(512, block(9))
    assert read(stack.volume, 0, 1024) == bytes([1]) * 512 + bytes([9]) * 512
    assert read(stack.view, 0, CHUNK) == OLD


def test_view_of_another_node_sees_a_copy_that_this_node_made(primary: MemoryDevice, disk: Disk) -> None:
    reader = shared.Shared(primary, Remote(disk), chunk_size=None)
    assert reader.volume is None
    assert read(reader.view, 0, CHUNK) == OLD
    stack = writer(primary, disk)
    assert stack.volume is not None
    stack.volume.writev(0, block(9))
    assert read(reader.view, 0, CHUNK) == OLD


def test_second_writer_does_not_replace_the_copy_of_the_first(primary: MemoryDevice, disk: Disk) -> None:
    """A node that knows of no copy, such as one that restarted, copies new data; the LUN refuses it."""
    first, second = writer(primary, disk), writer(primary, disk)
    assert first.volume is not None
    assert second.volume is not None
    first.volume.writev(0, block(8))
    second.volume.writev(0, block(9))
    assert second.volume.counters.futile_copies == 1
    for stack in (first, second):
        assert read(stack.view, 0, CHUNK) == OLD


def test_view_reads_nothing_without_waiting(primary: MemoryDevice, disk: Disk) -> None:
    """An event loop that waited for the network would hold up every other initiator."""
    stack = writer(primary, disk)
    assert not stack.view.read_now(0, 512, block(0))


def test_close_closes_both_devices(primary: MemoryDevice, disk: Disk) -> None:
    stack = writer(primary, disk)
    stack.close()
    for device in (primary, disk):
        with pytest.raises(block_device.DeviceClosed):
            device.flush()


def test_missing_device_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(backing_file.CannotOpen):
        shared.Shared.open(tmp_path / "primary", tmp_path / "lun", block_size=512, chunk_size=CHUNK)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
