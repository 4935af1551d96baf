# SPDX-License-Identifier: Apache-2.0
"""Rolling back: at one instant, true newer snapshots, under writers, stopped and gone on with at every point.

(Longer than most modules here: every case starts from the same volume with its history.)
"""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, tracking
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.volumes import errors, pending_chunks, rollback, rollback_overlay, volume
from tests.lun_backends import store_factory

CHUNK = 4096
BLOCK = 512
SIZE = 40 * CHUNK + 3 * BLOCK


def read(device: block_device.BlockDevice, offset: int = 0, length: int | None = None) -> bytes:
    data = bytearray(device.size if length is None else length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


def fill(device: block_device.BlockDevice, seed: int, offset: int, length: int) -> None:
    device.writev(offset, [memoryview(random.Random(seed).randbytes(length))])


class Made:
    """A volume with snapshots a, b and c, and what each has."""

    def __init__(self, path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        self.volume = volume.Volume.create(path / "state", "v", path / "disk", size=SIZE, chunk_size=CHUNK, io=io)
        self.moments: dict[str, bytes] = {}
        fill(self.volume.device, 1, 0, SIZE - 4 * CHUNK)
        for turn, name in enumerate("abc"):
            self.moments[name] = read(self.volume.device)
            self.volume.create_snapshot(name)
            fill(self.volume.device, turn + 2, (4 * turn + 1) * CHUNK - BLOCK, 7 * CHUNK)
        self.volume.device.write_zeroes(30 * CHUNK, 2 * CHUNK, discard=True)
        fill(self.volume.device, 9, SIZE - BLOCK, BLOCK)

    def check(self, now: bytes | None = None) -> None:
        """All snapshots are what they were, and so is the volume."""
        for name, moment in self.moments.items():
            assert read(self.volume.snapshot(name).view) == moment, name
        if now is not None:
            assert read(self.volume.device) == now

    def reopen(self, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        self.volume.close()
        self.volume = volume.Volume.open(self.volume.directory, io=io)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    monkeypatch.setattr(rollback_overlay, "ROUND", 2 * CHUNK)
    opened = Made(tmp_path)
    yield opened
    opened.volume.close()


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_volume_goes_back_at_once_and_all_snapshots_stay_true(made: Made, name: str) -> None:
    made.volume.begin_rollback(name)
    made.check(made.moments[name])
    calls: list[tuple[int, int]] = []
    assert made.volume.continue_rollback(progress=lambda done, total: calls.append((done, total)))
    assert len(calls) > 3
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    made.check(made.moments[name])
    assert read(made.volume.primary) == made.moments[name]
    made.reopen()
    made.check(made.moments[name])
    fill(made.volume.device, 20, 0, SIZE)
    made.check()
    assert {path.suffix for path in (made.volume.directory / "snapshots").iterdir()} == {".map", ".chunks"}


@pytest.mark.parametrize("rounds", range(7))
def test_stopped_anywhere_and_written_to_it_goes_on_after_reopening(made: Made, rounds: int) -> None:
    left = iter(range(rounds))
    made.volume.begin_rollback("a")
    assert not made.volume.continue_rollback(cancelled=lambda: next(left, None) is None)
    # In a settled chunk, in a pending one, across both, in one that never changed; of pending ones only a part.
    now = bytearray(made.moments["a"])
    for turn, offset in enumerate((CHUNK, 14 * CHUNK + BLOCK, 9 * CHUNK - BLOCK, 25 * CHUNK)):
        data = random.Random(turn).randbytes(2 * BLOCK)
        now[offset : offset + len(data)] = data
        made.volume.device.writev(offset, [memoryview(data)])
    made.check(bytes(now))
    made.reopen()
    restored = made.volume.rolling_back_to
    assert restored is not None
    assert restored.name == "a"
    made.check(bytes(now))
    made.volume.device.write_zeroes(12 * CHUNK, 2 * CHUNK, discard=False)
    now[12 * CHUNK : 14 * CHUNK] = bytes(2 * CHUNK)
    with made.volume.device.exclusive() as held:
        assert read(held, 10 * CHUNK, CHUNK) == now[10 * CHUNK : 11 * CHUNK]
        held.writev(10 * CHUNK, [memoryview(b"\x77" * BLOCK)])
    now[10 * CHUNK : 10 * CHUNK + BLOCK] = b"\x77" * BLOCK
    made.check(bytes(now))
    assert made.volume.continue_rollback()
    made.check(bytes(now))
    made.reopen()
    made.check(bytes(now))


def test_only_what_changed_is_written_and_only_what_differs_is_preserved(tmp_path: Path) -> None:
    io = store_factory.FaultyIO()
    made = Made(tmp_path, io)
    opened = made.volume
    opened.create_snapshot("d")
    fill(opened.device, 2, CHUNK, CHUNK)
    opened.device.writev(20 * CHUNK, [memoryview(made.moments["a"])[20 * CHUNK : 21 * CHUNK]])  # the same as before
    preserved = opened.snapshot("d").preserved_bytes
    io.calls.clear()
    opened.begin_rollback("d")
    assert opened.continue_rollback()
    assert opened.snapshot("d").preserved_bytes == preserved
    assert io.calls.count("pwritev") < 12  # one chunk; the rest are manifests and what is pending
    opened.close()


def test_cancelling_before_it_takes_effect_leaves_everything(made: Made) -> None:
    now = read(made.volume.device)
    with pytest.raises(errors.RollbackStopped):
        made.volume.begin_rollback("a", cancelled=lambda: True)
    made.check(now)
    assert made.volume.rolling_back_to is None
    made.volume.create_snapshot("d")


@pytest.mark.parametrize("step", ["rename", "fsync_directory", "fdatasync", "ftruncate", "pwritev"])
@pytest.mark.parametrize("for_ever", [False, True])
def test_what_cannot_be_recorded_does_not_happen(tmp_path: Path, step: str, for_ever: bool) -> None:
    class Failing(storage_io.StorageIO):
        armed = 0

    def fail(self: Failing, *arguments: object) -> object:
        if self.armed:
            self.armed -= 1
            raise OSError(errno.EIO, "Input/output error")
        return getattr(storage_io.StorageIO, step)(self, *arguments)

    setattr(Failing, step, fail)
    io = Failing()
    made = Made(tmp_path, io)
    now = read(made.volume.device)
    io.armed = 1000 if for_ever else 1
    with pytest.raises(errors.RollbackRefused):
        made.volume.begin_rollback("a")
    io.armed = 0
    made.check(now)
    made.volume.device.flush()
    with contextlib.suppress(pending_chunks.PendingDamaged):  # a disk that failed for ever may have either manifest
        made.reopen()
        made.check(now if made.volume.rolling_back_to is None else made.moments["a"])
    made.volume.close()


def test_a_copy_that_fails_leaves_the_volume_at_that_moment(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.volume.create_snapshot("d")
    made.moments["d"] = read(made.volume.device)
    made.volume.begin_rollback("a")
    device = made.volume.snapshot("d").write_once
    original = device.put_many

    def fail(_requests: object) -> list[block_device.BlockWritten | None]:
        raise block_device.SpaceExhausted(5)

    device.put_many = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(block_device.PreserveFailed):
        made.volume.continue_rollback()
    with pytest.raises(block_device.PreserveFailed):
        fill(made.volume.device, 3, 5 * CHUNK, BLOCK)
    made.check(made.moments["a"])
    device.put_many = original  # type: ignore[method-assign]
    assert made.volume.continue_rollback()
    made.check(made.moments["a"])
    made.volume.close()


def test_refusals(made: Made) -> None:
    with pytest.raises(errors.NoSuchSnapshot):
        made.volume.begin_rollback("x")
    with pytest.raises(errors.DeletionStopped):
        made.volume.delete_snapshot("b", cancelled=lambda: True)
    with pytest.raises(errors.RollbackRefused, match="deleted"):
        made.volume.begin_rollback("b")
    made.volume.begin_rollback("a")  # through what b still has
    del made.moments["b"]
    made.check(made.moments["a"])
    made.volume.continue_rollback()
    made.check(made.moments["a"])
    made.volume.resume_deletions()
    made.check(made.moments["a"])
    lost = made.volume.snapshot("c").uuid
    made.volume.close()
    (made.volume.directory / "snapshots" / f"{lost}.map").unlink()
    made.volume = volume.Volume.open(made.volume.directory)
    with pytest.raises(errors.RollbackRefused, match="'c' is invalid"):
        made.volume.begin_rollback("a")


def test_what_is_written_while_it_looks_for_changes_is_rolled_back_too(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "check_room", lambda *_: fill(made.volume.device, 3, 27 * CHUNK, BLOCK))
    made.volume.begin_rollback("a")
    made.check(made.moments["a"])


def test_snapshots_taken_while_it_looks_for_changes_stay_true(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(("d", "e"))

    def take_another(*_: object) -> None:
        if name := next(names, None):
            fill(made.volume.device, 3, 27 * CHUNK, BLOCK)
            made.volume.create_snapshot(name)  # looking for changes is outside of the locks
            made.moments[name] = read(made.volume.device)
            fill(made.volume.device, 4, 28 * CHUNK, BLOCK)

    monkeypatch.setattr(rollback, "check_room", take_another)
    made.volume.begin_rollback("a")
    made.check(made.moments["a"])
    assert made.volume.continue_rollback()
    made.check(made.moments["a"])
    made.reopen()
    made.check(made.moments["a"])


def test_what_is_given_up_while_it_looks_for_changes_is_not_restored(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = read(made.volume.device)
    lost = made.volume.snapshot("c")
    monkeypatch.setattr(
        rollback, "check_room", lambda *_: made.volume.state.enforcer.invalidate(lost, "the disk failed")
    )
    with pytest.raises(errors.RollbackRefused, match="'c' is invalid: the disk failed"):
        made.volume.begin_rollback("b")
    assert read(made.volume.device) == now
    assert made.volume.rolling_back_to is None
    assert {path.suffix for path in (made.volume.directory / "snapshots").iterdir()} == {".map", ".chunks"}


def test_readers_and_writers_race_a_rollback(made: Made) -> None:
    """Each writer owns every third block; whatever it wrote last is what it reads, and what nobody wrote is the moment's."""
    opened = made.volume
    expected = bytearray(made.moments["a"])
    opened.begin_rollback("a")
    stop = threading.Event()
    errors: list[BaseException] = []

    def write(number: int) -> None:
        rng = random.Random(number)
        try:
            while not stop.is_set():
                block = rng.randrange(SIZE // BLOCK // 3) * 3 + number
                data = rng.randbytes(BLOCK)
                opened.device.writev(block * BLOCK, [memoryview(data)])
                expected[block * BLOCK : (block + 1) * BLOCK] = data
                assert read(opened.device, block * BLOCK, BLOCK) == data
                other = rng.randrange(SIZE // BLOCK // 3) * 3 + number
                assert read(opened.device, other * BLOCK, BLOCK) == expected[other * BLOCK : (other + 1) * BLOCK]
        except BaseException as error:  # noqa: BLE001 - raised by the test below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while not opened.continue_rollback(cancelled=lambda: stop.wait(0.01)):
        pass
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    made.check(bytes(expected))
    made.reopen()
    made.check(bytes(expected))


def test_growing_then_rolling_back_zeroes_what_came_later(made: Made) -> None:
    made.volume.resize(SIZE + 9 * CHUNK)
    fill(made.volume.device, 5, SIZE - CHUNK, 8 * CHUNK)
    made.moments["d"] = read(made.volume.device)
    made.volume.create_snapshot("d")
    made.check()
    made.volume.begin_rollback("b")
    expected = made.moments["b"] + bytes(9 * CHUNK)
    made.check(expected)
    made.reopen()
    made.check(expected)
    assert made.volume.continue_rollback()
    made.check(expected)
    made.volume.delete_snapshot("d")  # larger than the one its chunks move down to
    del made.moments["d"]
    made.check(expected)


def test_resizing(made: Made) -> None:
    now = read(made.volume.device)
    with pytest.raises(errors.ResizeRefused, match="shrink"):
        made.volume.resize(SIZE - BLOCK)
    with pytest.raises(errors.ResizeRefused, match="whole number"):
        made.volume.resize(SIZE + 1)
    made.volume.resize(SIZE)
    made.volume.resize(SIZE + 100 * CHUNK)
    now += bytes(100 * CHUNK)
    made.check(now)
    fill(made.volume.device, 1, SIZE, 3 * CHUNK)  # partly in the chunk that the snapshots have a part of
    made.volume.device.writev(SIZE + 90 * CHUNK, [memoryview(bytes(BLOCK))])
    now = read(made.volume.device)
    made.check(now)
    made.reopen()
    assert made.volume.device.size == SIZE + 100 * CHUNK
    made.check(now)
    fill(made.volume.device, 2, 0, made.volume.device.size)
    made.check()


def test_a_device_that_is_too_small_is_not_grown(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.volume.primary, "_is_file", False)
    with pytest.raises(errors.ResizeRefused, match="enlarge the device first"):
        made.volume.resize(SIZE + CHUNK)
    assert made.volume.device.size == SIZE


def test_a_size_that_cannot_be_recorded_is_not_used(tmp_path: Path) -> None:
    io = store_factory.FaultyIO()
    made = Made(tmp_path, io)
    now = read(made.volume.device)
    io.fail("pwritev", errno.ENOSPC)
    with pytest.raises(errors.ResizeRefused):
        made.volume.resize(SIZE + CHUNK)
    io.before.clear()
    assert made.volume.device.size == SIZE
    made.check(now)
    made.reopen()
    made.check(now)
    made.volume.close()


# What is pending ---------------------------------------------------------------------------------------------------


def test_pending_chunks_are_remembered_until_they_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "p"
    total = 1 << 20
    chunks = tracking.BitMap([0, 1, 4063, 4064, 8127, 500_000, total - 1])
    made = pending_chunks.PendingChunks.create(path, chunks.copy(), total, storage_io.SYSTEM)
    made.remove([1, 4064, 500_000])
    made.close()
    opened = pending_chunks.PendingChunks.open(path, total, storage_io.SYSTEM)
    assert list(opened.chunks) == list(made.chunks) == [0, 4063, 8127, total - 1]
    opened.remove(list(opened.chunks))
    opened.close()
    assert not any(path.read_bytes())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "larger"])
def test_damage_of_what_is_pending_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p"
    pending_chunks.PendingChunks.create(path, tracking.BitMap([7, 9000]), 10000, storage_io.SYSTEM).close()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[1024 + 100] ^= 4
    path.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        path.unlink()
    with pytest.raises(pending_chunks.PendingDamaged, match=str(path)):
        pending_chunks.PendingChunks.open(path, 8500 if damage == "larger" else 10000, storage_io.SYSTEM)


def test_a_rollback_survives_a_power_cut_even_where_snapshots_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it goes on the volume is made of its snapshots; when it has ended they are as little safe as before."""
    made = volume.Volume.create(
        tmp_path / "v", "v", tmp_path / "p", size=1 << 20, chunk_size=4096, durability=Durability.PROCESS_CRASH
    )
    made.device.writev(0, [memoryview(bytes([1]) * 65536)])
    made.create_snapshot("a")
    made.device.writev(0, [memoryview(bytes([2]) * 65536)])
    made.begin_rollback("a")
    copy = tmp_path / "cut"
    shutil.copytree(made.directory, copy / "v")  # as the power cut leaves it
    shutil.copy(tmp_path / "p", copy / "p")
    assert made.continue_rollback()
    made.device.writev(0, [memoryview(bytes([3]) * 512)])
    after = tmp_path / "later"
    shutil.copytree(made.directory, after / "v")
    made.close()
    shutil.copy(copy / "p", tmp_path / "p")
    monkeypatch.setattr("lun_backends.volumes.boot.current", lambda: "another boot")
    opened = volume.Volume.open(copy / "v")
    assert opened.rolling_back_to is not None
    data = bytearray(65536)
    opened.device.readv(0, [memoryview(data)])
    assert data == bytes([1]) * 65536
    assert opened.continue_rollback()
    opened.device.readv(0, [memoryview(data)])
    assert data == bytes([1]) * 65536
    assert not opened.snapshot("a").invalid_reason
    opened.close()
    opened = volume.Volume.open(after / "v")
    assert opened.snapshot("a").invalid_reason
    opened.close()
