# SPDX-License-Identifier: Apache-2.0
"""The public face of a volume: changed map, labels, size."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.backups import pieces
from lun_backends.volumes import errors, volume
from tests.lun_backends import store_factory
from tests.lun_backends.volumes import history
from tests.lun_backends.volumes.history import History
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block, read, reopen


def test_export_has_the_moment_and_its_holes(made: volume.Volume) -> None:
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


def test_changed_map_shows_the_fraction_of_each_part(made: volume.Volume) -> None:
    made.create_snapshot("a")
    made.device.writev(0, block(1, 8 * CHUNK))
    made.create_snapshot("b")
    made.device.writev(8 * CHUNK, block(1, CHUNK))
    assert made.changed_map("a", 8)[:3] == [1.0, 1 / 8, 0.0]
    assert made.changed_map("b", 8)[:3] == [0.0, 1 / 8, 0.0]
    assert len(made.changed_map("b", 100)) == 100


def test_labels_are_set_removed_and_read_back(made: volume.Volume) -> None:
    made.create_snapshot("a", {"purpose": "backup", "ticket": "4711"})
    made.create_snapshot("b", scheduled=True)
    made.label_snapshot("a", {"ticket": None, "owner": "ada l.", "none": None})
    made.label_snapshot("b", {"x": ""})
    again = reopen(made)
    assert again.snapshot("a").labels == {"purpose": "backup", "owner": "ada l."}
    assert again.snapshot("b").labels == {"x": ""}
    assert [snapshot.scheduled for snapshot in again.snapshots] == [False, True]
    again.delete_snapshot("a")
    assert again.snapshot("b").labels == {"x": ""}
    again.close()


@pytest.fixture
def past(tmp_path: Path) -> Iterator[History]:
    opened = History(tmp_path)
    yield opened
    opened.volume.close()


def test_volume_grows_and_snapshots_keep_their_size(past: History) -> None:
    now = history.read(past.volume.device)
    with pytest.raises(errors.ResizeRefused, match="shrink"):
        past.volume.resize(history.SIZE - history.BLOCK)
    with pytest.raises(errors.ResizeRefused, match="whole number"):
        past.volume.resize(history.SIZE + 1)
    past.volume.resize(history.SIZE)
    past.volume.resize(history.SIZE + 100 * history.CHUNK)
    now += bytes(100 * history.CHUNK)
    past.check(now)
    history.fill(
        past.volume.device, 1, history.SIZE, 3 * history.CHUNK
    )  # partly in the chunk of which the snapshots have a part
    past.volume.device.writev(history.SIZE + 90 * history.CHUNK, [memoryview(bytes(history.BLOCK))])
    now = history.read(past.volume.device)
    past.check(now)
    past.reopen()
    assert past.volume.device.size == history.SIZE + 100 * history.CHUNK
    past.check(now)
    history.fill(past.volume.device, 2, 0, past.volume.device.size)
    past.check()


def test_device_that_is_too_small_is_not_grown(past: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past.volume.primary, "_is_file", False)
    with pytest.raises(errors.ResizeRefused, match="enlarge the device first"):
        past.volume.resize(history.SIZE + history.CHUNK)
    assert past.volume.device.size == history.SIZE


def test_size_that_cannot_be_recorded_is_not_used(tmp_path: Path) -> None:
    io = store_factory.FaultyIO()
    past = History(tmp_path, io)
    now = history.read(past.volume.device)
    io.fail("pwritev", errno.ENOSPC)
    with pytest.raises(errors.ResizeRefused):
        past.volume.resize(history.SIZE + history.CHUNK)
    io.before.clear()
    assert past.volume.device.size == history.SIZE
    past.check(now)
    past.reopen()
    past.check(now)
    past.volume.close()


def test_trimming_a_thin_volume_costs_what_it_has_and_no_more(tmp_path: Path) -> None:
    """A sparse volume of 1 TiB with a snapshot and 2 MiB of data is trimmed as a whole."""
    size, step = 1 << 40, 64 << 20
    made = volume.Volume.create(tmp_path / "state", "vol0", tmp_path / "disk.img", size=size)
    data = random.Random(3).randbytes(1 << 20)
    places = (0, size - len(data))
    for place in places:
        made.device.writev(place, [memoryview(data)])
    taken = made.create_snapshot("before")
    for offset in range(0, size, step):
        made.device.write_zeroes(offset, step, discard=True)
    assert taken.preserved_bytes == 2 * len(data)
    assert taken.used_bytes < 3 << 20
    for place in places:
        assert read(made.device, place, len(data)) == bytes(len(data))
        assert read(taken.view, place, len(data)) == data
    assert read(taken.view, size // 2, 4096) == bytes(4096)
    made.close()
