# SPDX-License-Identifier: Apache-2.0
"""The shared state of an open volume: its manifest, its refusals, and the snapshot that pre-images go to."""

from __future__ import annotations

import dataclasses
import errno
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.durability import Durability
from lun_backends.volumes import errors, manifest, volume
from lun_backends.volumes.state import State
from tests.faults.storage import FaultyIO
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block


@pytest.fixture
def io() -> FaultyIO:
    return FaultyIO()


@pytest.fixture
def owner(tmp_path: Path, io: FaultyIO) -> Iterator[volume.Volume]:
    opened = volume.Volume.create(tmp_path / "state", "vol0", tmp_path / "disk", size=SIZE, chunk_size=CHUNK, io=io)
    yield opened
    io.heal()
    opened.close()


@pytest.fixture
def state(owner: volume.Volume) -> State:
    owner.create_snapshot("a")
    owner.create_snapshot("b")
    return owner.state


def renamed(record: manifest.Manifest) -> manifest.Manifest:
    return dataclasses.replace(record, name="other")


class TestManifest:
    """The manifest in force is the one on disk."""

    def test_a_stored_manifest_is_in_force(self, state: State) -> None:
        new = renamed(state.manifest)
        state.store(new)
        assert state.manifest == new == manifest.load(state.directory)

    def test_a_manifest_that_was_not_stored_is_not_in_force(self, state: State, io: FaultyIO) -> None:
        old = state.manifest
        io.fail("rename", path="volume.json")
        with pytest.raises(OSError, match="Input/output error"):
            state.store_or_not(renamed(old))
        assert state.manifest == old == manifest.load(state.directory)

    def test_the_old_manifest_is_put_back_where_the_new_one_may_be_durable(self, state: State, io: FaultyIO) -> None:
        old = state.manifest
        io.fail("fsync_directory", path=state.directory.name, times=1)  # after the rename
        with pytest.raises(OSError, match="Input/output error"):
            state.store_or_not(renamed(old))
        assert state.manifest == old == manifest.load(state.directory)

    def test_a_changed_record_replaces_the_one_of_its_snapshot_only(self, state: State) -> None:
        first, second = state.manifest.snapshots
        changed = dataclasses.replace(state.record_of(state.snapshot("b")), labels={"owner": "ada"})
        assert changed.uuid == second.uuid
        assert state.with_record(changed).snapshots == (first, changed)


class TestRefusals:
    """Requests that have to wait, or that cannot be carried out, are refused with a reason."""

    def test_a_closed_volume_refuses(self, owner: volume.Volume, state: State) -> None:
        state.check_open()
        owner.close()
        with pytest.raises(block_device.DeviceClosed):
            state.check_open()

    def test_a_rollback_under_way_is_named(self, owner: volume.Volume, state: State) -> None:
        state.check_not_rolling_back()
        owner.begin_rollback("a")
        with pytest.raises(errors.RollbackUnderWay, match="rolled back to 'a'"):
            state.check_not_rolling_back()
        owner.continue_rollback()
        state.check_not_rolling_back()

    def test_changes_are_refused_until_the_manifest_can_be_stored(self, state: State, io: FaultyIO) -> None:
        with state.device.hold():
            state.doubt.begin("the rollback may be durable")
        io.fail("rename", errno.EROFS, path="volume.json")
        with pytest.raises(errors.VolumeError, match="the rollback may be durable"):
            state.check_recorded()
        io.heal()
        state.check_recorded()
        assert not state.doubt.reason

    def test_a_snapshot_that_does_not_exist_is_refused_with_those_that_do(self, state: State) -> None:
        assert state.snapshot("a", state.snapshots[0].uuid) is state.snapshots[0]
        with pytest.raises(errors.NoSuchSnapshot, match="there are: a, b"):
            state.snapshot("c")

    def test_a_later_snapshot_of_the_same_name_does_not_count(self, state: State) -> None:
        with pytest.raises(errors.NoSuchSnapshot):
            state.snapshot("a", uuid.uuid4())


