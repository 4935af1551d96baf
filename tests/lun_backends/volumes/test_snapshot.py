# SPDX-License-Identifier: Apache-2.0
"""The state, the reasons and the sizes that a snapshot shows."""

from __future__ import annotations

import dataclasses

import pytest

from lun_backends import lost_device
from lun_backends.volumes import volume
from lun_backends.volumes.manifest import SnapshotState
from lun_backends.volumes.snapshot import Snapshot
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block


@pytest.fixture
def snapshot(made: volume.Volume) -> Snapshot:
    return made.create_snapshot("a")


def unreachable(snapshot: Snapshot, *, recorded: bool) -> Snapshot:
    """Return the snapshot as an open makes it when its files cannot be opened."""
    device = lost_device.LostDevice(SIZE, 512, "its map is damaged", recorded=recorded)
    return dataclasses.replace(snapshot, write_once=device)


def test_a_fresh_snapshot_is_active_and_readable(snapshot: Snapshot) -> None:
    assert snapshot.state is SnapshotState.ACTIVE
    assert (snapshot.is_invalid, snapshot.invalid_reason, snapshot.unreadable) == (False, "", "")
    assert not snapshot.invalid_on_disk


def test_its_sizes_count_preserved_chunks(made: volume.Volume, snapshot: Snapshot) -> None:
    assert (snapshot.preserved_bytes, snapshot.used_bytes > 0) == (0, True)
    empty = snapshot.used_bytes
    made.device.writev(0, block(1))
    assert snapshot.preserved_bytes == CHUNK
    assert snapshot.used_bytes >= empty + CHUNK


def test_an_invalidated_snapshot_says_why(snapshot: Snapshot) -> None:
    assert not isinstance(snapshot.write_once, lost_device.LostDevice)
    snapshot.write_once.invalidate("no space is left")
    assert snapshot.state is SnapshotState.INVALID
    assert (snapshot.invalid_reason, snapshot.unreadable) == ("no space is left", "no space is left")
    assert snapshot.invalid_on_disk


@pytest.mark.parametrize("recorded", [False, True])
def test_only_a_recorded_loss_is_for_good(snapshot: Snapshot, recorded: bool) -> None:
    lost = unreachable(snapshot, recorded=recorded)
    assert lost.state is SnapshotState.INVALID
    assert lost.invalid_reason == "its map is damaged"
    assert lost.invalid_on_disk is recorded
    assert (lost.used_bytes, lost.preserved_bytes) == (0, 0)


def test_a_snapshot_in_deletion_is_deleting_even_if_it_is_invalid(snapshot: Snapshot) -> None:
    for deleted in (snapshot, unreachable(snapshot, recorded=True)):
        deleted.deleting = True
        assert deleted.state is SnapshotState.DELETING
        assert deleted.unreadable == "it is being deleted"
