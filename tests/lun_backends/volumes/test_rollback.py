# SPDX-License-Identifier: Apache-2.0
"""Rolling back: at one instant, with exact newer snapshots, under writers, stopped and resumed at every point."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.damage import Damage
from lun_backends.durability import Durability
from lun_backends.files import facts, storage_io
from lun_backends.stores import thin
from lun_backends.volumes import errors, manifest, pending_grains, rollback, rollback_overlay, volume
from tests.faults.storage import FaultyIO
from tests.lun_backends import store_factory
from tests.lun_backends.rotting import rot
from tests.lun_backends.volumes.history import BLOCK, CHUNK, SIZE, History, fill, read


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    monkeypatch.setattr(rollback_overlay, "ROUND", 2 * CHUNK)
    opened = History(tmp_path)
    yield opened
    opened.volume.close()


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_volume_goes_back_at_once_and_all_snapshots_keep_their_content(made: History, name: str) -> None:
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
def test_rollback_continues_after_reopening_wherever_it_was_stopped(made: History, rounds: int) -> None:
    left = iter(range(rounds))
    made.volume.begin_rollback("a")
    assert not made.volume.continue_rollback(cancelled=lambda: next(left, None) is None)
    # In a settled chunk, in a pending one, across both, and in one that never changed; a part of each pending chunk.
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


def test_only_changed_chunks_are_written_and_only_differing_ones_preserved(tmp_path: Path) -> None:
    io = store_factory.FaultyIO()
    made = History(tmp_path, io)
    opened = made.volume
    opened.create_snapshot("d")
    fill(opened.device, 2, CHUNK, CHUNK)
    opened.device.writev(20 * CHUNK, [memoryview(made.moments["a"])[20 * CHUNK : 21 * CHUNK]])  # the same as before
    preserved = opened.snapshot("d").preserved_bytes
    io.calls.clear()
    opened.begin_rollback("d")
    assert opened.continue_rollback()
    assert opened.snapshot("d").preserved_bytes == preserved
    assert io.calls.count("pwritev") < 12  # one chunk; the rest are manifests and pending chunks
    opened.close()


def test_rollback_cancelled_before_it_takes_effect_changes_nothing(made: History) -> None:
    now = read(made.volume.device)
    with pytest.raises(errors.RollbackStopped):
        made.volume.begin_rollback("a", cancelled=lambda: True)
    made.check(now)
    assert made.volume.rolling_back_to is None
    made.volume.create_snapshot("d")


@pytest.mark.parametrize("step", ["rename", "fsync_directory", "fdatasync", "ftruncate", "pwritev"])
@pytest.mark.parametrize("for_ever", [False, True])
def test_rollback_that_cannot_be_recorded_does_not_happen(tmp_path: Path, step: str, for_ever: bool) -> None:
    class Failing(storage_io.StorageIO):
        armed = 0

    def fail(self: Failing, *arguments: object) -> object:
        if self.armed:
            self.armed -= 1
            raise OSError(errno.EIO, "Input/output error")
        return getattr(storage_io.StorageIO, step)(self, *arguments)

    setattr(Failing, step, fail)
    io = Failing()
    made = History(tmp_path, io)
    now = read(made.volume.device)
    io.armed = 1000 if for_ever else 1
    with pytest.raises(errors.RollbackRefused):
        made.volume.begin_rollback("a")
    io.armed = 0
    made.check(now)
    made.volume.device.flush()
    with contextlib.suppress(pending_grains.PendingDamaged):  # a disk that failed for ever may have either manifest
        made.reopen()
        made.check(now if made.volume.rolling_back_to is None else made.moments["a"])
    made.volume.close()


def test_failed_copy_leaves_the_volume_rolled_back(tmp_path: Path) -> None:
    made = History(tmp_path)
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


def test_deleted_and_invalid_snapshots_are_refused(made: History) -> None:
    with pytest.raises(errors.NoSuchSnapshot):
        made.volume.begin_rollback("x")
    with pytest.raises(errors.DeletionStopped):
        made.volume.delete_snapshot("b", cancelled=lambda: True)
    with pytest.raises(errors.RollbackRefused, match="deleted"):
        made.volume.begin_rollback("b")
    made.volume.begin_rollback("a")  # through the chunks that b still has
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


def test_writes_during_the_search_for_changes_are_rolled_back_too(
    made: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "check_room", lambda *_: fill(made.volume.device, 3, 27 * CHUNK, BLOCK))
    made.volume.begin_rollback("a")
    made.check(made.moments["a"])


def test_snapshots_taken_during_the_search_for_changes_stay_true(
    made: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(("d", "e"))

    def take_another(*_: object) -> None:
        if name := next(names, None):
            fill(made.volume.device, 3, 27 * CHUNK, BLOCK)
            made.volume.create_snapshot(name)  # the search for changes holds no lock
            made.moments[name] = read(made.volume.device)
            fill(made.volume.device, 4, 28 * CHUNK, BLOCK)

    monkeypatch.setattr(rollback, "check_room", take_another)
    made.volume.begin_rollback("a")
    made.check(made.moments["a"])
    assert made.volume.continue_rollback()
    made.check(made.moments["a"])
    made.reopen()
    made.check(made.moments["a"])


def test_snapshot_invalidated_during_the_search_for_changes_is_refused(
    made: History, monkeypatch: pytest.MonkeyPatch
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


def test_readers_and_writers_race_a_rollback(made: History) -> None:
    """Each writer owns every third block and reads its last write; blocks without a write have the snapshot's content."""
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


