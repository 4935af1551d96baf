# SPDX-License-Identifier: Apache-2.0
"""Requests for snapshots: served when taken, all or none of a group, and withdrawn when deleted."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import pytest

from lun_backends.files import small_file
from lun_backends.volumes import deleting, taking
from lun_backends.volumes.state import State
from target.service import problems
from target.service.service import Service
from tests.target.service.conftest import IQN

CHUNK = 64 << 10


def write(service: Service, offset: int, fill: int = 7) -> None:
    service.inventory.own_volume("vol0").device.writev(offset, [memoryview(bytes([fill]) * 512)])


def test_snapshot_is_served_when_it_is_taken(service: Service) -> None:
    taken = service.snapshots.create_snapshot("vol0", "a", {"why": "test"})
    assert (taken.view_lun, taken.write_once_lun) == (2, None)
    assert set(service.inventory.scsi.luns) == {0, 1, 2}
    assert taken.view_url == f"iscsi://{service.inventory.portal_address}/{IQN}/{taken.view_lun}"
    assert (taken.labels, taken.scheduled) == ({"why": "test"}, False)
    details = service.snapshots.show_snapshot("vol0", "a")
    assert (details.uuid, details.chunk_size) == (taken.uuid, CHUNK)


def test_group_is_taken_of_all_volumes_or_of_none(service: Service) -> None:
    service.snapshots.create_snapshot("vol1", "taken")
    with pytest.raises(problems.Problem, match="the group taken was not taken"):
        service.snapshots.create_group("taken", ["vol0", "vol1"])
    assert list(service.snapshots.list_snapshots("vol0")) == []
    assert [snapshot.volume for snapshot in service.snapshots.create_group("g", ["vol0", "vol1"])] == ["vol0", "vol1"]
    assert [(snapshot.volume, snapshot.name) for snapshot in service.snapshots.list_snapshots()] == [
        ("vol0", "g"),
        ("vol1", "taken"),
        ("vol1", "g"),
    ]


def test_snapshot_that_cannot_be_served_is_not_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the LUN numbers of the group's second snapshot are stored."""
    replace, calls = small_file.replace, []

    def full(*args: object, **options: object) -> None:
        if "luns.json" in str(args[0]):
            calls.append(args[0])
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "full")
        replace(*args, **options)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(small_file, "replace", full)
    with pytest.raises(problems.Problem, match=r"luns\.json cannot be written: No space left"):
        service.snapshots.create_group("g", ["vol0", "vol1"])
    assert list(service.snapshots.list_snapshots()) == []
    assert set(service.inventory.scsi.luns) == {0, 1}
    assert service.snapshots.create_snapshot("vol0", "a").view_lun not in (0, 1)


def test_refusal_of_a_group_names_the_volume(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.snapshots.create_snapshot("vol1", "g")
    with pytest.raises(problems.Problem, match="the group g was not taken: volume vol1: there is a snapshot 'g'"):
        service.snapshots.create_group("g", ["vol0", "vol1"])
    for step, broken in itertools.product(("begin", "prepare", "commit"), ("vol0", "vol1")):
        genuine = getattr(taking, step)

        def failing(state: State, *arguments: Any, genuine: Any = genuine, broken: str = broken, **options: Any) -> Any:
            if state.name == broken:
                raise OSError(errno.EIO, "Input/output error")
            return genuine(state, *arguments, **options)

        with monkeypatch.context() as patching:
            patching.setattr(taking, step, failing)
            named = rf"the group h was not taken: volume {broken}: .*Input/output error"
            with pytest.raises(problems.Problem, match=named):
                service.snapshots.create_group("h", ["vol0", "vol1"])
    with pytest.raises(problems.Problem, match="each once"):
        service.snapshots.create_group("h", ["vol0", "vol0"])
    assert len(service.snapshots.create_group("h", ["vol0", "vol1"])) == 2


def test_labels_are_set_and_removed(service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "a", {"x": "1", "y": "2"})
    assert service.snapshots.label_snapshot("vol0", "a", {"x": None, "z": "3"}).labels == {"y": "2", "z": "3"}
    with pytest.raises(problems.Problem, match="the labels of vol0@a were not changed"):
        service.snapshots.label_snapshot("vol0", "a", {"": "1"})


def test_changes_are_counted_in_cells(service: Service) -> None:
    service.snapshots.create_snapshot("vol0", "a")
    assert service.snapshots.changes("vol0", "a", 4).changed_bytes == 0
    write(service, 0)
    write(service, 15 * CHUNK)
    changes = service.snapshots.changes("vol0", "a", 4)
    assert (changes.changed_bytes, changes.cells) == (2 * 4096, (0.0156, 0.0, 0.0, 0.0156))  # of 64 grains each
    assert len(service.snapshots.changes("vol0", "a", 1000).cells) == 256  # no cell is smaller than a grain


def test_luns_of_a_deleted_snapshot_go_and_rest(service: Service) -> None:
    taken = service.snapshots.create_snapshot("vol0", "a")
    job = service.snapshots.delete_snapshot("vol0", "a")
    assert job.wait(60)
    job.check()
    assert set(service.inventory.scsi.luns) == {0, 1}
    assert service.snapshots.create_snapshot("vol0", "b").view_lun not in (None, taken.view_lun)
    with pytest.raises(problems.Problem, match="vol0 has no snapshot a"):
        service.snapshots.delete_snapshot("vol0", "a")


def test_snapshot_whose_deletion_fails_is_served_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = service.snapshots.create_snapshot("vol0", "a")

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "for a test")

    monkeypatch.setattr(service.inventory.own_volume("vol0"), "delete_snapshot", fail)
    job = service.snapshots.delete_snapshot("vol0", "a")
    assert job.wait(60)
    with pytest.raises(problems.Problem, match="vol0@a was not deleted"):
        job.check()
    assert (taken.view_lun, taken.write_once_lun) == (2, None)
    assert set(service.inventory.scsi.luns) == {0, 1, 2}


def test_request_for_a_snapshot_does_not_reach_its_namesake(service: Service) -> None:
    """Two deletions and a rollback wait for each other; meanwhile a new snapshot gets the name."""
    owner = service.inventory.own_volume("vol0")
    for snapshot_name in ("a", "b"):
        service.snapshots.create_snapshot("vol0", snapshot_name)
    with owner.state.reshaping:
        asked = [
            service.snapshots.delete_snapshot("vol0", "b"),
            service.reshaping.restore("vol0", "b", force=True),
            service.snapshots.delete_snapshot("vol0", "b"),
        ]
        with owner.state.changing:
            deleting.forget(owner.state, owner.snapshot("b"))
        service.snapshots.create_snapshot("vol0", "b")
    assert [job.message().state for job in asked if job.wait(30)] == ["failed"] * 3
    assert [snapshot.name for snapshot in owner.snapshots] == ["a", "b"]
    assert owner.rolling_back_to is None
