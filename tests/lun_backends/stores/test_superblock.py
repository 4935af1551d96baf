# SPDX-License-Identifier: Apache-2.0
"""The two superblocks of a chunk map: one damaged or old copy is replaced, two are refused."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest

from lun_backends.stores import maps, store_file
from lun_backends.stores.superblock import PAGE, REASON_MAX, State, Superblock
from tests.lun_backends.store_factory import SNAPSHOT, VOLUME, make_map, overwrite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.map"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"block_size": 1024}, "block size"),
        ({"chunk_size": 5000}, "chunk size"),
        ({"size": 700}, "virtual size"),
        ({"size": 0}, "size"),
    ],
)
def test_an_impossible_geometry_is_refused(path: Path, change: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_map(path, **change)
    assert not path.exists()


def packed(**change: object) -> bytes:
    superblock = Superblock(SNAPSHOT, VOLUME, 1 << 20, 512, 4096)
    return dataclasses.replace(superblock, **change).pack()  # type: ignore[arg-type]  # fields by name, some of the wrong type on purpose


@pytest.mark.parametrize(
    ("page", "field"),
    [
        (b"garbage!".ljust(PAGE, b"\0"), "magic"),
        (bytes(PAGE), "magic"),
        (packed()[:8] + struct.pack("<I", 99) + packed()[12:], "format version"),
        (packed()[:20] + b"\xff" + packed()[21:], "superblock CRC"),
        (packed(state=17), "state"),
        (packed(block_size=513), "geometry"),
        (packed(chunk_size=3), "geometry"),
        (packed(size=1), "geometry"),
        (packed(size=1 << 30), "file size"),
    ],
)
def test_damage_in_both_superblocks_is_named_with_a_remedy(path: Path, page: bytes, field: str) -> None:
    make_map(path).close()
    overwrite(path, 0, page)
    overwrite(path, PAGE, page)
    with pytest.raises(store_file.StoreDamaged) as caught:
        maps.open_existing(path)
    assert caught.value.field == field
    assert str(path) in str(caught.value)
    assert caught.value.remedy in str(caught.value)


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_superblock_is_survived_and_repaired(path: Path, copy: int) -> None:
    made = make_map(path)
    made.set_state(State.INVALID, "the disk was full " * 200)
    made.close()
    overwrite(path, copy * PAGE + 30, b"rot")
    opened = maps.open_existing(path)
    assert opened.damaged_superblock == copy
    assert opened.superblock.state is State.INVALID  # the loss of a copy never makes a snapshot valid again
    assert opened.superblock.reason == ("the disk was full " * 200)[:REASON_MAX]
    opened.set_state(State.INVALID, "é" * 2000)
    opened.close()
    overwrite(path, (1 - copy) * PAGE, bytes(PAGE))
    again = maps.open_existing(path)
    assert again.superblock.reason == "é" * (REASON_MAX // 2)
    again.close()


def test_a_state_write_cut_between_the_copies_is_finished_by_the_next(path: Path) -> None:
    made = make_map(path)
    made.close()
    newer = dataclasses.replace(made.superblock, state=State.INVALID, reason="r", generation=2)
    overwrite(path, 0, newer.pack())
    opened = maps.open_existing(path)
    assert (opened.superblock, opened.damaged_superblock) == (newer, 1)
    opened.close()
