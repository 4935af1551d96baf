# SPDX-License-Identifier: Apache-2.0
"""A LUN of another host as a block device, against wolun's portal."""

from __future__ import annotations

import random
import threading

import pytest

from lun_backends import block_device, copy_on_write, snapshot_view, view_chain
from lun_backends.block_device import ExtentKind
from lun_backends.initiator.disk import Disk
from target.scsi.logical_unit import UnitKind
from tests.lun_backends.initiator.serving import Served
from tests.lun_backends.memory_side import block, read
from tests.memory_device import MIB, MemoryDevice

LBA = 512


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(16 * MIB)


@pytest.fixture
def disk(served: Served, device: MemoryDevice) -> Disk:
    served.add(0, device)
    return Disk(served.unit(0))


@pytest.fixture
def side(served: Served) -> Disk:
    served.add(1, MemoryDevice(MIB, write_once=True), UnitKind.WRITE_ONCE)
    return Disk(served.unit(1), write_once=True)


def test_transfers_longer_than_a_command_are_split(disk: Disk, device: MemoryDevice) -> None:
    assert (disk.size, disk.block_size, disk.read_only) == (16 * MIB, 512, False)
    data = random.Random(3).randbytes(9 * MIB)
    disk.writev(512, [memoryview(data[:1024]), memoryview(data[1024:])], fua=True)
    assert device.data[512 : 512 + len(data)] == data
    assert device.calls["flush"] + device.calls["fua"] >= 1
    assert read(disk, 512, len(data)) == data
    with pytest.raises(block_device.OutOfRange) as beyond:
        read(disk, 16 * MIB - 512, 1024)
    assert beyond.value.lba == 16 * MIB // 512


def test_zeroes_holes_and_flush(disk: Disk, device: MemoryDevice) -> None:
    device.fill(b"\xff" * MIB)
    disk.write_zeroes(4096, 8192, discard=False)
    assert device.data[4096:12288] == bytes(8192)
    disk.write_zeroes(65536, 65536, discard=True, fua=True)
    kinds = [(extent.offset, extent.length) for extent in disk.extents(0, MIB) if extent.kind is ExtentKind.HOLE]
    assert kinds == [(65536, 65536)]
    assert device.calls["flush"]
    before = device.calls["flush"]
    disk.flush()
    assert device.calls["flush"] == before + 1


def test_medium_errors_name_the_block(disk: Disk, device: MemoryDevice) -> None:
    device.inject("readv", block_device.MediumError(9, False, "rot"), 4)
    with pytest.raises(block_device.MediumError) as unreadable:
        read(disk, 4096, 8192)
    assert unreadable.value.lba == 9
    device.inject("writev", block_device.SpaceExhausted(3))
    with pytest.raises(block_device.SpaceExhausted):
        disk.writev(0, block(1, 4096))


def test_write_once_refusals_are_exact(side: Disk) -> None:
    side.writev(7 * LBA, block(1))
    with pytest.raises(block_device.BlockWritten) as written:
        side.writev(4 * LBA, block(2, 8 * LBA))
    assert written.value.lba == 7
    with pytest.raises(block_device.BlankBlock) as blank:
        read(side, 7 * LBA, 2 * LBA)
    assert blank.value.lba == 8
    results = side.put_many([(0, block(3)), (7 * LBA, block(3)), (9 * LBA, block(3))])
    assert [None if result is None else result.lba for result in results] == [None, 7, None]
    data = [extent.offset // LBA for extent in side.extents(0, side.size) if extent.kind is ExtentKind.DATA]
    assert data == [0, 7, 9]
    with pytest.raises(block_device.NotSupported):
        side.write_zeroes(0, LBA, discard=True)
    with pytest.raises(block_device.BlockWritten):
        side.write_zeroes(0, LBA, discard=False)


def test_view_takes_no_writes(served: Served) -> None:
    served.add(2, MemoryDevice(), UnitKind.SNAPSHOT_VIEW)
    view = Disk(served.unit(2))
    assert view.read_only
    with pytest.raises(block_device.WriteProtected):
        view.writev(0, block(1))
    with pytest.raises(block_device.WriteProtected):
        view.write_zeroes(0, 512, discard=False)


def test_copy_on_write_over_two_remote_luns(served: Served, device: MemoryDevice, disk: Disk, side: Disk) -> None:
    device.fill(random.Random(5).randbytes(MIB))
    old = bytes(device.data[:MIB])
    volume = copy_on_write.CopyOnWrite(disk, 65536)
    with volume.hold():
        volume.arm(side)
    view = snapshot_view.SnapshotView(disk, view_chain.Chain([side]), side)
    dice = random.Random(6)

    def write(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(20):
            volume.writev(512 * mine.randrange(1024), block(mine.randrange(256), 4096))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        at = 512 * dice.randrange(2000)
        assert read(view, at, 4096) == old[at : at + 4096]
    for thread in threads:
        thread.join(60)
    assert read(view, 0, MIB) == old
    assert bytes(device.data[:MIB]) != old


def test_patience_outlasts_a_lost_link(served: Served, device: MemoryDevice) -> None:
    served.add(0, device)
    patient = Disk(served.unit(0), patience=30.0)
    ended = threading.Event()

    def write() -> None:
        for number in range(200):
            patient.writev(512 * number, block(number % 251 + 1))
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(3):
        served.restart()
    thread.join(60)
    assert ended.is_set()
    assert all(device.data[512 * number] == number % 251 + 1 for number in range(200))


def test_without_patience_a_lost_answer_is_told(served: Served, device: MemoryDevice) -> None:
    served.add(0, device)
    disk = Disk(served.unit(0))
    served.portal.close(0)
    with pytest.raises(block_device.NoAnswer):
        read(disk, 0, 512)
