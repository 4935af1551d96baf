# SPDX-License-Identifier: Apache-2.0
"""Volumes with `durability: process-crash`: after a kill or a power cut, their snapshots are good or marked invalid."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest

from lun_backends import block_device, flat
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.volumes import boot, errors, manifest, volume
from lun_backends.volumes.manifest import SnapshotState
from tests.lun_backends.store_factory import FaultyIO

CHUNK = 4096
OLD, NEW = b"\x01" * CHUNK, b"\x02" * CHUNK
CRASH, POWER = Durability.PROCESS_CRASH, Durability.POWER_LOSS


@pytest.fixture(autouse=True)
def boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(boot, "PATH", path)
    return path


def used(tmp_path: Path, durability: Durability = CRASH, io: storage_io.StorageIO = storage_io.SYSTEM) -> volume.Volume:
    """Make a volume with a snapshot that has a pre-image."""
    made = volume.Volume.create(
        tmp_path / "state",
        "vol0",
        tmp_path / "disk.img",
        size=16 * CHUNK,
        chunk_size=CHUNK,
        durability=durability,
        io=io,
    )
    made.device.writev(0, [memoryview(OLD)])
    made.create_snapshot("a")
    made.device.writev(0, [memoryview(NEW)])
    return made


def killed(old: volume.Volume) -> None:
    """Leave the volume as a killed process does: without a clean close."""
    in_use = manifest.load(old.directory).in_use
    old.close()
    manifest.store(old.directory, dataclasses.replace(manifest.load(old.directory), in_use=in_use))


def content(opened: volume.Volume, name: str = "a") -> bytes:
    data = bytearray(CHUNK)
    opened.snapshot(name).view.readv(0, [memoryview(data)])
    return bytes(data)


def in_use(tmp_path: Path) -> str | None:
    return manifest.load(tmp_path / "state").in_use


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    made = used(tmp_path)
    assert in_use(tmp_path) == "first"
    killed(made)
    again = volume.Volume.open(tmp_path / "state")
    assert content(again) == OLD
    assert in_use(tmp_path) == "first"
    again.close()
    assert in_use(tmp_path) is None


def test_a_power_cut_makes_snapshots_invalid_for_good(tmp_path: Path, boot_id: Path) -> None:
    killed(used(tmp_path))
    boot_id.write_text("second\n")
    again = volume.Volume.open(tmp_path / "state")
    assert again.snapshot("a").state is SnapshotState.INVALID
    assert "the machine went down" in again.snapshot("a").invalid_reason
    with pytest.raises(block_device.SnapshotInvalid, match="process-crash"):
        content(again)
    assert in_use(tmp_path) == "second"
    again.device.writev(CHUNK, [memoryview(NEW)])  # the volume itself can be written to
    again.create_snapshot("b")
    again.device.writev(0, [memoryview(OLD)])
    assert content(again, "b") == NEW
    again.close()
    again = volume.Volume.open(tmp_path / "state")
    assert again.snapshot("a").state is SnapshotState.INVALID
    assert content(again, "b") == NEW
    again.delete_snapshot("a")
    assert content(again, "b") == NEW
    again.close()


def test_a_power_cut_after_a_clean_close_is_harmless(tmp_path: Path, boot_id: Path) -> None:
    used(tmp_path).close()
    boot_id.write_text("second\n")
    again = volume.Volume.open(tmp_path / "state")
    assert content(again) == OLD
    assert in_use(tmp_path) == "second"
    again.close()


def test_a_power_cut_leaves_power_loss_volumes_good(tmp_path: Path, boot_id: Path) -> None:
    made = used(tmp_path, POWER)
    assert in_use(tmp_path) is None
    killed(made)
    boot_id.write_text("second\n")
    again = volume.Volume.open(tmp_path / "state")
    assert content(again) == OLD
    assert in_use(tmp_path) is None
    again.close()


def test_a_change_to_power_loss_after_a_kill_first_syncs_all_files(tmp_path: Path, boot_id: Path) -> None:
    killed(used(tmp_path))
    manifest.store(tmp_path / "state", dataclasses.replace(manifest.load(tmp_path / "state"), durability=POWER))
    io = FaultyIO()
    marks: list[str | None] = []
    io.before["fdatasync"] = lambda: marks.append(in_use(tmp_path))
    again = volume.Volume.open(tmp_path / "state", io=io)
    assert marks.count("first") >= 3  # the primary, the map, the chunk file: before the mark is removed
    assert in_use(tmp_path) is None
    again.close()
    boot_id.write_text("second\n")
    again = volume.Volume.open(tmp_path / "state")
    assert content(again) == OLD
    again.close()


def test_a_change_to_power_loss_after_a_power_cut_leaves_snapshots_invalid(tmp_path: Path, boot_id: Path) -> None:
    killed(used(tmp_path))
    boot_id.write_text("second\n")
    manifest.store(tmp_path / "state", dataclasses.replace(manifest.load(tmp_path / "state"), durability=POWER))
    again = volume.Volume.open(tmp_path / "state")
    assert again.snapshot("a").state is SnapshotState.INVALID
    again.close()


def test_a_close_after_a_failed_sync_is_not_clean(tmp_path: Path) -> None:
    io = FaultyIO()
    made = used(tmp_path, io=io)
    io.fail("fdatasync")
    io.fail("sync_map")
    with pytest.raises(block_device.MediumError):
        made.snapshot("a").write_once.flush()
    del io.before["fdatasync"], io.before["sync_map"]
    made.close()
    assert in_use(tmp_path) == "first"


def test_a_snapshot_that_cannot_be_marked_is_marked_at_the_next_open(
    tmp_path: Path, boot_id: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(used(tmp_path))
    boot_id.write_text("second\n")

    class NoMarks(storage_io.StorageIO):
        def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            if ".invalid" in path.name:
                raise OSError(errno.EROFS, "read-only")
            return super().open(path, flags, mode)

    again = volume.Volume.open(tmp_path / "state", io=NoMarks())
    assert again.snapshot("a").state is SnapshotState.INVALID
    again.close()
    assert in_use(tmp_path) == "first"
    again = volume.Volume.open(tmp_path / "state")
    assert again.snapshot("a").state is SnapshotState.INVALID
    again.close()
    assert in_use(tmp_path) is None


def test_a_volume_that_cannot_record_its_use_is_not_opened(tmp_path: Path) -> None:
    used(tmp_path).close()
    io = FaultyIO()
    io.fail("pwritev", errno.ENOSPC)
    with pytest.raises(errors.VolumeError, match="cannot note that it is in use"):
        volume.Volume.open(tmp_path / "state", io=io)
    flat.Flat(tmp_path / "disk.img").close()  # unlocked again
    assert in_use(tmp_path) is None


def test_without_a_boot_id_only_the_same_process_trusts_unclean_snapshots(
    tmp_path: Path, boot_id: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id.unlink()
    made = used(tmp_path)
    assert str(in_use(tmp_path)).startswith("unknown ")
    killed(made)
    monkeypatch.setattr(boot, "_NEVER", "unknown to another process")
    again = volume.Volume.open(tmp_path / "state")
    assert again.snapshot("a").state is SnapshotState.INVALID
    again.close()
