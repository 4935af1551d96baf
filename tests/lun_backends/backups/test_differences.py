# SPDX-License-Identifier: Apache-2.0
"""The changes between two moments: none is left out, whatever was written, snapshotted or deleted in between."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.backups import differences
from lun_backends.tracking import GRAIN
from lun_backends.volumes import errors, volume

CHUNK = 8192
SIZE = 40 * CHUNK + 512


@pytest.fixture
def made(tmp_path: Path) -> Iterator[volume.Volume]:
    opened = volume.Volume.create(tmp_path / "state", "vol0", tmp_path / "disk.img", size=SIZE, chunk_size=CHUNK)
    yield opened
    opened.close()


def content(device: block_device.BlockDevice) -> bytes:
    data = bytearray(device.size)
    device.readv(0, [memoryview(data)])
    return bytes(data)


def write(owner: volume.Volume, offset: int, length: int, fill: int) -> None:
    owner.device.writev(offset, [memoryview(bytes([fill]) * length)])


def test_changes_between_two_snapshots_and_to_now(made: volume.Volume) -> None:
    made.create_snapshot("a")
    write(made, 3 * CHUNK + 512, 512, 1)
    write(made, 4 * CHUNK, CHUNK, 1)
    made.create_snapshot("b")
    write(made, 4 * CHUNK, CHUNK, 2)
    write(made, SIZE - 512, 512, 2)
    made.create_snapshot("c")
    write(made, 0, 512, 3)
    assert differences.changed(made, "a", "b") == [(3 * CHUNK, GRAIN), (4 * CHUNK, CHUNK)]
    assert differences.changed(made, "b", "c") == [(4 * CHUNK, CHUNK), (40 * CHUNK, 512)]
    assert differences.changed(made, "a", "c") == [(3 * CHUNK, GRAIN), (4 * CHUNK, CHUNK), (40 * CHUNK, 512)]
    assert differences.changed(made, "c", None) == [(0, GRAIN)]
    assert differences.changed(made, "a", None) == [
        (0, GRAIN),
        (3 * CHUNK, GRAIN),
        (4 * CHUNK, CHUNK),
        (40 * CHUNK, 512),
    ]
    assert differences.changed(made, "b", "b") == []
    with pytest.raises(differences.WrongOrder, match="'a' is older than 'b'"):
        differences.changed(made, "b", "a")
    with pytest.raises(errors.NoSuchSnapshot):
        differences.changed(made, "a", "z")


def exact(owner: volume.Volume, since: str, to: str | None) -> list[differences.Range]:
    old = owner.snapshot(since).view
    new = owner.device if to is None else owner.snapshot(to).view
    ranges = differences.changed(owner, since, to)
    different = []
    compared = 0
    for length, part in differences.differing(old, new, ranges):
        compared += length
        different += part
    assert compared == sum(length for _, length in ranges)
    return differences.merged(different)


def test_differing_reports_exactly_the_bytes_that_differ(made: volume.Volume) -> None:
    made.create_snapshot("a")
    write(made, 3 * CHUNK + 512, 512, 1)
    write(made, 5 * CHUNK - 512, 1024, 1)  # ends one chunk, begins the next
    write(made, 8 * CHUNK, CHUNK, 0)  # zeroes over zeroes
    write(made, SIZE - 512, 512, 1)
    assert exact(made, "a", None) == [(3 * CHUNK, 4096), (5 * CHUNK - 4096, 2 * 4096), (SIZE - 512, 512)]


@pytest.mark.parametrize("seed", range(12))
def test_no_change_is_left_out(made: volume.Volume, seed: int) -> None:
    dice = random.Random(seed)
    moments: dict[str, bytes] = {}
    for step in range(60):
        choice = dice.random()
        if choice < 0.7:
            offset = dice.randrange(SIZE // 512) * 512
            write(made, offset, min(dice.choice((512, CHUNK, 3 * CHUNK)), SIZE - offset), dice.randrange(3))
        elif choice < 0.9:
            name = f"s{step}"
            made.create_snapshot(name)
            moments[name] = content(made.device)
        elif moments:
            gone = dice.choice(list(moments))
            made.delete_snapshot(gone)
            del moments[gone]
    names: list[str | None] = [*moments, None]
    now = content(made.device)
    for first, since in enumerate(names[:-1]):
        assert since is not None
        for to in names[first:]:
            old, new = moments[since], now if to is None else moments[to]
            changed = differences.changed(made, since, to)
            apart = {at // 4096 for at in range(0, SIZE, 512) if old[at : at + 512] != new[at : at + 512]}
            covered = {grain for at, length in changed for grain in range(at // 4096, -(-(at + length) // 4096))}
            assert apart <= covered
            assert all(length > 0 for _, length in changed)
            assert all(sum(one) < other[0] for one, other in itertools.pairwise(changed))
            assert {
                grain for at, length in exact(made, since, to) for grain in range(at // 4096, -(-(at + length) // 4096))
            } == apart


def test_growth_of_the_volume_counts_as_changed(made: volume.Volume) -> None:
    made.create_snapshot("a")
    made.create_snapshot("b")
    view = made.snapshot("a").view
    view.size -= 3 * CHUNK  # as if the volume had been resized in between
    ranges = differences.changed(made, "a", "b")
    assert ranges == [(37 * CHUNK, 3 * CHUNK + 512)]
    (compared,) = differences.differing(view, made.snapshot("b").view, ranges)
    assert compared == (3 * CHUNK + 512, [(37 * CHUNK + 512, 3 * CHUNK)])
    view.size += 3 * CHUNK
