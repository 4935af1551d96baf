# SPDX-License-Identifier: Apache-2.0
"""Conversion of the stores of snapshots: content, checksums, damage and marks go along, wherever it stops or is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.damage import Damage
from lun_backends.files import storage_io
from lun_backends.stores import contract, settings
from lun_backends.stores.settings import Kind
from lun_backends.volumes import converting, errors, volume
from tests.faults.storage import FaultyIO
from tests.lun_backends.rotting import rot
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block, read, reopen

_OTHER = {Kind.MAP: Kind.LOG, Kind.LOG: Kind.MAP}
_SUFFIXES = {Kind.MAP: {".map", ".chunks"}, Kind.LOG: {".map", ".log"}}


def _filled(tmp_path: Path, kind: Kind, io: FaultyIO | None = None) -> tuple[volume.Volume, dict[str, bytes]]:
    """Return a volume with four snapshots, and what each of them has to show."""
    opened = volume.Volume.create(
        tmp_path / "state",
        "vol0",
        tmp_path / "disk.img",
        size=SIZE,
        chunk_size=CHUNK,
        store=settings.Settings(kind),
        io=io or storage_io.SYSTEM,
    )
    rng = random.Random(5)
    opened.device.writev(0, [memoryview(rng.randbytes(SIZE - 8 * CHUNK))])
    moments = {}
    for name in ("a", "b", "c", "d"):
        moments[name] = read(opened.device)
        opened.create_snapshot(name)
        for _ in range(12):
            opened.device.writev(rng.randrange(SIZE // 512) * 512, block(rng.randrange(256)))
    return opened, moments


def _views(opened: volume.Volume) -> dict[str, bytes]:
    return {snapshot.name: read(snapshot.view) for snapshot in opened.snapshots}


def _kinds(opened: volume.Volume) -> list[Kind]:
    return [opened.store_of(snapshot) for snapshot in opened.snapshots]


def _device(opened: volume.Volume, name: str) -> write_once.WriteOnce:
    device = opened.snapshot(name).write_once
    assert isinstance(device, write_once.WriteOnce)
    return device


def _check_files(opened: volume.Volume) -> None:
    """Check that every snapshot has the files of its kind, and that there are no others."""
    expected = {f"{one.uuid}{suffix}" for one in opened.snapshots for suffix in _SUFFIXES[opened.store_of(one)]}
    found = {path.name for path in (opened.directory / "snapshots").iterdir() if path.suffix != ".outside"}
    assert found == expected


@pytest.mark.parametrize("kind", [Kind.MAP, Kind.LOG])
def test_all_but_the_newest_are_converted_and_stay_true(tmp_path: Path, kind: Kind) -> None:
    opened, moments = _filled(tmp_path, kind)
    other = _OTHER[kind]
    calls: list[tuple[int, int]] = []
    opened.set_store(other)
    results = opened.convert_stores(progress=lambda done, total: calls.append((done, total)))
    assert [(result.snapshot, result.store) for result in results] == [*((name, other) for name in "abc"), ("d", kind)]
    assert [bool(result.reason) for result in results] == [False, False, False, True]
    assert "newest" in results[-1].reason
    assert calls and calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)
    for _ in range(2):
        assert _kinds(opened) == [other] * 3 + [kind]
        assert _views(opened) == moments
        _check_files(opened)
        for name in moments:
            assert {report.verdict for report in _device(opened, name).verify()} == {contract.Verdict.GOOD}
        opened = reopen(opened)
    opened.create_snapshot("e")
    assert [result.store for result in opened.convert_stores()] == [other] * 5
    for _ in range(2):
        assert _views(opened).items() >= moments.items()
        _check_files(opened)
        assert opened.space.used == sum(_device(opened, one.name).store.allocated_bytes for one in opened.snapshots)
        opened = reopen(opened)
    for name in ("c", "b"):  # they move down between converted ones
        opened.delete_snapshot(name)
        del moments[name]
        assert _views(opened).items() >= moments.items()
    opened.close()


def test_write_after_its_range_was_copied_is_caught_up(tmp_path: Path) -> None:
    opened, _ = _filled(tmp_path, Kind.MAP)
    opened.delete_snapshot("a")  # "b" is the first that is converted
    device = _device(opened, "b")
    blank = next(extent.offset for extent in device.extents(0, SIZE) if extent.kind is block_device.ExtentKind.BLANK)
    opened.set_store(Kind.LOG)
    calls: list[int] = []

    def write(done: int, _total: int) -> None:  # the first call comes when all of "b" was copied
        calls.append(done)
        if len(calls) == 1:
            device.writev(blank, block(0xEE))

    opened.convert_stores(progress=write)
    assert opened.store_of(opened.snapshot("b")) is Kind.LOG
    assert read(device, blank, 512) == bytes([0xEE]) * 512
    with pytest.raises(block_device.BlockWritten):
        device.writev(blank, block(0xDD))
    opened = reopen(opened)
    assert read(opened.snapshot("b").view, blank, 512) == bytes([0xEE]) * 512
    assert _device(opened, "b").written_outside(blank // CHUNK)
    opened.close()


def test_readers_see_the_same_while_stores_are_exchanged(tmp_path: Path) -> None:
    opened, moments = _filled(tmp_path, Kind.MAP)
    stop = threading.Event()
    seen: list[str] = []

    def reader(name: str) -> None:
        device = _device(opened, name)
        while not stop.is_set():
            if read(opened.snapshot(name).view) != moments[name]:
                seen.append(name)
            for report in device.verify():
                if report.verdict is not contract.Verdict.GOOD:
                    seen.append(f"{name}: {report.reason}")

    threads = [threading.Thread(target=reader, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    try:
        for kind in (Kind.LOG, Kind.MAP, Kind.LOG):
            opened.set_store(kind)
            opened.convert_stores()
            assert _kinds(opened)[:3] == [kind] * 3
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not seen
    opened.close()


def test_damage_stays_damage_and_an_invalid_snapshot_is_left(tmp_path: Path) -> None:
    opened, _ = _filled(tmp_path, Kind.MAP)
    device = _device(opened, "b")
    chunk = next(
        extent.offset // CHUNK for extent in device.extents(0, SIZE) if extent.kind is block_device.ExtentKind.DATA
    )
    rot(device, chunk)
    _device(opened, "a").invalidate("lost in a test")
    met: list[Damage] = []
    opened.set_store(Kind.LOG)
    results = opened.convert_stores(on_damage=met.append)
    assert results[0].reason == "it is invalid: lost in a test"
    assert [damage.offset // CHUNK for damage in met] == [chunk]
    assert opened.snapshot("b").damaged_chunks == 1
    for _ in range(2):
        assert _kinds(opened)[1] is Kind.LOG
        with pytest.raises(block_device.DamagedBlocks):
            read(opened.snapshot("b").view, chunk * CHUNK, CHUNK)
        opened = reopen(opened)
    opened.close()


def test_cancelled_conversion_goes_on_another_time(tmp_path: Path) -> None:
    opened, moments = _filled(tmp_path, Kind.MAP)
    opened.set_store(Kind.LOG)
    done: list[int] = []
    results = opened.convert_stores(progress=lambda now, _: done.append(now), cancelled=lambda: bool(done))
    assert [result.store for result in results] == [Kind.LOG, Kind.MAP, Kind.MAP, Kind.MAP]
    assert [result.reason for result in results][1:3] == [converting.STOPPED] * 2
    _check_files(opened)
    opened.convert_stores()
    assert _kinds(opened) == [Kind.LOG] * 3 + [Kind.MAP]
    assert _views(opened) == moments
    opened.close()


@pytest.mark.parametrize(
    ("operation", "path", "number"),
    [
        ("rename", "*.map", errno.EIO),
        ("rename", "*.log", errno.EIO),
        ("pwritev", "*.new.log", errno.ENOSPC),
        ("fdatasync", "*.new.log", errno.EIO),
    ],
)
def test_disk_that_fails_leaves_the_old_store(tmp_path: Path, operation: str, path: str, number: int) -> None:
    io = FaultyIO()
    opened, moments = _filled(tmp_path, Kind.MAP, io)
    opened.set_store(Kind.LOG)
    io.fail(operation, number, path=path)
    with pytest.raises(errors.VolumeError) as caught:
        opened.convert_stores()
    assert "'a' was not converted" in caught.value.reason
    assert io.failed
    io.heal()
    assert _kinds(opened) == [Kind.MAP] * 4
    assert _views(opened) == moments
    opened = reopen(opened)
    _check_files(opened)
    assert _views(opened) == moments
    opened.convert_stores()
    assert _kinds(opened) == [Kind.LOG] * 3 + [Kind.MAP]
    assert _views(opened) == moments
    opened.close()


def test_unknown_state_of_the_directory_stops_writes_to_the_snapshot(tmp_path: Path) -> None:
    """Whatever the next open finds has the same content, as long as nothing is written to one of the two."""
    io = FaultyIO()
    opened, moments = _filled(tmp_path, Kind.MAP, io)
    opened.set_store(Kind.LOG)
    renamed: list[Path] = []
    plain = io.rename

    def rename(old: Path, new: Path) -> None:
        plain(old, new)
        if old.name.endswith(".new.map"):
            renamed.append(new)
            io.fail("fsync_directory")

    io.rename = rename  # type: ignore[method-assign]
    with pytest.raises(errors.VolumeError):
        opened.convert_stores()
    assert renamed
    io.heal()
    assert _views(opened) == moments
    with pytest.raises(block_device.MediumError, match="restart the daemon"):
        _device(opened, "a").writev(SIZE - CHUNK, block(1))
    io.rename = plain  # type: ignore[method-assign]
    opened = reopen(opened)
    assert _kinds(opened) == [Kind.LOG, *[Kind.MAP] * 3]
    assert _views(opened) == moments
    _check_files(opened)
    opened.close()


def test_a_store_of_another_place_is_refused(tmp_path: Path) -> None:
    opened, _ = _filled(tmp_path, Kind.MAP)
    with pytest.raises(errors.StoreRefused, match="rados"):
        opened.set_store(Kind.RADOS)
    assert opened.convert_stores()[0].store is Kind.MAP
    opened.close()


class _Killed(FaultyIO):
    """Kills its process with SIGKILL before the call that comes after `left` others of those that change files."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.armed = False

    def _meet(self, operation: str, name: str) -> None:
        if self.armed and operation in ("rename", "unlink", "fsync_directory", "fdatasync", "pwritev", "store"):
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1

    def _meet_fd(self, operation: str, fd: int) -> None:
        self._meet(operation, "")


