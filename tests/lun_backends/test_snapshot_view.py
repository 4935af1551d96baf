# SPDX-License-Identifier: Apache-2.0
"""A view over a chain of devices in memory: the source of each block, the second look, and snapshots that leave the chain."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator

import pytest

from lun_backends import block_device
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.damage import Damage, OnDamage
from lun_backends.snapshot_view import SnapshotView
from lun_backends.view_chain import Chain
from tests.lun_backends.memory_side import CHUNK, SIZE, MemorySide, block, read
from tests.memory_device import MemoryDevice


@pytest.fixture
def links() -> list[MemorySide]:
    return [MemorySide(SIZE) for _ in range(3)]


@pytest.fixture
def chain(links: list[MemorySide]) -> Chain:
    return Chain(links)


def views(primary: MemoryDevice, chain: Chain) -> list[SnapshotView]:
    return [SnapshotView(primary, chain, link) for link in chain.links]


@pytest.mark.parametrize("now", [False, True])
def test_the_oldest_copy_from_the_snapshot_on_answers(
    primary: MemoryDevice, links: list[MemorySide], chain: Chain, now: bool
) -> None:
    dice = random.Random(5)
    blocks = SIZE // 512
    expected = [[-1] * blocks for _ in links]
    for number, link in enumerate(links):
        for lba in dice.sample(range(blocks), blocks // 3):
            link.fill(bytes([100 + number]) * 512, lba * 512)
            for older in expected[: number + 1]:
                if older[lba] < 0:
                    older[lba] = 100 + number
    for view, content in zip(views(primary, chain), expected, strict=True):
        moment = b"".join(
            primary.data[lba * 512 : (lba + 1) * 512] if fill < 0 else bytes([fill]) * 512
            for lba, fill in enumerate(content)
        )
        data = bytearray(SIZE)
        pieces = [memoryview(data)[:700], memoryview(data)[700:701], memoryview(data)[701:]]
        if now:
            assert view.read_now(0, SIZE, pieces)
        else:
            view.readv(0, pieces)
        assert data == moment


@pytest.mark.parametrize("now", [False, True])
def test_a_copy_made_while_the_primary_was_read_wins(
    primary: MemoryDevice, links: list[MemorySide], chain: Chain, now: bool
) -> None:
    """Rule 3: without the second look, the view would show the new data."""
    before = bytes(primary.data[:1024])
    view = SnapshotView(primary, chain, links[0])

    def write(method: str, _offset: int, _length: int) -> None:
        if method == "readv":
            primary.before = None
            links[2].fill(before[:512], 0)
            newest = MemorySide(SIZE)  # a snapshot taken meanwhile got copies, too, of a later moment
            newest.fill(b"\xdd" * 512, 0)
            newest.fill(before[512:], 512)
            chain.append(newest)
            primary.fill(b"\xee" * 1024, 0)

    primary.before = write
    data = bytearray(1024)
    if now:
        assert view.read_now(0, 1024, [memoryview(data)])
    else:
        view.readv(0, [memoryview(data)])
    assert data == before


def test_thousands_of_snapshots_are_read_through(primary: MemoryDevice) -> None:
    links = [MemorySide(SIZE) for _ in range(3000)]
    links[-1].fill(b"\x11" * 512, 512)
    view = SnapshotView(primary, Chain(links), links[0])
    data = bytearray(1536)
    for attempt in (view.readv, view.read_checked):
        data[:] = bytes(1536)
        attempt(0, [memoryview(data)])
        assert data == primary.data[:512] + b"\x11" * 512 + primary.data[1024:1536]


def test_checked_reads_check_every_link(primary: MemoryDevice, links: list[MemorySide], chain: Chain) -> None:
    class Spoiled(MemorySide):
        def read_checked(self, offset: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
            self.readv(offset, buffers)
            damage = Damage(offset, block_device.total_length(buffers), "spoiled", uuid.UUID(int=9))
            if on_damage is None:
                raise block_device.DamagedBlocks(offset // 512, False, "spoiled", damage)
            on_damage(damage)

    newest = Spoiled(SIZE)
    newest.fill(b"\x11" * 1024, 512)
    links[1].fill(b"\x22" * 512, 512)
    chain.append(newest)
    view = SnapshotView(primary, chain, links[0])
    data = bytearray(2048)
    view.readv(0, [memoryview(data)])
    with pytest.raises(block_device.DamagedBlocks):
        view.read_checked(0, [memoryview(data)])
    reported: list[Damage] = []
    view.read_checked(0, [memoryview(data)], reported.append)
    assert [(damage.offset, damage.length) for damage in reported] == [
        (1024, 512)
    ]  # the older copy of block 1 is the one shown
    assert data == primary.data[:512] + b"\x22" * 512 + b"\x11" * 512 + primary.data[1536:2048]


@pytest.mark.parametrize("slow", ["primary", "link"])
def test_a_read_that_would_wait_for_any_link_is_not_done(
    primary: MemoryDevice, links: list[MemorySide], chain: Chain, slow: str
) -> None:
    links[1].fill(b"\x11" * 512, 512)
    view = SnapshotView(primary, chain, links[0])
    (primary if slow == "primary" else links[1]).blocking = True
    data = bytearray(1536)
    assert not view.read_now(0, 1536, [memoryview(data)])
    view.readv(0, [memoryview(data)])
    assert data[512:1024] == b"\x11" * 512


def test_extents_are_data_where_a_link_or_the_primary_has_data(links: list[MemorySide]) -> None:
    primary = MemoryDevice(SIZE)
    primary.fill(b"\x22" * 1024, 0)
    links[1].fill(b"\x11" * 512, 512)
    links[2].fill(b"\x11" * 512, 4096)
    view = SnapshotView(primary, Chain(links), links[0])
    kinds = [(extent.offset, extent.length, extent.kind) for extent in view.extents(0, SIZE)]
    assert kinds == [
        (0, 1024, ExtentKind.DATA),
        (1024, 3072, ExtentKind.HOLE),
        (4096, 512, ExtentKind.DATA),
        (4608, SIZE - 4608, ExtentKind.HOLE),
    ]


def test_a_view_refuses_writes_and_reads_beyond_its_end(
    primary: MemoryDevice, links: list[MemorySide], chain: Chain
) -> None:
    view = SnapshotView(primary, chain, links[0])
    for write in (
        lambda: view.writev(0, block(1)),
        lambda: view.write_now(0, 512, block(1)),
        lambda: view.write_zeroes(0, 512, discard=True),
    ):
        with pytest.raises(block_device.WriteProtected):
            write()
    with pytest.raises(block_device.OutOfRange):
        read(view, SIZE, 512)
    with pytest.raises(block_device.OutOfRange):
        view.read_now(SIZE, 512, block(0))


def test_a_view_whose_snapshot_left_the_chain_is_closed(
    primary: MemoryDevice, links: list[MemorySide], chain: Chain
) -> None:
    first, second, _ = views(primary, chain)
    chain.replace(links[1:])
    with pytest.raises(block_device.DeviceClosed):
        read(first, 0, 512)
    read(second, 0, 512)
    second.close()
    with pytest.raises(block_device.DeviceClosed):
        second.flush()
    with pytest.raises(block_device.DeviceClosed):
        second.read_now(0, 512, block(0))


def test_replace_waits_for_reads_that_began_before(
    primary: MemoryDevice, links: list[MemorySide], chain: Chain
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    view, newer, _ = views(primary, chain)

    def stop(_method: str, _offset: int, _length: int) -> None:
        primary.before = None
        reading.set()
        assert go_on.wait(60)

    primary.before = stop
    outcome: list[object] = []
    reader = threading.Thread(target=lambda: outcome.append(read(newer, 0, 512)))
    reader.start()
    assert reading.wait(60)

    def delete() -> None:
        chain.replace(links[1:])
        outcome.append("replaced")

    deleting = threading.Thread(target=delete)
    deleting.start()
    while chain.links != tuple(links[1:]):
        deleting.join(0.001)
    read(newer, 0, 512)  # a read that begins now is not waited for, and does not wait
    with pytest.raises(block_device.DeviceClosed):
        read(view, 0, 512)
    assert outcome == []
    go_on.set()
    reader.join()
    deleting.join()
    assert outcome == [bytes(primary.data[:512]), "replaced"]


def test_an_event_loop_does_not_ask_a_long_chain(primary: MemoryDevice) -> None:
    """It asks no more than 100 settled devices; what a worker asked is looked up from then on."""
    chain = Chain([MemorySide(SIZE) for _ in range(102)])
    oldest, second = views(primary, chain)[:2]
    data = bytearray(512)
    assert not oldest.read_now(0, 512, [memoryview(data)])
    assert not second.read_now(0, 512, [memoryview(data)])
    read(oldest, 0, 512)
    asked = [link.asked for link in chain.links if isinstance(link, Asked)]
    assert oldest.read_now(0, 512, [memoryview(data)])
    assert data == primary.data[:512]
    assert asked == [link.asked for link in chain.links if isinstance(link, Asked)]


class Asked(MemorySide):
    """A device that counts the questions about its extents."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.asked = 0

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self.asked += 1
        return super().extents(offset, length)


