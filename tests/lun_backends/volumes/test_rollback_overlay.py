# SPDX-License-Identifier: Apache-2.0
"""The overlay of a rollback: which chunks are pending, where they read from, and the steps that settle them."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lun_backends import block_device, tracking
from lun_backends.block_device import Extent, ExtentKind
from lun_backends.files import storage_io
from lun_backends.volumes import pending_grains, rollback_overlay
from tests.faults.storage import FaultyIO
from tests.lun_backends.memory_side import CHUNK
from tests.memory_device import MemoryDevice

CHUNKS = 10
SIZE = CHUNKS * CHUNK + 512  # the last chunk is one block


class Rollback:
    """A volume of 2s that is rolled back to a view of 1s, which is two chunks smaller.  `log` lists the steps."""

    def __init__(self, directory: Path, pending: Sequence[int], io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        self.log: list[str] = []
        self.refusal: Exception | None = None  # of the next attempts to preserve
        self.view = MemoryDevice(SIZE - 2 * CHUNK)
        self.view.fill(b"\1" * self.view.size)
        self.primary = MemoryDevice(SIZE)
        self.primary.fill(b"\2" * SIZE)
        self.primary.before = self.note
        path = directory / "pending"
        self.record = pending_grains.PendingGrains.create(path, tracking.BitMap(pending), CHUNKS + 1, io)
        self.overlay = rollback_overlay.RollbackOverlay(self.primary, self.view, self.record, self.preserve)

    def note(self, method: str, offset: int, _length: int) -> None:
        if method in ("writev", "flush"):
            self.log.append(f"write {offset // CHUNK}" if method == "writev" else "flush")

    def preserve(self, ranges: Sequence[tuple[int, int]]) -> None:
        chunks = [
            chunk for offset, length in ranges for chunk in range(offset // CHUNK, -(-(offset + length) // CHUNK))
        ]
        self.log.append(f"preserve {chunks}")
        if self.refusal is not None:
            raise self.refusal

    def pending_on_disk(self) -> list[int]:
        """Return the pending chunks that the next open would find."""
        opened = pending_grains.PendingGrains.open(self.record.path, CHUNKS + 1, storage_io.SYSTEM)
        opened.close()
        return list(opened.grains)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Rollback]:
    opened = Rollback(tmp_path, [1, 2, 5, CHUNKS])
    yield opened
    opened.record.close()


def contents(made: Rollback) -> bytes:
    """Return the first byte of every chunk, as a reader of the overlay sees it."""
    data = bytearray(SIZE)
    made.overlay.readv(0, [memoryview(data)])
    return bytes(data[::CHUNK])


class TestMoment:
    """The view's content, followed by zeroes."""

    @pytest.fixture
    def moment(self) -> rollback_overlay.Moment:
        view = MemoryDevice(1024)
        view.fill(b"v" * 1024)
        return rollback_overlay.Moment(view, 2048)

    def test_blocks_behind_the_view_read_as_zeroes(self, moment: rollback_overlay.Moment) -> None:
        data = bytearray(b"x" * 1024)
        moment.readv(512, [memoryview(data)[:100], memoryview(data)[100:]])
        assert data == b"v" * 512 + bytes(512)
        assert moment.read_now(1024, 512, [memoryview(data)[:512]])
        assert data == bytes(1024)

    def test_it_would_wait_where_the_view_would(self) -> None:
        blocking = rollback_overlay.Moment(MemoryDevice(1024, blocking=True), 2048)
        data = memoryview(bytearray(1024))
        assert not blocking.read_now(512, 1024, [data])
        assert blocking.read_now(1024, 1024, [data])

    def test_blocks_behind_the_view_are_a_hole(self, moment: rollback_overlay.Moment) -> None:
        assert list(moment.extents(0, 2048)) == [
            Extent(0, 1024, ExtentKind.DATA),
            Extent(1024, 1024, ExtentKind.HOLE),
        ]


class TestToSettle:
    """The chunks that are pending at first."""

    def test_changed_chunks_beyond_the_newest_snapshot_are_left_out(self) -> None:
        device = MemoryDevice(SIZE)
        smaller = MemoryDevice(4 * CHUNK - 512)
        chunks = rollback_overlay.to_settle(tracking.BitMap([0, 3, 4, 7]), device, smaller, device)
        assert list(chunks) == [0, 3]

    def test_data_behind_the_view_is_pending_and_holes_are_not(self) -> None:
        view, primary = MemoryDevice(3 * CHUNK), MemoryDevice(SIZE)
        primary.fill(b"x" * 512, 2 * CHUNK)  # within the view
        primary.fill(b"x" * 1024, 6 * CHUNK - 512)  # in two chunks
        primary.fill(b"x" * 512, CHUNKS * CHUNK)
        changed = tracking.BitMap([1])
        chunks = rollback_overlay.to_settle(changed, view, primary, primary)
        assert list(chunks) == [1, 5, 6, CHUNKS]
        assert list(changed) == [1]  # the caller still uses it


