# SPDX-License-Identifier: Apache-2.0
"""Creating and opening volumes: options, manifests, lost files and leftovers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.files import backing_file
from lun_backends.volumes import errors, manifest, volume
from lun_backends.volumes.manifest import SnapshotState
from tests.lun_backends.volumes.sample import CHUNK, block, read, reopen


def test_leftovers_are_removed_and_foreign_files_are_not(made: volume.Volume) -> None:
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


def test_volume_has_one_owner(made: volume.Volume) -> None:
    with pytest.raises(backing_file.CannotOpen, match="another process"):
        volume.Volume.open(made.directory)


@pytest.mark.parametrize("durability", Durability)
def test_options_are_read_back(tmp_path: Path, durability: Durability) -> None:
    made = volume.Volume.create(
        tmp_path / "state", "v", tmp_path / "disk", size=1 << 20, block_size=4096, durability=durability
    )
    opened = reopen(made)
    assert (opened.durability, opened.device.block_size, opened.device.size) == (durability, 4096, 1 << 20)
    assert (opened.uuid, opened.name, opened.chunk_size) == (made.uuid, "v", 65536)
    opened.close()


def test_create_refuses_impossible_options(tmp_path: Path) -> None:
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
        ({"format": manifest.FORMAT + 1}, "format", "newer wolun"),
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
def test_bad_manifest_is_refused_by_file_and_field(
    made: volume.Volume, change: dict[str, object], field: str, reason: str
) -> None:
    made.close()
    path = made.directory / "volume.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(manifest.ManifestError, match=reason) as caught:
        volume.Volume.open(made.directory)
    assert (caught.value.path, caught.value.field) == (path, field)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\0\0", '{"format": 1}'])
def test_damaged_manifest_is_refused(made: volume.Volume, text: str) -> None:
    made.close()
    (made.directory / "volume.json").write_text(text)
    with pytest.raises(manifest.ManifestError):
        volume.Volume.open(made.directory)


def test_missing_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(manifest.ManifestError, match="no volume here"):
        volume.Volume.open(tmp_path)
