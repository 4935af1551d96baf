# SPDX-License-Identifier: Apache-2.0
"""Volumes on real files: snapshots taken, read, deleted, found again at open, and what bad input gets.

(Longer than most modules here: they mirror the one module that they test.)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lun_backends import block_device
from lun_backends.backups import pieces
from lun_backends.block_device import ExtentKind
from lun_backends.durability import Durability
from lun_backends.files import backing_file, storage_io
from lun_backends.volumes import deleting, doubt, errors, manifest, move_down, volume
from lun_backends.volumes.manifest import SnapshotState
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State
from tests.faults.storage import FaultyIO

CHUNK = 4096
SIZE = 64 * CHUNK + 512


def block(fill: int, length: int = 512) -> list[memoryview]:
    return [memoryview(bytes([fill]) * length)]


def read(device: block_device.BlockDevice, offset: int = 0, length: int = SIZE) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[volume.Volume]:
    opened = volume.Volume.create(tmp_path / "state", "vol0", tmp_path / "disk.img", size=SIZE, chunk_size=CHUNK)
    pattern = random.Random(1).randbytes(SIZE - 8 * CHUNK)
    opened.device.writev(0, [memoryview(pattern)])
    yield opened
    opened.close()


def reopen(old: volume.Volume) -> volume.Volume:
    old.close()
    return volume.Volume.open(old.directory)


def test_a_view_shows_the_moment(made: volume.Volume) -> None:
    before = read(made.device)
    snapshot = made.create_snapshot("monday")
    assert snapshot.held_seconds is not None
    assert snapshot.state is SnapshotState.ACTIVE
    assert read(snapshot.view) == before
    made.device.writev(CHUNK - 512, block(9, 1024))
    made.device.write_zeroes(5 * CHUNK, 3 * CHUNK, discard=True)
    made.device.writev(SIZE - 512, block(8))
    assert read(snapshot.view) == before
    at_once = bytearray(SIZE)
    assert snapshot.view.read_now(0, SIZE, [memoryview(at_once)])
    assert at_once == before
    assert read(made.device) != before
    assert snapshot.preserved_bytes == 5 * CHUNK + 512
    assert snapshot.used_bytes > 0


def test_every_view_of_several_snapshots_shows_its_own_moment_also_after_reopening(made: volume.Volume) -> None:
    rng = random.Random(2)
    moments = {}
    for name in ("a", "b", "c", "d"):
        moments[name] = read(made.device)
        made.create_snapshot(name)
        for _ in range(8):
            made.device.writev(rng.randrange(SIZE // 512) * 512, block(rng.randrange(256)))
    now = read(made.device)
    opened = made
    for turn in range(2):
        opened = reopen(made) if turn else made
        assert [snapshot.name for snapshot in opened.snapshots] == list(moments)
        assert {snapshot.name: read(snapshot.view) for snapshot in opened.snapshots} == moments
        assert read(opened.device) == now
    opened.device.writev(0, block(1, SIZE))
    assert {snapshot.name: read(snapshot.view) for snapshot in opened.snapshots} == moments
    opened.close()


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


def test_a_deletion_that_was_stopped_goes_on_after_reopening(made: volume.Volume) -> None:
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
def test_deleting_the_newest_behind_a_stopped_deletion(made: volume.Volume, reopened: bool) -> None:
    """Two are on their way down to the oldest then, which must get nothing from the primary that either of them has."""
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


def test_what_is_not_durable_yet_is_not_taken_for_preserved(tmp_path: Path) -> None:
    """The newest snapshot is deleted while a copy into it waits for the disk, visible already: another writer to that chunk
    must not take it for done (rule 1, lun_backends/README.md).
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


def test_what_a_crash_left_in_part_is_still_to_be_preserved(made: volume.Volume) -> None:
    """The newest snapshot was being deleted when the power went, and some blocks of a chunk had come to its disk."""
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


