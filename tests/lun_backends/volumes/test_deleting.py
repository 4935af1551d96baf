# SPDX-License-Identifier: Apache-2.0
"""Deleting snapshots: all others keep their content, wherever a deletion stops."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.backups import pieces
from lun_backends.block_device import ExtentKind
from lun_backends.tracking import GRAIN
from lun_backends.volumes import deleting, errors, move_down, volume
from lun_backends.volumes.manifest import SnapshotState
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State
from tests.faults.storage import FaultyIO
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block, read, reopen


@pytest.mark.parametrize("victim", ["a", "b", "c", "d"])
@pytest.mark.parametrize("reopened", [False, True])
def test_deleting_any_snapshot_leaves_the_others_true(made: volume.Volume, victim: str, reopened: bool) -> None:
    rng = random.Random(3)
    moments = {}
    for name in ("a", "b", "c", "d"):
        moments[name] = read(made.device)
        made.create_snapshot(name)
        for _ in range(12):
            made.device.writev(rng.randrange(SIZE // 512) * 512, block(rng.randrange(256)))
    opened = reopen(made) if reopened else made
    calls: list[tuple[int, int]] = []
    opened.delete_snapshot(victim, progress=lambda done, total: calls.append((done, total)))
    assert (not calls) == (victim == "a")
    assert all(done == total for done, total in calls[-1:])
    del moments[victim]
    assert {snapshot.name: read(snapshot.view) for snapshot in opened.snapshots} == moments
    for _ in range(40):
        opened.device.writev(rng.randrange(SIZE // 512) * 512, block(rng.randrange(256)))
    assert {snapshot.name: read(snapshot.view) for snapshot in opened.snapshots} == moments
    files = {path.stem for path in (opened.directory / "snapshots").iterdir()}
    assert files == {str(snapshot.uuid) for snapshot in opened.snapshots}
    opened = reopen(opened)
    assert {snapshot.name: read(snapshot.view) for snapshot in opened.snapshots} == moments
    opened.close()


def test_stopped_deletion_goes_on_after_reopening(made: volume.Volume) -> None:
    before = read(made.device)
    made.create_snapshot("old")
    made.device.writev(0, block(1, 4 * CHUNK))
    made.create_snapshot("new")
    made.device.writev(2 * CHUNK, block(2, 8 * CHUNK))
    with pytest.raises(errors.DeletionStopped):
        made.delete_snapshot("new", cancelled=lambda: True)
    assert made.snapshot("new").state is SnapshotState.DELETING
    made.device.writev(10 * CHUNK, block(3, 2 * CHUNK))  # into the older one now
    made.device.writev(6 * CHUNK, block(3, 2 * CHUNK))  # the copies of these are in the newer one
    assert read(made.snapshot("old").view) == before
    opened = reopen(made)
    assert opened.snapshot("new").state is SnapshotState.DELETING
    opened.device.writev(4 * CHUNK, block(4, 10 * CHUNK))
    assert read(opened.snapshot("old").view) == before
    opened.resume_deletions()
    assert [snapshot.name for snapshot in opened.snapshots] == ["old"]
    assert read(opened.snapshot("old").view) == before
    opened.device.writev(0, block(5, SIZE))
    assert read(opened.snapshot("old").view) == before
    opened.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_newest_can_be_deleted_while_another_deletion_is_stopped(made: volume.Volume, reopened: bool) -> None:
    """The chunks of two snapshots move down to the oldest then, which must copy none of them from the primary."""
    before = read(made.device)
    made.create_snapshot("old")
    made.create_snapshot("middle")
    made.device.writev(0, block(1, 2 * CHUNK))
    made.create_snapshot("new")
    made.device.writev(4 * CHUNK, block(1))
    with pytest.raises(errors.DeletionStopped):
        made.delete_snapshot("middle", cancelled=lambda: True)
    opened = reopen(made) if reopened else made
    with pytest.raises(errors.DeletionStopped):
        opened.delete_snapshot("new", cancelled=lambda: True)
    opened.device.writev(CHUNK - 512, block(2, CHUNK))
    assert read(opened.snapshot("old").view) == before
    opened.resume_deletions()
    assert [snapshot.name for snapshot in opened.snapshots] == ["old"]
    assert read(opened.snapshot("old").view) == before
    opened.close()


def test_copy_that_is_not_durable_yet_does_not_count_as_preserved(tmp_path: Path) -> None:
    """The newest snapshot is deleted while a copy into it, already visible, waits for the disk.

    Another writer to that chunk must not count the copy as done (rule 1, lun_backends/README.md).
    """
    io = FaultyIO()
    made = volume.Volume.create(tmp_path / "v", "v", tmp_path / "disk", size=SIZE, chunk_size=CHUNK, io=io)
    made.create_snapshot("old")
    new = made.create_snapshot("new")
    made.device.writev(8 * CHUNK, block(1))
    disk = threading.Event()
    io.delay("sync_map", disk, path=f"{new.uuid}.map")
    writer = threading.Thread(target=made.device.writev, args=(0, block(2)))
    writer.start()
    try:
        while next(iter(new.write_once.extents(0, CHUNK))).kind is ExtentKind.BLANK:
            assert writer.is_alive()
        with pytest.raises(errors.DeletionStopped):
            made.delete_snapshot("new", cancelled=lambda: True)
        tracker = made.device.tracker
        assert tracker is not None
        assert 8 in tracker
        assert 0 not in tracker
    finally:
        disk.set()
        writer.join()
    made.resume_deletions()
    assert read(made.snapshot("old").view) == bytes(SIZE)
    made.close()


def test_grain_beside_a_copy_on_its_way_is_not_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk of that copy has another grain, which was preserved before the last restart and has changed since."""
    volume.Volume.create(tmp_path / "v", "v", tmp_path / "disk", size=SIZE, chunk_size=4 * GRAIN).close()
    io = FaultyIO()
    made = volume.Volume.open(tmp_path / "v")
    made.create_snapshot("old")
    new = made.create_snapshot("new")
    made.device.writev(2 * GRAIN, block(1))
    made.close()
    made = volume.Volume.open(tmp_path / "v", io=io)
    disk = threading.Event()
    io.delay("sync_map", disk, path=f"{new.uuid}.map")
    writer = threading.Thread(target=made.device.writev, args=(0, block(2)))
    writer.start()
    try:
        while next(iter(made.snapshot("new").write_once.extents(0, GRAIN))).kind is ExtentKind.BLANK:
            assert writer.is_alive()
        with pytest.raises(errors.DeletionStopped):
            made.delete_snapshot("new", cancelled=lambda: True)
        made.device.writev(2 * GRAIN, block(3))
    finally:
        disk.set()
        writer.join()
    made.resume_deletions()
    assert read(made.snapshot("old").view) == bytes(SIZE)
    made.close()


