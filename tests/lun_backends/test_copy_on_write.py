# SPDX-License-Identifier: Apache-2.0
"""Copy-on-write over devices in memory: which chunks it preserves, and how barrier, holder and writes meet."""

from __future__ import annotations

import contextlib
import threading

import pytest

from lun_backends import block_device
from lun_backends.block_device import ExtentKind
from lun_backends.copy_on_write import CopyOnWrite
from tests.lun_backends.memory_side import CHUNK, SIZE, MemorySide, block, read
from tests.memory_device import MemoryDevice


def test_without_a_snapshot_writes_go_through(primary: MemoryDevice) -> None:
    cow = CopyOnWrite(primary, CHUNK)
    assert cow.write_now(512, 512, block(9))
    assert cow.write_now(CHUNK - 512, 1024, block(9, 1024))
    assert read(primary, 512, 512) == bytes([9]) * 512
    assert cow.tracker is None


def test_the_chunk_is_preserved_before_the_primary_changes(
    cow: CopyOnWrite, primary: MemoryDevice, side: MemorySide
) -> None:
    before = bytes(primary.data)
    order: list[str] = []
    side.on_commit = lambda: order.append("commit")
    primary.before = lambda method, _offset, _length: order.append(method)
    cow.writev(CHUNK + 512, block(9))
    assert order == ["readv", "commit", "writev"]
    assert read(side, CHUNK, CHUNK) == before[CHUNK : 2 * CHUNK]
    assert read(primary, CHUNK + 512, 512) == bytes([9]) * 512
    assert cow.tracker is not None
    assert list(cow.tracker) == [1]


def test_a_write_that_must_not_wait_makes_no_copy_and_goes_to_a_preserved_chunk(
    cow: CopyOnWrite, primary: MemoryDevice
) -> None:
    before = bytes(primary.data)
    assert not cow.write_now(0, 512, block(9))
    assert primary.data == before
    cow.writev(0, block(9))
    assert cow.write_now(512, 512, block(8))
    assert read(primary, 0, 1024) == bytes([9]) * 512 + bytes([8]) * 512
    assert not cow.write_now(CHUNK - 512, 1024, block(9, 1024))  # chunk 0 is preserved, chunk 1 is not


def test_a_second_write_to_a_chunk_copies_nothing(cow: CopyOnWrite, side: MemorySide) -> None:
    cow.writev(0, block(9))
    cow.writev(0, block(8))
    assert side.commits == [[0]]
    assert read(side, 0, 512) == bytes(512)


@pytest.mark.parametrize("discard", [False, True])
def test_zeroes_and_discards_are_preserved_like_writes(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice, discard: bool
) -> None:
    before = bytes(primary.data)
    cow.write_zeroes(CHUNK + 512, CHUNK, discard=discard)
    assert read(side, CHUNK, 2 * CHUNK) == before[CHUNK : 3 * CHUNK]
    assert read(primary, CHUNK + 512, CHUNK) == bytes(CHUNK)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("discard", [False, True])
def test_zeroes_on_a_hole_preserve_nothing(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice, discard: bool, held: bool
) -> None:
    """Chunks 2 to 5 are holes but for one block in chunk 3."""
    primary.write_zeroes(2 * CHUNK, 4 * CHUNK, discard=True)
    primary.writev(3 * CHUNK + 512, block(7))
    primary.calls.clear()
    with cow.exclusive() if held else contextlib.nullcontext(cow) as device:
        device.write_zeroes(2 * CHUNK, 4 * CHUNK, discard=discard)
    assert side.commits == [[3 * CHUNK]]
    assert read(side, 3 * CHUNK, CHUNK) == bytes(512) + bytes([7]) * 512 + bytes(CHUNK - 1024)
    assert read(primary, 2 * CHUNK, 4 * CHUNK) == bytes(4 * CHUNK)
    assert primary.calls["write_zeroes"] == 1
    assert [extent.kind for extent in cow.extents(2 * CHUNK, 4 * CHUNK)] == (
        [ExtentKind.HOLE] if discard else [ExtentKind.DATA]
    )