def test_a_snapshot_that_is_given_up_while_another_moves_down_to_it(
    made: volume.Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_down, "_BATCH", CHUNK)
    old = made.create_snapshot("old")
    made.create_snapshot("new")
    made.device.writev(0, block(1, 3 * CHUNK))
    made.delete_snapshot("new", progress=lambda _done, _all: made.state.enforcer.invalidate(old, "no room"))
    assert [snapshot.name for snapshot in made.snapshots] == ["old"]
    assert made.snapshot("old").invalid_on_disk


def test_a_snapshot_in_deletion_cannot_be_read_after_reopening_either(made: volume.Volume) -> None:
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
def test_a_deletion_that_cannot_be_recorded_leaves_the_snapshot_as_it_was(tmp_path: Path, name: str) -> None:
    io = FaultyIO()
    made = volume.Volume.create(tmp_path / "v", "v", tmp_path / "disk", size=SIZE, chunk_size=CHUNK, io=io)
    for each in ("old", "middle", "new"):
        made.device.writev(0, block(len(made.snapshots) + 1, CHUNK))
        made.create_snapshot(each)
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


def test_deleting_the_oldest_takes_stopped_deletions_along(made: volume.Volume) -> None:
    made.create_snapshot("old")
    made.create_snapshot("new")
    made.device.writev(0, block(1, CHUNK))
    with pytest.raises(errors.DeletionStopped):
        made.delete_snapshot("new", cancelled=lambda: True)
    made.delete_snapshot("old")
    assert made.snapshots == ()
    assert made.device.write_once_side is None
    assert list((made.directory / "snapshots").iterdir()) == []


def test_a_chunk_written_in_part_by_someone_else_survives_deletion_of_the_newest(made: volume.Volume) -> None:
    before = read(made.device)
    made.create_snapshot("old")
    new = made.create_snapshot("new")
    new.write_once.writev(CHUNK + 512, [memoryview(before)[CHUNK + 512 : CHUNK + 1024]])
    made.delete_snapshot("new")
    made.device.writev(CHUNK, block(7, CHUNK))
    assert read(made.snapshot("old").view) == before


def test_a_deleted_view_is_closed(made: volume.Volume) -> None:
    view = made.create_snapshot("a").view
    made.delete_snapshot("a")
    with pytest.raises(block_device.DeviceClosed):
        read(view)
    assert made.device.write_now(0, 512, block(1))


@pytest.mark.parametrize("step", ["rename", "fsync_directory", "fdatasync", "open"])
@pytest.mark.parametrize("for_ever", [False, True])
def test_a_snapshot_that_could_not_be_recorded_was_never_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, for_ever: bool
) -> None:
    monkeypatch.setattr(
        doubt, "PATIENCE", 0.0
    )  # after syncs that failed for ever the next write settles what is in force

    class Failing(storage_io.StorageIO):
        armed = 0

    def fail(self: Failing, *arguments: Any) -> Any:
        if self.armed:
            self.armed -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return getattr(storage_io.StorageIO, step)(self, *arguments)

    setattr(Failing, step, fail)
    io = Failing()
    made = volume.Volume.create(tmp_path / "state", "v", tmp_path / "disk", size=SIZE, chunk_size=CHUNK, io=io)
    made.create_snapshot("good")
    before = read(made.device)
    made.device.writev(0, block(1, CHUNK))
    original = made.device.hold

    @contextlib.contextmanager
    def hold() -> Iterator[None]:  # all before the barrier works
        with original():
            io.armed = 1000 if for_ever else 1
            yield

    made.device.hold = hold  # type: ignore[method-assign]
    try:
        if step in ("rename", "fsync_directory", "fdatasync"):
            with pytest.raises(errors.SnapshotFailed):
                made.create_snapshot("bad")
        else:
            made.create_snapshot("fine")  # nothing is opened inside the barrier
    finally:
        io.armed = 0
    made.device.writev(0, block(2, 2 * CHUNK))
    assert read(made.snapshot("good").view) == before
    opened = reopen(made)
    assert read(opened.snapshot("good").view) == before
    assert all(snapshot.state is SnapshotState.INVALID for snapshot in opened.snapshots if snapshot.name == "bad")
    opened.close()