class TestArming:
    """Pre-images go to the newest active snapshot."""

    def test_the_newest_snapshot_is_the_newest_active_one(self, state: State) -> None:
        assert state.newest_active() is state.snapshots[1]

    def test_a_snapshot_in_deletion_is_passed_over(self, state: State) -> None:
        state.snapshots[1].deleting = True
        assert state.newest_active() is state.snapshots[0]

    def test_a_snapshot_that_is_invalid_on_disk_takes_the_older_ones_with_it(self, state: State) -> None:
        state.enforcer.invalidate(state.snapshots[1], "no space is left")
        assert state.newest_active() is None

    def test_arming_without_an_active_snapshot_ends_copy_on_write(self, state: State) -> None:
        state.enforcer.invalidate(state.snapshots[1], "no space is left")
        with state.device.hold():
            state.arm(state.moving_tracker(()))
        assert state.device.tracker is None

    def test_only_whole_chunks_of_a_snapshot_in_deletion_need_no_copy(self, owner: volume.Volume, state: State) -> None:
        newest = state.snapshots[1].write_once
        owner.device.writev(0, block(1))  # copy-on-write preserves the whole chunk
        newest.writev(4 * CHUNK, block(2))  # a part of a chunk, written by hand
        owner.device.writev(SIZE - 512, block(3))  # the last chunk is one block
        tracker = state.moving_tracker(state.snapshots[1:])
        assert list(tracker) == [0, SIZE // CHUNK]


class TestDurability:
    """A rollback is durable whatever the durability of the volume is."""

    def test_pre_images_are_synced_during_a_rollback(self, tmp_path: Path) -> None:
        opened = volume.Volume.create(
            tmp_path / "v", "v", tmp_path / "p", size=SIZE, chunk_size=CHUNK, durability=Durability.PROCESS_CRASH
        )
        opened.create_snapshot("a")
        assert not opened.state.synced
        opened.begin_rollback("a")
        assert opened.state.synced
        opened.continue_rollback()
        assert not opened.state.synced
        opened.close()

    def test_durability_is_set_in_every_snapshot_but_the_invalid(self, state: State) -> None:
        state.enforcer.invalidate(state.snapshots[0], "no space is left")
        state.set_durability(Durability.PROCESS_CRASH)
        older, newest = (snapshot.write_once for snapshot in state.snapshots)
        assert isinstance(older, write_once.WriteOnce)
        assert isinstance(newest, write_once.WriteOnce)
        assert (older.commits_in_memory, newest.commits_in_memory) == (False, True)

    def test_the_primary_is_flushed_until_a_flush_is_short(self, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
        took = iter((1.0, 0.5, 0.001))
        now = 0.0
        flushes = 0

        def flush() -> None:
            nonlocal now, flushes
            now += next(took)
            flushes += 1

        monkeypatch.setattr(state.primary, "flush", flush)
        monkeypatch.setattr("time.perf_counter", lambda: now)
        state.flush_ahead()
        assert flushes == 3


class TestFiles:
    """Files that no manifest names are removed, and no others."""

    def test_the_files_of_a_snapshot_carry_its_uuid(self, state: State) -> None:
        identity = uuid.UUID(int=5)
        assert state.path(identity) == state.directory / "snapshots" / str(identity)
        assert state.pending_path(identity).name == f"{identity}.unsettled"

    def test_the_record_of_a_rollback_in_preparation_is_no_leftover(self, state: State) -> None:
        old = state.pending_path(state.snapshots[0].uuid)
        state.preparing = state.pending_path(state.snapshots[1].uuid)
        for path in (old, state.preparing):
            path.write_bytes(b"")
        state.remove_leftovers()
        assert (old.exists(), state.preparing.exists()) == (False, True)

    @pytest.mark.parametrize("suffix", ["map", "chunks", "invalid", "invalid.new", "pending"])
    def test_every_file_of_an_unnamed_snapshot_is_removed(self, state: State, suffix: str) -> None:
        leftover = state.directory / "snapshots" / f"{uuid.uuid4()}.{suffix}"
        leftover.write_bytes(b"")
        kept = [state.path(snapshot.uuid).with_suffix(".map") for snapshot in state.snapshots]
        state.remove_leftovers()
        assert not leftover.exists()
        assert all(path.exists() for path in kept)