def _in_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; return its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("kind", [Kind.MAP, Kind.LOG])
def test_killed_at_any_step_nothing_is_lost(tmp_path: Path, kind: Kind) -> None:
    opened, moments = _filled(tmp_path, kind)
    opened.close()
    other = _OTHER[kind]
    settled = 0
    rounds = 0
    while settled < 3:
        # Later each time, until the conversion of the next snapshot has come to its end.  The three rounds together are
        # killed before each call.
        rounds += 1
        for left in range(rounds, 200, 3):

            def work(left: int = left) -> None:
                io = _Killed(left)
                again = volume.Volume.open(opened.directory, io=io)
                again.set_store(other)
                io.armed = True
                again.convert_stores(cancelled=None)
                io.armed = False
                again.close()

            status = _in_child(work)
            assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
            found = volume.Volume.open(opened.directory)
            assert _views(found) == moments
            _check_files(found)
            for snapshot in found.snapshots:
                assert isinstance(snapshot.write_once, write_once.WriteOnce)
                assert {report.verdict for report in snapshot.verify(contract.NOTHING)} == {contract.Verdict.GOOD}
            kinds = _kinds(found)
            found.close()
            if kinds.count(other) > settled:
                settled = kinds.count(other)
                break
        else:
            raise AssertionError("the conversion made no progress")
    assert rounds == 3
