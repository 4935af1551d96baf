# SPDX-License-Identifier: Apache-2.0
"""Taking snapshots: their views, a snapshot that cannot be recorded, names and labels."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lun_backends.files import storage_io
from lun_backends.volumes import doubt, errors, volume
from lun_backends.volumes.manifest import SnapshotState
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block, read, reopen


def test_view_shows_the_moment_of_its_snapshot(made: volume.Volume) -> None:
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


def test_each_view_shows_its_own_moment_before_and_after_reopening(made: volume.Volume) -> None:
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


@pytest.mark.parametrize("step", ["exchange", "fsync_directory", "fdatasync", "open"])
@pytest.mark.parametrize("for_ever", [False, True])
def test_snapshot_that_cannot_be_recorded_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, for_ever: bool
) -> None:
    # After syncs that always failed, the next write decides which manifest is in force.
    monkeypatch.setattr(doubt, "PATIENCE", 0.0)

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
    def hold() -> Iterator[None]:  # every call before the barrier works
        with original():
            io.armed = 1000 if for_ever else 1
            yield

    made.device.hold = hold  # type: ignore[method-assign]
    try:
        if step in ("exchange", "fsync_directory", "fdatasync"):
            with pytest.raises(errors.SnapshotFailed):
                made.create_snapshot("bad")
        else:
            made.create_snapshot("fine")  # no file is opened inside the barrier
    finally:
        io.armed = 0
    made.device.writev(0, block(2, 2 * CHUNK))
    assert read(made.snapshot("good").view) == before
    opened = reopen(made)
    assert read(opened.snapshot("good").view) == before
    assert all(snapshot.state is SnapshotState.INVALID for snapshot in opened.snapshots if snapshot.name == "bad")
    opened.close()


def test_bad_name_and_name_in_use_are_refused(made: volume.Volume) -> None:
    made.create_snapshot("a")
    with pytest.raises(errors.SnapshotExists, match="a"):
        made.create_snapshot("a")
    for bad in ("", "-a", "a b", "a@b", "a/b", "..", "é", "x" * 65, "a\n"):
        with pytest.raises(errors.BadName):
            made.create_snapshot(bad)
    with pytest.raises(errors.NoSuchSnapshot, match="there are: a"):
        made.delete_snapshot("b")


@pytest.mark.parametrize(
    "labels", [{"": "x"}, {"a b": "x"}, {"a": "x" * 257}, {"a": "x\ny"}, {f"k{n}": "" for n in range(65)}]
)
def test_bad_label_is_refused(made: volume.Volume, labels: dict[str, str]) -> None:
    with pytest.raises(errors.BadLabel):
        made.create_snapshot("a", labels)
    assert made.snapshots == ()
    made.create_snapshot("a")
    with pytest.raises(errors.BadLabel):
        made.label_snapshot("a", labels)
    assert made.snapshot("a").labels == {}