def test_names(made: volume.Volume) -> None:
    made.create_snapshot("a")
    with pytest.raises(errors.SnapshotExists, match="a"):
        made.create_snapshot("a")
    for bad in ("", "-a", "a b", "a@b", "a/b", "..", "é", "x" * 65, "a\n"):
        with pytest.raises(errors.BadName):
            made.create_snapshot(bad)
    with pytest.raises(errors.NoSuchSnapshot, match="there are: a"):
        made.delete_snapshot("b")


def test_export_and_extents(made: volume.Volume) -> None:
    before = read(made.device)
    made.create_snapshot("a")
    made.device.writev(0, block(1, CHUNK))
    made.device.writev(SIZE - 3 * CHUNK - 512, block(1, CHUNK))  # was a hole
    copy = bytearray(b"\xff" * SIZE)
    end = holes = 0
    for piece in pieces.export(made.snapshot("a").view):
        assert piece.offset == end
        end += piece.length
        holes += piece.length if piece.data is None else 0
        copy[piece.offset : end] = bytes(piece.length) if piece.data is None else piece.data
    assert end == SIZE
    assert copy == before
    assert holes >= 6 * CHUNK


def test_changed_map(made: volume.Volume) -> None:
    made.create_snapshot("a")
    made.device.writev(0, block(1, 8 * CHUNK))
    made.create_snapshot("b")
    made.device.writev(8 * CHUNK, block(1, CHUNK))
    assert made.changed_map("a", 8)[:3] == [1.0, 1 / 8, 0.0]
    assert made.changed_map("b", 8)[:3] == [0.0, 1 / 8, 0.0]
    assert len(made.changed_map("b", 100)) == 100


def test_leftovers_are_removed_and_strangers_are_not(made: volume.Volume) -> None:
    made.create_snapshot("a")
    snapshots = made.directory / "snapshots"
    stranger = snapshots / "notes.txt"
    stranger.write_text("mine")
    leftover = snapshots / "01234567-89ab-cdef-0123-456789abcdef.map"
    leftover.write_bytes(b"x")
    opened = reopen(made)
    assert stranger.exists()
    assert not leftover.exists()
    opened.close()


def test_lost_files_make_a_snapshot_invalid_and_never_a_wrong_view(made: volume.Volume) -> None:
    made.create_snapshot("a")
    made.device.writev(0, block(1, CHUNK))
    lost = made.create_snapshot("b")
    made.device.writev(0, block(2, 2 * CHUNK))
    made.close()
    (made.directory / "snapshots" / f"{lost.uuid}.map").unlink()
    opened = volume.Volume.open(made.directory)
    assert opened.snapshot("b").state is SnapshotState.INVALID
    for name in ("a", "b"):
        with pytest.raises(block_device.SnapshotInvalid):
            read(opened.snapshot(name).view)
    opened.device.writev(0, block(3))
    fresh = opened.create_snapshot("c")
    now = read(opened.device)
    opened.device.writev(0, block(4, 4 * CHUNK))
    assert read(fresh.view) == now
    with pytest.raises(errors.VolumeError, match="older"):
        opened.delete_snapshot("b")
    opened.delete_snapshot("a")
    opened.delete_snapshot("b")
    assert read(fresh.view) == now
    opened.close()


def test_one_owner(made: volume.Volume) -> None:
    with pytest.raises(backing_file.CannotOpen, match="another process"):
        volume.Volume.open(made.directory)


