# SPDX-License-Identifier: Apache-2.0
"""The manifest: stored content is read back, faults are refused, and older versions can be read."""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path

import pytest

from lun_backends.durability import Durability
from lun_backends.volumes import manifest
from lun_backends.volumes.manifest import Manifest, ManifestError, SnapshotState

OLDER = """{
  "name": "vol0",
  "uuid": "0f0b1ed6-4f7c-4f0a-9a25-3f6f4dc0a001",
  "created_at": "2025-11-03T08:15:00.123000Z",
  "primary": {"path": "/srv/vol0.img", "direct": false},
  "size": 1073741824,
  "block_size": 512,
  "chunk_size": 65536,
  "durability": "power-loss",
  "snapshots": [
    {
      "name": "monday",
      "uuid": "0f0b1ed6-4f7c-4f0a-9a25-3f6f4dc0a002",
      "taken_at": "2025-11-03T09:00:00.000000Z",
      "state": "deleting",
      "reason": "",
      "labels": {"by": "cron"},
      "scheduled": true,
      "group": null
    },
    {
      "name": "tuesday",
      "uuid": "0f0b1ed6-4f7c-4f0a-9a25-3f6f4dc0a003",
      "taken_at": "2025-11-04T09:00:00.000000Z",
      "state": "active",
      "reason": "",
      "labels": {},
      "scheduled": false,
      "group": null
    }
  ],
  "epoch": 7,
  "in_use": null,
  "restoring": "0f0b1ed6-4f7c-4f0a-9a25-3f6f4dc0a003",
  "format": 1
}
"""


@pytest.fixture
def older(tmp_path: Path) -> Path:
    (tmp_path / "volume.json").write_text(OLDER)
    return tmp_path


def change(directory: Path, key: str, value: object) -> None:
    fields = json.loads((directory / "volume.json").read_text())
    fields[key] = value
    (directory / "volume.json").write_text(json.dumps(fields))


def test_manifest_of_an_older_version_is_read(older: Path) -> None:
    record = manifest.load(older)
    assert (record.name, record.size, record.epoch) == ("vol0", 1 << 30, 7)
    assert record.durability is Durability.POWER_LOSS
    monday, tuesday = record.snapshots
    assert (monday.state, monday.labels, monday.scheduled) == (SnapshotState.DELETING, {"by": "cron"}, True)
    assert (tuesday.name, tuesday.state) == ("tuesday", SnapshotState.ACTIVE)
    assert record.restoring == tuesday.uuid


def test_stored_manifest_is_read_back_and_has_no_empty_reason(older: Path) -> None:
    record = manifest.load(older)
    manifest.store(older, record)
    assert manifest.load(older) == record
    assert "reason" not in json.loads((older / "volume.json").read_text())["snapshots"][0]


def test_missing_manifest_says_that_there_is_no_volume(tmp_path: Path) -> None:
    assert not manifest.exists(tmp_path)
    with pytest.raises(ManifestError, match="there is no volume here"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            "format",
            5,
            "format: it was made by a newer wolun.*: it has format 5.*formats up to 4; start the newer version",
        ),
        ("colour", "red", "colour"),
        ("chunk_size", 65537, "power of two"),
        ("block_size", 1024, "must be 512 or 4096"),
        ("size", 1000, "not a multiple"),
        ("restoring", str(uuid.uuid4()), "is not there"),
        ("name", "a/b", "a name is"),
    ],
)
def test_wrong_field_is_named(older: Path, key: str, value: object, match: str) -> None:
    change(older, key, value)
    with pytest.raises(ManifestError, match=match):
        manifest.load(older)


def test_two_snapshots_of_one_name_are_refused(older: Path) -> None:
    record = manifest.load(older)
    twin = dataclasses.replace(record.snapshots[0], name="tuesday")
    with pytest.raises(ValueError, match="the same name") as error:
        dataclasses.replace(record, snapshots=(twin, record.snapshots[1]))
    assert "the same name" in manifest.first_problem(error.value)


def test_prepared_manifest_is_not_in_force_before_commit(older: Path) -> None:
    record = manifest.load(older)
    changed = dataclasses.replace(record, epoch=8)
    manifest.prepare(older, changed)
    assert manifest.load(older) == record
    manifest.commit(older)
    assert manifest.load(older) == changed


def test_snapshot_of_a_group_that_was_not_taken_is_removed(older: Path) -> None:
    group = uuid.uuid4()
    record = dataclasses.replace(manifest.load(older), restoring=None)
    taken = dataclasses.replace(record.snapshots[1], group=group)
    grouped: Manifest = dataclasses.replace(record, snapshots=(record.snapshots[0], taken))
    assert [snapshot.name for snapshot in manifest.without_groups(older, grouped).snapshots] == ["monday"]
    path = manifest.group_path(older, group)
    path.parent.mkdir()
    path.touch()
    kept = manifest.without_groups(older, grouped).snapshots
    assert [(snapshot.name, snapshot.group) for snapshot in kept] == [("monday", None), ("tuesday", None)]


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [("a b", "x", "no key"), ("k", "x" * 257, "256 printable"), ("k", "a\nb", "printable"), ("k", "x" * 256, "")],
)
def test_bad_label_is_described(key: str, value: str, match: str) -> None:
    problem = manifest.bad_label(key, value)
    assert match in problem
    assert bool(problem) is bool(match)
