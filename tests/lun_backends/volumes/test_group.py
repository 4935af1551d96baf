# SPDX-License-Identifier: Apache-2.0
"""Groups of snapshots: all of one moment, and all or none, wherever the taking is interrupted."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lun_backends import block_device
from lun_backends.durability import Durability
from lun_backends.files import storage_io
from lun_backends.volumes import errors, group, manifest, volume

CHUNK = 4096
SIZE = 16 * CHUNK
NAMES = ("v0", "v1")


class Crash(BaseException):
    """The end of the process."""


class Dying(storage_io.StorageIO):
    """A `StorageIO` that ends the process, or fails once with EIO, at one call that changes a file: `left` calls from now."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.crashes = True

    def _step(self) -> None:
        if self.left is None:
            return
        if self.left == 0 and not self.crashes:
            self.left = None
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.left <= 0:
            raise Crash
        self.left -= 1


def _stepping(name: str) -> Any:
    def call(self: Dying, *arguments: Any) -> Any:
        self._step()
        return getattr(storage_io.StorageIO, name)(self, *arguments)

    return call


for _name in (
    "open",
    "pwritev",
    "ftruncate",
    "fdatasync",
    "sync_map",
    "rename",
    "unlink",
    "fsync_directory",
    "reserve",
):
    setattr(Dying, _name, _stepping(_name))


def read(device: block_device.BlockDevice, offset: int = 0, length: int = SIZE) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


def fill(device: block_device.BlockDevice, byte: int) -> None:
    device.writev(0, [memoryview(bytes([byte]) * SIZE)])


def create(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> list[volume.Volume]:
    made = [
        volume.Volume.create(
            path / name,
            name,
            path / f"{name}.img",
            size=SIZE,
            chunk_size=CHUNK,
            durability=Durability.PROCESS_CRASH,
            io=io,
        )
        for name in NAMES
    ]
    for number, owner in enumerate(made):
        owner.create_snapshot("before")
        fill(owner.device, number + 1)
    return made


def reopen(path: Path, made: Sequence[volume.Volume]) -> list[volume.Volume]:
    for owner in made:
        owner.close()
    return [volume.Volume.open(path / name) for name in NAMES]


def dies(path: Path, at: int) -> bool:
    """Take a group in a process that ends at call number `at`.  Return whether the group was complete before that call."""
    child = os.fork()
    if not child:  # os._exit: nothing is closed, nothing is cleaned up
        status = 2
        try:
            io = Dying()
            made = create(path, io)
            io.left = at
            group.create(made, "tonight", io=io)
            status = 0
        except Crash:
            status = 1
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


def test_all_snapshots_or_none_are_taken_wherever_the_process_ends(tmp_path: Path) -> None:
    outcomes = []
    at = 0
    while True:
        path = tmp_path / str(at)
        path.mkdir()
        ended = dies(path, at)
        made = [volume.Volume.open(path / name) for name in NAMES]
        there = {len(owner.snapshots) for owner in made}
        assert there in ({1}, {2}), at
        outcomes.append(there == {2})
        group.sweep(path)
        assert list((path / ".groups").glob("*")) == []
        for number, owner in enumerate(made):
            if there == {2}:
                assert read(owner.snapshot("tonight").view) == bytes([number + 1]) * SIZE
            fill(owner.device, 9)
            assert read(owner.snapshot("before").view) == bytes(SIZE)
            if there == {2}:
                assert read(owner.snapshot("tonight").view) == bytes([number + 1]) * SIZE
            files = {file.stem for file in (path / owner.name / "snapshots").iterdir()}
            assert files == {str(snapshot.uuid) for snapshot in owner.snapshots}
            assert all(record.group is None for record in manifest.load(owner.directory).snapshots)
            owner.close()
        if ended:
            break
        at += 1
    assert outcomes == sorted(outcomes)  # none up to a point, then all
    assert outcomes[0] is False
    assert outcomes[-1] is True


def test_a_failed_step_leaves_no_snapshot(tmp_path: Path) -> None:
    at = 0
    while True:
        path = tmp_path / str(at)
        path.mkdir()
        io = Dying()
        io.crashes = False
        made = create(path, io)
        io.left = at
        try:
            taken = group.create(made, "tonight", io=io)
        except errors.VolumeError:
            taken = []
        done = io.left is not None
        io.left = None
        for turn in range(2):
            assert {len(owner.snapshots) for owner in made} == {2 if taken else 1}, at
            for owner in made:
                assert owner.create_snapshot(f"later{turn}").state is manifest.SnapshotState.ACTIVE
                owner.delete_snapshot(f"later{turn}")
            made = reopen(path, made)
        for owner in made:
            fill(owner.device, 9)
            assert read(owner.snapshot("before").view) == bytes(SIZE)
            owner.close()
        if done:
            break
        at += 1
    assert at > 10


def test_all_snapshots_of_a_group_show_one_moment(tmp_path: Path) -> None:
    """A writer counts up in one volume and then in the next: at every moment, the first is the second or one more."""
    made = create(tmp_path)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for owner in made:
                owner.device.writev(0, [memoryview(struct.pack("<Q", number) * 64)])

    thread = threading.Thread(target=write)
    for owner in made:
        owner.device.writev(0, [memoryview(bytes(512))])
    thread.start()
    try:
        for turn in range(15):
            taken = group.create(made[::-1] if turn % 2 else made, f"s{turn}")
            seen = [struct.unpack("<Q", read(snapshot.view, 0, 8 * 64)[:8])[0] for snapshot in taken]
            seen = seen[::-1] if turn % 2 else seen
            assert sorted(seen, reverse=True) == seen
            assert seen[0] - seen[-1] in (0, 1)
            assert all(snapshot.held_seconds for snapshot in taken)
    finally:
        stop.set()
        thread.join()
    for owner in made:
        owner.close()


def test_a_name_that_one_volume_uses_already_is_refused_for_all(tmp_path: Path) -> None:
    made = create(tmp_path)
    made[1].create_snapshot("tonight")
    with pytest.raises(errors.SnapshotExists):
        group.create(made, "tonight")
    assert [len(owner.snapshots) for owner in made] == [1, 2]
    for wrong in ([], [made[0], made[0]]):
        with pytest.raises(errors.VolumeError):
            group.create(wrong, "x")
    elsewhere = volume.Volume.create(tmp_path / "d" / "v", "v", tmp_path / "v.img", size=SIZE, chunk_size=CHUNK)
    with pytest.raises(errors.VolumeError, match="one place"):
        group.create([made[0], elsewhere], "x")
    for owner in (*made, elsewhere):
        owner.close()
