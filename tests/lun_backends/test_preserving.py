# SPDX-License-Identifier: Apache-2.0
"""The copies of copy-on-write, over devices in memory: their extent, commits and failures, and which writes wait for which."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from lun_backends import block_device, preserving
from lun_backends.copy_on_write import CopyOnWrite
from lun_backends.preserving import Decision
from lun_backends.tracking import GRAIN
from tests.lun_backends.memory_side import CHUNK, SIZE, MemorySide, block, read
from tests.memory_device import MemoryDevice


def test_prepare_copies_a_batch_with_one_commit(cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice) -> None:
    before = bytes(primary.data)
    cow.prepare_writes([(0, 512), (512, 512), (CHUNK * 3, CHUNK * 2), (SIZE - 512, 512)])
    assert side.commits == [[0, 3 * CHUNK, 16 * CHUNK]]  # neighbours go as one piece
    assert read(side, 3 * CHUNK, 2 * CHUNK) == before[3 * CHUNK : 5 * CHUNK]
    assert primary.data == before
    assert read(side, 16 * CHUNK, 512) == before[-512:]
    assert cow.counters.copies == 4
    assert cow.write_now(CHUNK * 3, CHUNK * 2, block(1, CHUNK * 2))


def test_prepare_without_waiting_copies_where_commits_stay_in_memory(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    before = bytes(primary.data)
    assert not cow.prepare_now([(0, 512)])  # each commit would wait for the disk
    assert side.commits == []
    side.commits_in_memory = True
    assert cow.prepare_now([(0, 512), (CHUNK * 3, CHUNK * 2)])
    assert side.commits == [[0, 3 * CHUNK]]
    assert read(side, 3 * CHUNK, CHUNK) == before[3 * CHUNK : 4 * CHUNK]
    assert cow.write_now(CHUNK * 3, CHUNK * 2, block(1, CHUNK * 2))
    assert cow.counters.copies == 3


def test_prepare_without_waiting_leaves_chunks_that_need_waiting(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    side.commits_in_memory = True
    side.writev(CHUNK, block(7))  # chunk 1 is written in part
    read: list[tuple[int, int]] = []

    def uncached(method: str, offset: int, length: int) -> bool:
        read.append((offset, length))
        return method != "readv" or not offset <= 2 * CHUNK < offset + length

    primary.before = uncached
    assert cow.prepare_now([(0, 4 * CHUNK)])
    primary.before = None
    # First all grains at once, then halves, down to the one that is not in the page cache; grain 3 was not tried.  Then
    # the grain beside the one that is written in part.
    assert read == [(0, 4 * CHUNK), (0, 2 * CHUNK), (2 * CHUNK, 2 * CHUNK), (2 * CHUNK, CHUNK), (0, CHUNK)]
    assert cow.tracker is not None
    assert list(cow.tracker) == [0]
    side.inject("writev", block_device.SpaceExhausted(24))
    assert cow.prepare_now([(3 * CHUNK, 512)])
    assert list(cow.tracker) == [0]
    cow.writev(0, block(9, 4 * CHUNK))  # no claim is left
    assert list(cow.tracker) == [0, 1, 2, 3]


def test_after_copies_that_waited_for_the_disk_workers_copy_until_that_is_quick(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    side.commits_in_memory = True

    def compute(_method: str, _offset: int, _length: int) -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    primary.before = compute  # slow as on a busy processor, but without waiting
    assert cow.prepare_now([(0, 512)])
    assert cow.prepare_now([(CHUNK, 512)])

    def wait(_method: str, _offset: int, _length: int) -> None:
        time.sleep(0.02)

    primary.before = wait
    assert cow.prepare_now([(2 * CHUNK, 512)])
    primary.before = None
    for _ in range(preserving._SUSPICION):  # enough for the slow one to be forgotten
        assert cow.prepare_now([(2 * CHUNK, 512)])
    primary.before = wait
    assert cow.prepare_now([(3 * CHUNK, 512)])
    assert cow.prepare_now([(4 * CHUNK, 512)])
    assert not cow.prepare_now([(5 * CHUNK, 512)])
    assert side.commits == [[n * CHUNK] for n in range(5)]
    primary.before = None
    for _ in range(preserving._PROOF):
        assert not cow.prepare_now([(5 * CHUNK, 512)])
        another = MemorySide(SIZE)
        another.commits_in_memory = True
        cow.arm(another)
        cow.preserve(0, 512)
    assert cow.prepare_now([(5 * CHUNK, 512)])


def test_prepare_of_a_range_beyond_the_device_is_left_to_the_write(cow: CopyOnWrite, side: MemorySide) -> None:
    cow.prepare_writes([(SIZE, 512), (0, 512)])
    assert side.commits == [[0]]
    with pytest.raises(block_device.OutOfRange):
        cow.writev(SIZE, block(9))


def test_a_large_write_is_copied_in_rounds(
    primary: MemoryDevice, side: MemorySide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lun_backends.preserving._ROUND", 4 * CHUNK)
    cow = CopyOnWrite(primary, CHUNK)
    cow.arm(side)
    before = bytes(primary.data)
    cow.writev(0, block(9, 10 * CHUNK))
    assert side.commits == [[0], [4 * CHUNK], [8 * CHUNK]]
    assert cow.counters.copies == 10
    assert read(side, 0, 10 * CHUNK) == before[: 10 * CHUNK]


def test_a_chunk_that_another_node_preserved_is_no_error(cow: CopyOnWrite, side: MemorySide) -> None:
    side.fill(b"\x55" * CHUNK, CHUNK)
    cow.writev(CHUNK, block(9))
    assert read(side, CHUNK, CHUNK) == b"\x55" * CHUNK
    assert (cow.counters.copies, cow.counters.futile_copies) == (0, 1)
    assert cow.write_now(CHUNK, 512, block(8))


def test_only_the_blank_blocks_of_a_partly_written_chunk_are_copied(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    before = bytes(primary.data)
    side.fill(b"\x55" * 512, CHUNK + 1024)
    cow.writev(CHUNK, block(9, CHUNK))
    expected = bytearray(before[CHUNK : 2 * CHUNK])
    expected[1024:1536] = b"\x55" * 512
    assert read(side, CHUNK, CHUNK) == expected


def test_a_failed_copy_refuses_the_write_and_releases_the_claim(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    before = bytes(primary.data)
    side.inject("writev", block_device.SpaceExhausted(8))
    with pytest.raises(block_device.PreserveFailed) as caught:
        cow.writev(CHUNK, block(9))
    assert caught.value.lba == 8
    assert primary.data == before
    cow.writev(CHUNK, block(9))
    assert read(side, CHUNK, CHUNK) == before[CHUNK : 2 * CHUNK]


def test_a_primary_that_cannot_be_read_refuses_the_write(cow: CopyOnWrite, primary: MemoryDevice) -> None:
    primary.inject("readv", block_device.MediumError(8, False, "rot"))
    with pytest.raises(block_device.PreserveFailed, match="rot"):
        cow.writev(CHUNK, block(9))


def test_a_policy_may_invalidate_the_snapshot(primary: MemoryDevice, side: MemorySide) -> None:
    def give_up(_side: object, error: block_device.BlockDeviceError, _began: float) -> Decision:
        assert isinstance(error, block_device.SpaceExhausted)
        return Decision.INVALIDATED

    device = CopyOnWrite(primary, CHUNK, give_up)
    device.arm(side)
    side.inject("writev", block_device.SpaceExhausted(8))
    device.writev(CHUNK, block(9))
    assert device.write_now(2 * CHUNK, 512, block(9))
    assert read(primary, CHUNK, 512) == bytes([9]) * 512
    assert side.commits == []


def test_a_policy_may_make_room_and_have_the_copy_tried_again(primary: MemoryDevice, side: MemorySide) -> None:
    asked = []

    def again(_side: object, _error: block_device.BlockDeviceError, began: float) -> Decision:
        asked.append(began)
        return Decision.AGAIN if len(asked) < 3 else Decision.REFUSE

    device = CopyOnWrite(primary, CHUNK, again)
    device.arm(side)
    side.inject("writev", block_device.SpaceExhausted(8), 2)
    before = read(primary, CHUNK, CHUNK)
    device.writev(CHUNK, block(9))
    assert read(side, CHUNK, CHUNK) == before
    assert asked == sorted(asked)
    side.inject("writev", block_device.SpaceExhausted(8), 3)
    with pytest.raises(block_device.PreserveFailed):
        device.writev(2 * CHUNK, block(9))


def test_a_late_copy_fails_the_write_and_keeps_its_claim(primary: MemoryDevice, side: MemorySide) -> None:
    """While the copy goes on, no write may change the chunk, so that the copy reads the pre-image."""
    go_on = threading.Event()
    device = CopyOnWrite(primary, CHUNK, copy_timeout=0.05)
    device.arm(side)
    before = read(primary, CHUNK, CHUNK)
    side.on_commit = lambda: assert_(go_on.wait(60))
    with pytest.raises(block_device.PreserveFailed) as refused:
        device.writev(CHUNK, block(9))
    assert isinstance(refused.value.cause, block_device.CopyTimedOut)
    with pytest.raises(block_device.PreserveFailed, match=r"within 0\.05 s"):
        device.writev(CHUNK + 512, block(9))  # waits for the claim, without success
    assert read(primary, CHUNK, CHUNK) == before
    side.on_commit = None
    go_on.set()
    device.preserver.copy_timeout = 60
    device.writev(CHUNK, block(9))  # the late copy has succeeded meanwhile, or will succeed
    assert read(side, CHUNK, CHUNK) == before
    assert len(side.commits) == 1
    assert read(primary, CHUNK, 512) == bytes([9]) * 512


def test_a_time_limit_does_not_change_copies_that_keep_it(primary: MemoryDevice, side: MemorySide) -> None:
    device = CopyOnWrite(primary, CHUNK, copy_timeout=60)
    device.arm(side)
    before = bytes(primary.data)
    device.writev(0, block(9, 3 * CHUNK))
    assert read(side, 0, 3 * CHUNK) == before[: 3 * CHUNK]
    side.inject("writev", block_device.SpaceExhausted(8))
    with pytest.raises(block_device.PreserveFailed, match="no space"):
        device.writev(8 * CHUNK, block(9))


def assert_(condition: bool) -> None:
    """Assert in a lambda."""
    assert condition


def stopped_at_its_commit(side: MemorySide, error: Exception | None = None) -> tuple[threading.Event, threading.Event]:
    """Let the next commit of `side` set the first event and wait for the second; then it succeeds, or raises `error`."""
    copying, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        side.on_commit = None
        copying.set()
        assert go_on.wait(60)
        if error is not None:
            raise error

    side.on_commit = stop
    return copying, go_on


def test_a_write_waits_for_the_copy_of_its_chunk_and_others_do_not(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    copying, go_on = stopped_at_its_commit(side)
    before = bytes(primary.data)
    first = threading.Thread(target=cow.writev, args=(0, block(1)))
    first.start()
    assert copying.wait(60)
    second = threading.Thread(target=cow.writev, args=(0, block(2, 2 * CHUNK)))  # chunk 0 is busy, chunk 1 is not
    second.start()
    cow.writev(4 * CHUNK, block(3))
    while cow.counters.waits == 0:
        second.join(0.01)
    assert read(primary, 0, 2 * CHUNK) == before[: 2 * CHUNK]
    assert cow.tracker is not None
    assert 1 in cow.tracker  # it preserved the chunk that it could claim before it waited
    go_on.set()
    first.join()
    second.join()
    assert read(primary, 0, 2 * CHUNK) in (bytes([2]) * 2 * CHUNK, bytes([1]) * 512 + bytes([2]) * (2 * CHUNK - 512))
    assert read(side, 0, 2 * CHUNK) == before[: 2 * CHUNK]


def test_a_waiter_copies_itself_when_the_copy_it_waited_for_failed(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    copying, go_on = stopped_at_its_commit(side, block_device.SpaceExhausted(0))
    before = bytes(primary.data)
    failures: list[BaseException] = []

    def fails() -> None:
        try:
            cow.writev(0, block(1))
        except block_device.PreserveFailed as error:
            failures.append(error)

    first = threading.Thread(target=fails)
    first.start()
    assert copying.wait(60)
    second = threading.Thread(target=cow.writev, args=(0, block(2)))
    second.start()
    while cow.counters.waits == 0:
        second.join(0.01)
    go_on.set()
    first.join()
    second.join()
    assert len(failures) == 1
    assert read(side, 0, CHUNK) == before[:CHUNK]
    assert read(primary, 0, 512) == bytes([2]) * 512


def test_a_copy_that_a_new_snapshot_overtook_before_its_claim_is_not_made(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read data written after the new snapshot, and preserve it in the old one."""
    original = cow.preserver._preserve_round
    newer = MemorySide(SIZE)
    before = read(primary, 0, 512)

    def overtaken(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(cow.preserver, "_preserve_round", original)
        with cow.hold():
            cow.arm(newer)
        cow.writev(0, block(7))
        return original(*arguments, **options)

    monkeypatch.setattr(cow.preserver, "_preserve_round", overtaken)
    cow.writev(0, block(8))
    assert side.commits == []
    assert read(newer, 0, 512) == before
    assert read(primary, 0, 512) == bytes([8]) * 512


def test_a_copy_into_a_snapshot_deleted_meanwhile_is_made_again_in_the_current_one(
    cow: CopyOnWrite, side: MemorySide, primary: MemoryDevice
) -> None:
    before = read(primary, 0, CHUNK)
    older = MemorySide(SIZE)

    def overtake() -> None:
        with cow.hold():
            cow.arm(older)
        raise block_device.DeviceClosed

    side.on_commit = overtake
    cow.writev(0, block(8))
    assert read(older, 0, CHUNK) == before


class TestExtent:
    """The grains that a copy covers, in chunks of four."""

    CHUNK = 4 * GRAIN

    @pytest.fixture
    def device(self, primary: MemoryDevice, side: MemorySide) -> CopyOnWrite:
        device = CopyOnWrite(primary, self.CHUNK)
        device.arm(side)
        return device

    @staticmethod
    def preserved(device: CopyOnWrite) -> list[int]:
        assert device.tracker is not None
        return list(device.tracker)

    def test_a_write_preserves_the_grains_that_it_touches(self, device: CopyOnWrite, side: MemorySide) -> None:
        device.writev(5 * GRAIN + 512, block(1))
        device.writev(11 * GRAIN - 512, block(1, 1024))  # across the border of two
        device.writev(SIZE - 512, block(1))
        assert self.preserved(device) == [5, 10, 11, 16]
        assert side.calls["writev"] == 3
        assert device.counters.copied_bytes == 3 * GRAIN + 512

    def test_a_sequential_writer_is_preserved_ahead_to_the_end_of_the_chunk(
        self, device: CopyOnWrite, side: MemorySide
    ) -> None:
        for n in range(2 * 8, 16 * 8):
            device.writev(n * 512, block(1))
        # The first write shows nothing yet, and the second one is in the next chunk by the time it is seen.
        assert side.commits == [[n * GRAIN] for n in (2, 3, 4, 8, 12)]

    def test_sequential_writers_are_told_apart(self, device: CopyOnWrite, side: MemorySide) -> None:
        for n in range(4):
            device.writev(n * GRAIN, block(1))
            device.writev((8 + n) * GRAIN, block(1))
        assert side.commits == [[0], [8 * GRAIN], [GRAIN], [9 * GRAIN]]
        assert self.preserved(device) == [0, 1, 2, 3, 8, 9, 10, 11]

    def test_a_batch_of_neighbours_is_sequential(self, device: CopyOnWrite, side: MemorySide) -> None:
        device.prepare_writes([(8 * GRAIN, 512), (4 * GRAIN, GRAIN), (5 * GRAIN, GRAIN)])
        assert side.commits == [[4 * GRAIN]]
        assert self.preserved(device) == [4, 5, 6, 7, 8]

    def test_what_is_ahead_and_known_or_claimed_is_left_out(
        self, device: CopyOnWrite, side: MemorySide, primary: MemoryDevice
    ) -> None:
        before = bytes(primary.data)
        device.writev(0, block(1))
        device.writev(2 * GRAIN, block(1))
        copying, go_on = stopped_at_its_commit(side)
        other = threading.Thread(target=device.writev, args=(3 * GRAIN, block(1)))
        other.start()
        assert copying.wait(60)
        device.writev(GRAIN, block(1))  # waits for nobody
        assert device.counters.waits == 0
        go_on.set()
        other.join()
        assert self.preserved(device) == [0, 1, 2, 3]
        assert read(side, 0, self.CHUNK) == before[: self.CHUNK]

    def test_a_failure_ahead_fails_no_write(self, device: CopyOnWrite, side: MemorySide, primary: MemoryDevice) -> None:
        def rotten(method: str, offset: int, length: int) -> None:
            if method == "readv" and offset <= 3 * GRAIN < offset + length:
                raise block_device.MediumError(3 * GRAIN // 512, False, "rot")

        primary.before = rotten
        for n in range(3):
            device.writev(n * GRAIN, block(1))
        assert self.preserved(device) == [0, 1, 2]
        with pytest.raises(block_device.PreserveFailed, match="rot"):
            device.writev(3 * GRAIN, block(1))

    def test_a_device_that_checksums_more_gets_more(self, primary: MemoryDevice, side: MemorySide) -> None:
        side.grain = 2 * GRAIN
        device = CopyOnWrite(primary, self.CHUNK)
        device.arm(side)
        device.writev(5 * GRAIN, block(1))
        device.writev(SIZE - 512, block(1))
        assert self.preserved(device) == [4, 5, 16]
        side = MemorySide(SIZE)
        side.grain = 16 * GRAIN
        device.arm(side)
        device.writev(5 * GRAIN, block(1))
        assert self.preserved(device) == [4, 5, 6, 7]  # no more than the chunk

    def test_a_physical_block_is_read_and_kept_as_a_whole(self, primary: MemoryDevice, side: MemorySide) -> None:
        primary.physical_block_size = 2 * GRAIN
        device = CopyOnWrite(primary, self.CHUNK)
        device.arm(side)
        device.writev(5 * GRAIN, block(1))
        assert self.preserved(device) == [4, 5]

    def test_only_what_is_not_there_already_is_put(
        self, device: CopyOnWrite, side: MemorySide, primary: MemoryDevice
    ) -> None:
        """Another node has put grains 1 and 2 and a block of 3."""
        before = bytearray(primary.data)
        side.fill(b"\x55" * 2 * GRAIN, GRAIN)
        side.fill(b"\x55" * 512, 3 * GRAIN + 512)
        device.writev(0, block(9, 8 * GRAIN))
        before[GRAIN : 3 * GRAIN] = b"\x55" * 2 * GRAIN
        before[3 * GRAIN + 512 : 3 * GRAIN + 1024] = b"\x55" * 512
        assert read(side, 0, 8 * GRAIN) == before[: 8 * GRAIN]
        assert self.preserved(device) == list(range(8))
        assert device.counters.futile_copies == 3

    def test_what_another_node_is_just_putting_is_waited_for(
        self, device: CopyOnWrite, side: MemorySide, primary: MemoryDevice
    ) -> None:
        """Its blocks may be shown before they are durable, so a put has to be refused for each of them."""
        side.fill(b"\x55" * GRAIN)  # so that the first put is refused
        puts: list[tuple[int, int]] = []
        put_many = side.put_many

        def noted(requests: Any) -> Any:
            taken = [(offset, [memoryview(b"".join(buffers))]) for offset, buffers in requests]
            results = put_many(taken)
            puts.extend((offset, len(data[0])) for (offset, data), r in zip(taken, results, strict=True) if r)
            side.written[8:16] = bytes([1] * 8)  # grain 1 appears between the refusal and the look at the extents
            return results

        side.put_many = noted  # type: ignore[method-assign]
        device.writev(0, block(9, 2 * GRAIN))
        assert puts == [(0, 2 * GRAIN), (0, 2 * GRAIN)]