class TestReading:
    """Pending chunks read from the view, all others from the primary."""

    def test_each_chunk_is_read_from_where_its_content_is(self, made: Rollback) -> None:
        expected = bytes([2, 1, 1, 2, 2, 1, 2, 2, 2, 2, 0])  # the last one is behind the end of the view
        assert contents(made) == expected
        data = memoryview(bytearray(SIZE))
        assert made.overlay.read_now(0, SIZE, [data])
        assert bytes(data[::CHUNK]) == expected

    def test_a_read_across_a_border_takes_a_part_from_each(self, made: Rollback) -> None:
        data = bytearray(1024)
        made.overlay.readv(3 * CHUNK - 512, [memoryview(data)[:10], memoryview(data)[10:]])
        assert data == b"\1" * 512 + b"\2" * 512

    def test_a_read_that_would_wait_for_the_view_says_so(self, made: Rollback) -> None:
        made.view.blocking = True
        data = memoryview(bytearray(2 * CHUNK))
        assert not made.overlay.read_now(2 * CHUNK, 2 * CHUNK, [data])
        assert made.overlay.read_now(3 * CHUNK, 2 * CHUNK, [data])

    def test_extents_follow_the_same_rule(self, made: Rollback) -> None:
        last = list(made.overlay.extents((CHUNKS - 1) * CHUNK, CHUNK + 512))
        assert last == [
            Extent((CHUNKS - 1) * CHUNK, CHUNK, ExtentKind.DATA),
            Extent(CHUNKS * CHUNK, 512, ExtentKind.HOLE),
        ]
        assert [extent.kind for extent in made.overlay.extents(CHUNKS * CHUNK, 512)] == [ExtentKind.HOLE]

    def test_a_read_behind_the_end_is_refused_by_the_primary(self, made: Rollback) -> None:
        with pytest.raises(block_device.OutOfRange):
            made.overlay.readv(SIZE, [memoryview(bytearray(512))])


class TestSettling:
    """A chunk is preserved, written, made durable, and only then taken out."""

    def test_only_the_chunks_of_the_spans_are_settled(self, made: Rollback) -> None:
        made.overlay.settle([(0, 1), (3, 5)])
        assert list(made.overlay.pending) == made.pending_on_disk() == [2, CHUNKS]
        assert contents(made) == bytes([2, 1, 1, 2, 2, 1, 2, 2, 2, 2, 0])
        assert bytes(made.primary.data[::CHUNK]) == bytes([2, 1, 2, 2, 2, 1, 2, 2, 2, 2, 2])

    def test_a_chunk_is_durable_before_it_is_taken_out(self, tmp_path: Path) -> None:
        io = FaultyIO()
        made = Rollback(tmp_path, [1, 2], io)
        io.fail("pwritev", errno.EIO, path="pending")
        with pytest.raises(block_device.MediumError) as failed:
            made.overlay.settle([(1, 2)])
        assert (failed.value.lba, made.pending_on_disk()) == (CHUNK // 512, [1, 2])
        assert made.log == ["preserve [1, 2]", "write 1", "flush"]
        io.heal()
        made.overlay.settle([(1, 2)])
        assert made.pending_on_disk() == []
        made.record.close()

    def test_a_chunk_that_has_the_right_content_is_only_taken_out(self, made: Rollback) -> None:
        made.primary.fill(b"\1" * CHUNK, 2 * CHUNK)
        made.overlay.settle([(1, 2)])
        assert made.log == ["preserve [1]", "write 1", "flush"]
        assert made.pending_on_disk() == [5, CHUNKS]

    def test_a_chunk_that_cannot_be_preserved_stays_pending(self, made: Rollback) -> None:
        made.refusal = block_device.SpaceExhausted(8)
        with pytest.raises(block_device.SpaceExhausted):
            made.overlay.settle([(1, 1)])
        assert 1 in made.overlay.pending
        assert made.log == ["preserve [1]"]

    def test_all_is_settled_in_rounds_and_reported(self, made: Rollback, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(made.overlay, "_round", 2)
        reports: list[tuple[int, int]] = []
        assert made.overlay.settle_all(lambda done, total: reports.append((done, total)))
        assert reports == [(2 * CHUNK, 4 * CHUNK), (4 * CHUNK, 4 * CHUNK)]
        assert [step for step in made.log if step.startswith("preserve")] == [
            "preserve [1, 2]",
            f"preserve [5, {CHUNKS}]",
        ]
        assert bytes(made.primary.data[::CHUNK]) == bytes([2, 1, 1, 2, 2, 1, 2, 2, 2, 2, 0])
        assert made.pending_on_disk() == []

    def test_settling_all_can_be_cancelled_between_rounds(
        self, made: Rollback, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(made.overlay, "_round", 2)
        assert not made.overlay.settle_all(cancelled=lambda: len(made.overlay.pending) == 2)
        assert made.pending_on_disk() == [5, CHUNKS]


def test_read_that_began_before_the_end_of_the_rollback_outlives_its_snapshot(made: Rollback) -> None:
    """The rollback ends after the read has looked what is pending, and the snapshot is deleted at once."""

    def delete(_method: str, _offset: int, _length: int) -> None:
        made.view.before = None
        assert made.overlay.settle_all()
        raise block_device.DeviceClosed

    made.view.before = delete
    buffer = memoryview(bytearray(CHUNK))
    made.overlay.readv(CHUNK, [buffer])
    assert bytes(buffer) == b"\1" * CHUNK


def test_closed_view_of_an_unfinished_rollback_is_an_error(made: Rollback) -> None:
    def close(_method: str, _offset: int, _length: int) -> None:
        raise block_device.DeviceClosed

    made.view.before = close
    with pytest.raises(block_device.DeviceClosed):
        made.overlay.readv(CHUNK, [memoryview(bytearray(CHUNK))])