def test_rolling_back_a_grown_volume_zeroes_its_new_end(made: History) -> None:
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


def test_rollback_survives_a_power_cut_even_where_snapshots_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a rollback the volume is made of its snapshots.  After it, they survive as little as before."""
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
    mark = os.getxattr(tmp_path / "p", facts.MARK)
    assert made.continue_rollback()
    made.device.writev(0, [memoryview(bytes([3]) * 512)])
    after = tmp_path / "later"
    shutil.copytree(made.directory, after / "v")
    made.close()
    shutil.copy(copy / "p", tmp_path / "p")
    os.setxattr(tmp_path / "p", facts.MARK, mark)
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


def test_damaged_snapshot_is_not_rolled_back_to(made: History) -> None:
    before = read(made.volume.device)
    rot(made.volume.snapshot("b"), 8)
    rot(made.volume.snapshot("b"), 9)
    rot(made.volume.snapshot("c"), 14)
    for name, blocks in (
        ("a", "blocks 64 to 79 and 112 to 119 of 'a'"),
        ("b", "blocks 64 to 79 and 112 to 119 of 'b'"),
    ):
        with pytest.raises(errors.DamageFound) as caught:
            made.volume.begin_rollback(name)
        assert f"damage in {blocks}: CRC32C is 0x" in caught.value.reason
        assert "--damaged" in caught.value.remedy
    assert made.volume.rolling_back_to is None
    assert read(made.volume.device) == before
    with pytest.raises(errors.DamageFound, match="blocks 112 to 119 of 'c'"):
        made.volume.begin_rollback("c")
    assert {path.suffix for path in (made.volume.directory / "snapshots").iterdir()} == {".map", ".chunks"}


@pytest.mark.parametrize("restarted", [False, True])
def test_accepted_damage_is_taken_as_it_is(made: History, restarted: bool) -> None:
    rot(made.volume.snapshot("b"), 8, at=5)
    moment = bytearray(made.moments["a"])
    moment[8 * CHUNK + 5] ^= 1
    found: list[Damage] = []
    made.volume.begin_rollback("a", on_damage=found.append)
    assert [(damage.offset, damage.length) for damage in found] == [(8 * CHUNK, CHUNK)]
    assert found[0].kept_in == made.volume.snapshot("b").uuid
    if restarted:
        made.reopen()
    assert read(made.volume.device) == moment
    data = bytearray(BLOCK)
    assert not made.volume.device.read_now(8 * CHUNK, BLOCK, [memoryview(data)])
    fill(made.volume.device, 3, 8 * CHUNK + BLOCK, BLOCK)
    moment[8 * CHUNK + BLOCK : 8 * CHUNK + 2 * BLOCK] = random.Random(3).randbytes(BLOCK)
    assert made.volume.continue_rollback()
    assert read(made.volume.device) == moment
    made.reopen()
    assert read(made.volume.device) == moment
    with pytest.raises(block_device.DamagedBlocks):
        read(made.volume.snapshot("a").view)


def test_damage_that_comes_later_stops_the_rollback_until_it_is_accepted(made: History) -> None:
    made.volume.begin_rollback("a")
    rot(made.volume.snapshot("b"), 8, at=5)
    with pytest.raises(errors.DamageFound) as caught:
        made.volume.continue_rollback()
    assert "blocks 64 to 71 of the snapshot are damaged" in caught.value.reason
    with pytest.raises(block_device.DamagedBlocks):
        fill(made.volume.device, 3, 8 * CHUNK, BLOCK)
    made.reopen()
    with pytest.raises(block_device.DamagedBlocks):
        read(made.volume.device)
    with pytest.raises(errors.DamageFound):
        made.volume.continue_rollback()
    made.volume.accept_damage()
    moment = bytearray(made.moments["a"])
    moment[8 * CHUNK + 5] ^= 1
    assert read(made.volume.device) == moment
    made.reopen()
    assert made.volume.continue_rollback()
    assert read(made.volume.primary) == moment
    assert not manifest.load(made.volume.directory).restoring_damaged


def test_unreadable_blocks_are_named_before_a_rollback_and_zeroes_on_demand(tmp_path: Path) -> None:
    io = FaultyIO()
    made = History(tmp_path, io)
    path = thin.files(made.volume.directory / "snapshots" / str(made.volume.snapshot("c").uuid))[1]
    io.fail("preadv", errno.EIO, path=path.name)
    with pytest.raises(errors.DamageFound, match=r"blocks 64 to 127.* of 'c': .*Input/output error"):
        made.volume.begin_rollback("c")
    made.volume.begin_rollback("c", on_damage=lambda _: None)
    assert made.volume.continue_rollback()
    assert read(made.volume.device, 15 * CHUNK, CHUNK) == bytes(CHUNK)
    made.volume.close()