@pytest.mark.parametrize("durability", Durability)
def test_options_are_remembered(tmp_path: Path, durability: Durability) -> None:
    made = volume.Volume.create(
        tmp_path / "state", "v", tmp_path / "disk", size=1 << 20, block_size=4096, durability=durability
    )
    opened = reopen(made)
    assert (opened.durability, opened.device.block_size, opened.device.size) == (durability, 4096, 1 << 20)
    assert (opened.uuid, opened.name, opened.chunk_size) == (made.uuid, "v", 65536)
    opened.close()


def test_create_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    backing_file.create(disk, 1 << 20)
    with pytest.raises(errors.BadName):
        volume.Volume.create(tmp_path / "s", "a b", disk)
    with pytest.raises(errors.VolumeError, match="chunk_size"):
        volume.Volume.create(tmp_path / "s", "v", disk, chunk_size=5000)
    with pytest.raises(errors.VolumeError, match="fewer"):
        volume.Volume.create(tmp_path / "s", "v", disk, size=2 << 20)
    volume.Volume.create(tmp_path / "s", "v", disk).close()
    with pytest.raises(errors.VolumeError, match="already"):
        volume.Volume.create(tmp_path / "s", "v", disk)


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"format": 2}, "format", "1"),
        ({"size": -5}, "size", "greater"),
        ({"size": 1000}, "", "multiple"),
        ({"block_size": 100}, "block_size", "512 or 4096"),
        ({"chunk_size": 5000}, "chunk_size", "power of two"),
        ({"uuid": "nonsense"}, "uuid", "UUID"),
        ({"colour": "red"}, "colour", "nexpected"),
        ({"snapshots": [{"name": "a"}]}, "snapshots.0.uuid", "required"),
        ({"durability": "maybe"}, "durability", "power-loss"),
    ],
)
def test_a_bad_manifest_is_refused_by_file_and_field(
    made: volume.Volume, change: dict[str, object], field: str, reason: str
) -> None:
    made.close()
    path = made.directory / "volume.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(manifest.ManifestError, match=reason) as caught:
        volume.Volume.open(made.directory)
    assert (caught.value.path, caught.value.field) == (path, field)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\0\0", '{"format": 1}'])
def test_a_damaged_manifest_is_refused(made: volume.Volume, text: str) -> None:
    made.close()
    (made.directory / "volume.json").write_text(text)
    with pytest.raises(manifest.ManifestError):
        volume.Volume.open(made.directory)


def test_no_volume(tmp_path: Path) -> None:
    with pytest.raises(manifest.ManifestError, match="no volume here"):
        volume.Volume.open(tmp_path)


def test_labels(made: volume.Volume) -> None:
    made.create_snapshot("a", {"purpose": "backup", "ticket": "4711"})
    made.create_snapshot("b", scheduled=True)
    made.label_snapshot("a", {"ticket": None, "owner": "ada l.", "none": None})
    made.label_snapshot("b", {"x": ""})
    again = reopen(made)
    assert again.snapshot("a").labels == {"purpose": "backup", "owner": "ada l."}
    assert again.snapshot("b").labels == {"x": ""}
    assert [each.scheduled for each in again.snapshots] == [False, True]
    again.delete_snapshot("a")
    assert again.snapshot("b").labels == {"x": ""}
    again.close()


@pytest.mark.parametrize(
    "labels", [{"": "x"}, {"a b": "x"}, {"a": "x" * 257}, {"a": "x\ny"}, {f"k{n}": "" for n in range(65)}]
)
def test_labels_that_may_not_be(made: volume.Volume, labels: dict[str, str]) -> None:
    with pytest.raises(errors.BadLabel):
        made.create_snapshot("a", labels)
    assert made.snapshots == ()
    made.create_snapshot("a")
    with pytest.raises(errors.BadLabel):
        made.label_snapshot("a", labels)
    assert made.snapshot("a").labels == {}


def test_a_snapshot_taken_while_a_deletion_looks_for_chunks_stays_true(
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
        take("c")  # looking for chunks is outside of the locks
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