def test_chunk_that_a_crash_left_in_part_is_still_preserved(made: volume.Volume) -> None:
    """A power cut came while the newest snapshot was being deleted, and only some blocks of a chunk were on the disk."""
    before = read(made.device)
    made.create_snapshot("old")
    new = made.create_snapshot("new")
    made.device.writev(8 * CHUNK, block(1))
    with pytest.raises(errors.DeletionStopped):
        made.delete_snapshot("new", cancelled=lambda: True)
    new.write_once.writev(CHUNK, [memoryview(before)[CHUNK : CHUNK + 1024]])
    opened = reopen(made)
    opened.device.writev(CHUNK, block(7, CHUNK))
    assert read(opened.snapshot("old").view) == before
    opened.resume_deletions()
    assert read(opened.snapshot("old").view) == before
    opened.close()


def test_snapshot_may_be_invalidated_while_another_moves_down_to_it(
    made: volume.Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_down, "_BATCH", CHUNK)
    old = made.create_snapshot("old")
    made.create_snapshot("new")
    made.device.writev(0, block(1, 3 * CHUNK))
    made.delete_snapshot("new", progress=lambda _done, _all: made.state.enforcer.invalidate(old, "no room"))
    assert [snapshot.name for snapshot in made.snapshots] == ["old"]
    assert made.snapshot("old").invalid_on_disk