def test_only_the_armed_device_is_asked_at_every_read(primary: MemoryDevice) -> None:
    links = [Asked() for _ in range(5)]
    links[2].fill(b"\x22" * CHUNK, CHUNK)
    chain = Chain(links)
    oldest = views(primary, chain)[0]
    for _ in range(3):
        assert (
            read(oldest, 0, 3 * CHUNK) == primary.data[:CHUNK] + b"\x22" * CHUNK + primary.data[2 * CHUNK : 3 * CHUNK]
        )
    assert [link.asked for link in links[:4]] == [1] * 4
    assert links[4].asked >= 6
    assert primary.calls["readv"] == 3, "the primary is read once for a range"


def test_an_unreadable_block_of_the_primary_that_was_preserved_does_no_harm(primary: MemoryDevice) -> None:
    links = [MemorySide(SIZE) for _ in range(2)]
    links[0].fill(b"\x22" * CHUNK, CHUNK)
    view = views(primary, Chain(links))[0]
    primary.inject("readv", block_device.MediumError(8, False, "bad"))
    assert read(view, 0, 3 * CHUNK) == primary.data[:CHUNK] + b"\x22" * CHUNK + primary.data[2 * CHUNK : 3 * CHUNK]


def test_many_snapshots_taken_and_deleted_leave_no_numbers_behind(primary: MemoryDevice) -> None:
    chain = Chain([MemorySide(SIZE) for _ in range(3)])
    for turn in range(300):
        newest = MemorySide(SIZE)
        newest.fill(bytes([turn % 251]) * CHUNK, 0)
        chain.append(newest)
        chain.replace(chain.links[1:])
        assert read(views(primary, chain)[0], 0, CHUNK)[0] == max(0, turn - 2 if turn > 2 else 0) % 251
        assert len(chain.table.devices) < 100


def test_extents_of_scattered_blocks_in_many_links(primary: MemoryDevice) -> None:
    """Every second block of the first half, each in another link; then all, where no further link is asked."""
    blocks = SIZE // 512
    links = [MemorySide(SIZE) for _ in range(blocks // 4 + 2)]
    chain = Chain(links)
    view = views(primary, chain)[0]
    primary.write_zeroes(0, SIZE, discard=True)
    for number in range(blocks // 4):
        chain.links[number].writev(number * 1024, block(1))
    kinds = [extent.kind for extent in view.extents(0, SIZE) for _ in range(extent.length // 512)]
    assert kinds == [ExtentKind.DATA, ExtentKind.HOLE] * (blocks // 4) + [ExtentKind.HOLE] * (blocks - blocks // 4 * 2)
    links[-2].fill(bytes(SIZE), 0)
    assert [(extent.length, extent.kind) for extent in view.extents(0, SIZE)] == [(SIZE, ExtentKind.DATA)]