def test_a_hole_that_is_filled_during_the_copy_is_preserved_for_a_new_snapshot(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    """While a discard copies chunk 1, another write fills the hole in chunk 2, and a snapshot is taken."""
    primary.write_zeroes(2 * CHUNK, CHUNK, discard=True)
    newer = MemorySide(SIZE)

    def fill() -> None:
        side.on_commit = None
        cow.writev(2 * CHUNK, block(9))
        with cow.hold():
            cow.arm(newer)

    side.on_commit = fill
    before = read(primary, CHUNK, CHUNK)
    cow.write_zeroes(CHUNK, 2 * CHUNK, discard=True)
    assert read(newer, CHUNK, 2 * CHUNK) == before + bytes([9]) * 512 + bytes(CHUNK - 512)
    assert read(primary, CHUNK, 2 * CHUNK) == bytes(2 * CHUNK)


def test_a_hold_waits_for_running_writes_and_stops_new_ones(cow: CopyOnWrite, primary: MemoryDevice) -> None:
    cow.prepare_writes([(0, SIZE)])
    writing, go_on = threading.Event(), threading.Event()

    def stop(method: str, _offset: int, _length: int) -> None:
        if method == "writev" and not writing.is_set():
            writing.set()
            assert go_on.wait(60)

    primary.before = stop
    writer = threading.Thread(target=cow.writev, args=(0, block(1)))
    writer.start()
    assert writing.wait(60)
    held = threading.Event()
    let_go = threading.Event()

    def hold() -> None:
        with cow.hold():
            held.set()
            assert let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    while not cow.gate.held:
        holder.join(0.01)
    assert not cow.write_now(512, 512, block(1))
    assert not held.is_set()
    go_on.set()
    assert held.wait(60)
    late = threading.Thread(target=cow.writev, args=(512, block(2)))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    let_go.set()
    holder.join()
    late.join()
    assert read(primary, 512, 512) == bytes([2]) * 512
    assert cow.gate.holds == 2  # the hold of the fixture and this one


def test_exclusive_preserves_and_excludes(cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice) -> None:
    before = bytes(primary.data)
    with cow.exclusive() as device:
        assert read(device, 0, 512) == before[:512]
        device.writev(0, block(9))
        device.write_zeroes(CHUNK, 512, discard=False)
        assert not cow.write_now(0, 512, block(1))
    assert read(side, 0, 2 * CHUNK) == before[: 2 * CHUNK]
    assert read(primary, 0, 512) == bytes([9]) * 512


def test_a_new_snapshot_begins_with_an_empty_tracker(cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice) -> None:
    cow.writev(0, block(9))
    newer = MemorySide(SIZE)
    with cow.hold():
        cow.arm(newer)
    cow.writev(0, block(8))
    assert read(newer, 0, 512) == bytes([9]) * 512
    assert read(side, 0, 512) == bytes(512)


def test_a_barrier_does_not_wait_for_a_copy_and_both_snapshots_get_the_chunk(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    before = read(primary, 0, CHUNK)
    newer = MemorySide(SIZE)

    def overtake() -> None:
        side.on_commit = None
        with cow.hold():
            cow.arm(newer)
        assert not cow.write_now(0, 512, block(7))

    side.on_commit = overtake
    cow.writev(0, block(8))
    assert read(side, 0, CHUNK) == before
    assert read(newer, 0, CHUNK) == before


def test_a_closed_device_refuses_writes(cow: CopyOnWrite) -> None:
    cow.close()
    cow.close()
    with pytest.raises(block_device.DeviceClosed):
        cow.writev(0, block(1))
    with pytest.raises(block_device.DeviceClosed), cow.exclusive() as device:
        device.writev(0, block(1))