def test_snapshot_in_deletion_cannot_be_read_after_reopening(made: volume.Volume) -> None:
    made.create_snapshot("old")
    made.create_snapshot("new")
    made.device.writev(0, block(1))
    with pytest.raises(errors.DeletionStopped):
        made.delete_snapshot("new", cancelled=lambda: True)
    opened = reopen(made)
    opened.device.writev(4 * CHUNK, block(2))  # its old content goes to the older one only
    with pytest.raises(block_device.DeviceClosed):
        read(opened.snapshot("new").view)
    with pytest.raises(block_device.DeviceClosed):
        list(pieces.export(opened.snapshot("new").view))
    opened.close()


@pytest.mark.parametrize("name", ["middle", "new"])
def test_deletion_that_cannot_be_recorded_leaves_the_snapshot_as_it_was(tmp_path: Path, name: str) -> None:
    io = FaultyIO()
    made = volume.Volume.create(tmp_path / "v", "v", tmp_path / "disk", size=SIZE, chunk_size=CHUNK, io=io)
    for moment in ("old", "middle", "new"):
        made.device.writev(0, block(len(made.snapshots) + 1, CHUNK))
        made.create_snapshot(moment)
    before = read(made.device)
    io.fail("rename", errno.EIO, path="volume.json")
    with pytest.raises(errors.VolumeError):
        made.delete_snapshot(name)
    io.heal()
    made.device.writev(CHUNK, block(9, 2 * CHUNK))
    expected = before if name == "new" else bytes([2]) * CHUNK + before[CHUNK:]
    assert read(made.snapshot(name).view) == expected
    opened = reopen(made)
    assert read(opened.snapshot(name).view) == expected
    opened.close()


def test_deleting_the_oldest_ends_stopped_deletions(made: volume.Volume) -> None:
    made.create_snapshot("old")
    made.create_snapshot("new")
    made.device.writev(0, block(1, CHUNK))
    with pytest.raises(errors.DeletionStopped):
        made.delete_snapshot("new", cancelled=lambda: True)
    made.delete_snapshot("old")
    assert made.snapshots == ()
    assert made.device.write_once_side is None
    assert list((made.directory / "snapshots").iterdir()) == []


def test_chunk_that_an_initiator_wrote_in_part_survives_deletion_of_the_newest(made: volume.Volume) -> None:
    before = read(made.device)
    made.create_snapshot("old")
    new = made.create_snapshot("new")
    new.write_once.writev(CHUNK + 512, [memoryview(before)[CHUNK + 512 : CHUNK + 1024]])
    made.delete_snapshot("new")
    made.device.writev(CHUNK, block(7, CHUNK))
    assert read(made.snapshot("old").view) == before


def test_view_of_a_deleted_snapshot_is_closed(made: volume.Volume) -> None:
    view = made.create_snapshot("a").view
    made.delete_snapshot("a")
    with pytest.raises(block_device.DeviceClosed):
        read(view)
    assert made.device.write_now(0, 512, block(1))


def test_snapshot_taken_while_a_deletion_looks_for_chunks_stays_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = volume.Volume.create(tmp_path / "state", "v", tmp_path / "disk", size=SIZE, chunk_size=CHUNK)
    moments = {}

    def take(name: str) -> None:
        moments[name] = read(made.device)
        made.create_snapshot(name)
        made.device.writev(len(moments) * CHUNK, block(len(moments), 2 * CHUNK))

    looked = deleting.known_below

    def take_another(state: State, snapshot: Snapshot) -> object:
        known = looked(state, snapshot)
        take("c")  # the search for chunks holds no lock
        return known

    take("a")
    take("b")
    monkeypatch.setattr(deleting, "known_below", take_another)
    made.delete_snapshot("b")
    del moments["b"]
    made.device.writev(0, block(9, SIZE))
    for name, moment in moments.items():
        assert read(made.snapshot(name).view) == moment
    opened = reopen(made)
    for name, moment in moments.items():
        assert read(opened.snapshot(name).view) == moment
    opened.close()
