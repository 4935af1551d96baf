# SPDX-License-Identifier: Apache-2.0
"""Volumes on a real file system that is full or read-only: no data is lost, and everything that needs no space works."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.files import backing_file
from lun_backends.volumes import errors, manifest, policy, volume
from tests import peers

CHUNK = 65536
CHUNKS = 64
SIZE_KIB = 1536
BEFORE = b"".join(bytes([chunk + 1]) * CHUNK for chunk in range(CHUNKS))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small tmpfs."""
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size={SIZE_KIB}k"
    peers.need_root("mounting a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "wolun-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def open_volume(tmp_path: Path, disk: Path, on_error: policy.OnError) -> volume.Volume:
    """Make a volume whose primary has room, and whose snapshots do not."""
    rules = policy.Policy(on_error=on_error)
    if manifest.exists(disk / "v"):
        return volume.Volume.open(disk / "v", rules=rules)
    (tmp_path / "primary").write_bytes(BEFORE)
    return volume.Volume.create(disk / "v", "v", tmp_path / "primary", chunk_size=CHUNK, rules=rules)


def read(device: block_device.BlockDevice) -> bytes:
    data = bytearray(device.size)
    device.readv(0, [memoryview(data)])
    return bytes(data)


def overwrite(opened: volume.Volume, chunks: range) -> int:
    """Write each chunk; return the number of writes before the first that was refused for lack of space."""
    for done, chunk in enumerate(chunks):
        try:
            opened.device.writev(chunk * CHUNK, [memoryview(bytes([255]) * CHUNK)])
        except block_device.PreserveFailed as refused:
            assert isinstance(refused.cause, block_device.SpaceExhausted)
            return done
    return len(chunks)


def fill(disk: Path) -> Path:
    """Fill the disk to the last byte."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return path


def test_fail_writes_refuses_writes_until_a_snapshot_is_deleted(tmp_path: Path, disk: Path) -> None:
    opened = open_volume(tmp_path, disk, policy.OnError.FAIL_WRITES)
    opened.create_snapshot("a")
    done = overwrite(opened, range(CHUNKS))
    assert 4 < done < CHUNKS
    fill(disk)
    assert overwrite(opened, range(done)) == done  # preserved chunks need no room
    assert overwrite(opened, range(done, CHUNKS)) == 0
    assert read(opened.snapshot("a").view) == BEFORE
    with pytest.raises(errors.SnapshotFailed):
        opened.create_snapshot("b")
    opened.close()
    opened = open_volume(tmp_path, disk, policy.OnError.FAIL_WRITES)  # opening needs no room
    assert read(opened.snapshot("a").view) == BEFORE
    opened.delete_snapshot("a")  # nor does deleting
    assert overwrite(opened, range(CHUNKS)) == CHUNKS
    now = read(opened.device)
    opened.create_snapshot("b")
    opened.device.writev(0, [memoryview(bytes([1]) * 512)])
    assert read(opened.snapshot("b").view) == now
    opened.close()


def test_drop_snapshot_invalidates_the_oldest_first(tmp_path: Path, disk: Path) -> None:
    opened = open_volume(tmp_path, disk, policy.OnError.DROP_SNAPSHOT)
    opened.create_snapshot("a")
    assert overwrite(opened, range(12)) == 12
    now = read(opened.device)
    opened.create_snapshot("b")
    assert overwrite(opened, range(30, 46)) == 16
    assert opened.snapshot("a").invalid_reason
    assert read(opened.snapshot("b").view) == now
    fill(disk)
    assert overwrite(opened, range(CHUNKS)) == CHUNKS
    assert opened.snapshot("b").invalid_reason
    opened.close()
    opened = open_volume(tmp_path, disk, policy.OnError.DROP_SNAPSHOT)
    for name in "ab":
        with pytest.raises(block_device.SnapshotInvalid, match="no space left"):
            read(opened.snapshot(name).view)
        opened.delete_snapshot(name)
    opened.close()


def test_a_sparse_primary_gets_the_space_of_an_invalidated_snapshot(disk: Path) -> None:
    """Writes to the volume go on: they need the space that the snapshot took."""
    backing_file.create(disk / "sparse", 24 * CHUNK)
    rules = policy.Policy(on_error=policy.OnError.DROP_SNAPSHOT)
    opened = volume.Volume.create(disk / "v", "v", disk / "sparse", chunk_size=CHUNK, rules=rules)
    for chunk in range(12):
        opened.device.writev(chunk * CHUNK, [memoryview(bytes([1]) * CHUNK)])
    opened.create_snapshot("a")
    for chunk in range(20):
        opened.device.writev(chunk * CHUNK, [memoryview(bytes([2]) * CHUNK)])
    assert opened.snapshot("a").invalid_reason
    assert read(opened.device) == bytes([2]) * 20 * CHUNK + bytes(4 * CHUNK)
    opened.close()


def test_a_deletion_without_room_to_move_chunks_changes_nothing(tmp_path: Path, disk: Path) -> None:
    opened = open_volume(tmp_path, disk, policy.OnError.FAIL_WRITES)
    opened.create_snapshot("a")
    opened.device.writev(0, [memoryview(bytes([1]) * 512)])
    now = read(opened.device)
    opened.create_snapshot("b")
    opened.create_snapshot("c")
    overwrite(opened, range(1, 9))
    filler = fill(disk)
    with pytest.raises(errors.VolumeError, match="no room"):
        opened.delete_snapshot("c")
    assert read(opened.snapshot("a").view) == BEFORE
    assert read(opened.snapshot("b").view) == now
    filler.unlink()
    opened.delete_snapshot("c")
    assert read(opened.snapshot("b").view) == now
    assert [snapshot.name for snapshot in opened.snapshots] == ["a", "b"]
    opened.close()


@pytest.mark.parametrize("refused", [False, True], ids=["oldest", "another first"])
def test_deletion_of_the_oldest_never_needs_space(tmp_path: Path, disk: Path, refused: bool) -> None:
    """Each time the last byte is gone again: another program takes what a deletion freed."""
    opened = open_volume(tmp_path, disk, policy.OnError.FAIL_WRITES)
    for number, name in enumerate("abcde"):
        opened.create_snapshot(name, labels={"long": "x" * 200})
        overwrite(opened, range(2 * number, 2 * number + 2))
    opened.close()
    opened = open_volume(tmp_path, disk, policy.OnError.FAIL_WRITES)
    left: list[str] = []
    while opened.snapshots:
        fill(disk).rename(disk / f"filler{len(left)}")
        assert os.statvfs(disk).f_bavail == 0
        if refused and len(opened.snapshots) > 1:
            with pytest.raises(errors.VolumeError, match="no room"):
                opened.delete_snapshot(opened.snapshots[1].name)
        opened.delete_snapshot(opened.snapshots[0].name)
        left.append("".join(snapshot.name for snapshot in opened.snapshots))
    assert left == (["cde", "e", ""] if refused else ["bcde", "cde", "de", "e", ""])
    opened.close()


def test_rollback_that_stopped_names_what_helps_and_goes_on_when_there_is_room(tmp_path: Path, disk: Path) -> None:
    opened = open_volume(tmp_path, disk, policy.OnError.FAIL_WRITES)
    opened.create_snapshot("oldest")
    overwrite(opened, range(40, 42))
    target = read(opened.device)
    opened.create_snapshot("target")
    assert overwrite(opened, range(6)) == 6
    now = read(opened.device)
    opened.create_snapshot("newest")
    opened.begin_rollback("target")
    filler = fill(disk).rename(disk / "first")
    with pytest.raises(block_device.PreserveFailed):
        opened.continue_rollback()
    stopped = opened.rollback_stopped
    assert stopped is not None
    assert stopped.needs_space
    assert "v@oldest, which it does not need" in stopped.remedy
    assert not opened.rollback_may_go_on()
    assert read(opened.device) == target
    for refused in (lambda: opened.create_snapshot("x"), lambda: opened.delete_snapshot("newest")):
        with pytest.raises(errors.RollbackUnderWay, match=r"which has stopped: .*no space left") as caught:
            refused()
        assert "`wolun snapshot restore v@target`" in caught.value.remedy
    opened.delete_snapshot("oldest")  # needs no room, and the rollback does not need it
    with pytest.raises(errors.RollbackUnderWay):
        opened.delete_snapshot("target")
    fill(disk)
    filler.unlink()
    assert opened.rollback_may_go_on()
    assert opened.continue_rollback()
    assert opened.rollback_stopped is None
    assert read(opened.primary) == target
    assert read(opened.snapshot("newest").view) == now
    opened.close()


def test_pre_images_leave_room_for_what_frees_room(tmp_path: Path, disk: Path) -> None:
    opened = open_volume(tmp_path, disk, policy.OnError.FAIL_WRITES)
    opened.create_snapshot("a")
    done = overwrite(opened, range(CHUNKS))
    for chunk in range(done, CHUNKS):
        assert overwrite(opened, range(chunk, chunk + 1)) == 0  # nor do writes that are refused take it
    file_system = os.statvfs(disk)
    assert file_system.f_bavail >= file_system.f_blocks // 32 > 0
    with pytest.raises(errors.SnapshotFailed):
        opened.create_snapshot("b")
    assert os.statvfs(disk).f_bavail >= file_system.f_blocks // 32
    opened.close()


def test_a_sparse_primary_on_a_full_disk_keeps_its_data(disk: Path) -> None:
    backing_file.create(disk / "sparse", CHUNKS * CHUNK)
    opened = volume.Volume.create(disk / "v", "v", disk / "sparse", chunk_size=CHUNK)
    written = 0
    with pytest.raises(block_device.SpaceExhausted):
        for chunk in range(CHUNKS):
            opened.device.writev(chunk * CHUNK, [memoryview(bytes([7]) * CHUNK)])
            written += 1
    assert read(opened.device)[: written * CHUNK] == bytes([7]) * written * CHUNK
    opened.device.writev(0, [memoryview(bytes([8]) * CHUNK)])
    opened.close()


@pytest.mark.parametrize("on_error", list(policy.OnError))
def test_a_read_only_disk_refuses_writes_and_keeps_snapshots(
    tmp_path: Path, disk: Path, on_error: policy.OnError
) -> None:
    """Neither policy lets a write through that it cannot record on disk."""
    opened = open_volume(tmp_path, disk, on_error)
    opened.create_snapshot("a")
    assert overwrite(opened, range(2)) == 2
    opened.close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    opened = open_volume(tmp_path, disk, on_error)
    expected = read(opened.device)
    assert "ead-only" in opened.snapshot("a").invalid_reason
    with pytest.raises(block_device.PreserveFailed):
        opened.device.writev(5 * CHUNK, [memoryview(bytes(512))])
    with pytest.raises(errors.SnapshotFailed):
        opened.create_snapshot("b")
    assert read(opened.device) == expected
    opened.close()
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    opened = open_volume(tmp_path, disk, on_error)
    assert read(opened.snapshot("a").view) == BEFORE
    assert not opened.snapshot("a").invalid_reason
    opened.close()


def test_filler_leaves_no_free_block(disk: Path) -> None:
    fill(disk)
    assert os.statvfs(disk).f_bavail == 0
