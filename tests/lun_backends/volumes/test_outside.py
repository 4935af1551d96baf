# SPDX-License-Identifier: Apache-2.0
"""Data of a snapshot that initiators wrote: found through the chain, kept by deletions, and named before a rollback."""

from __future__ import annotations

import pytest

from lun_backends import write_once
from lun_backends.volumes import errors, volume
from lun_backends.volumes.outside import Written
from lun_backends.volumes.snapshot import Snapshot
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block, read, reopen


def lun(snapshot: Snapshot) -> write_once.WriteOnce:
    assert isinstance(snapshot.write_once, write_once.WriteOnce)
    return snapshot.write_once


def test_neighbours_are_one_extent_and_the_last_chunk_is_short(made: volume.Volume) -> None:
    taken = made.create_snapshot("s")
    made.device.writev(9 * CHUNK, block(9, CHUNK))  # preserved by copy-on-write: no mark
    for chunk in (4, 3, 7):
        lun(taken).writev(chunk * CHUNK, block(1))
    lun(taken).writev(64 * CHUNK, block(1))
    expected = [
        Written(3 * CHUNK, 2 * CHUNK, taken.uuid),
        Written(7 * CHUNK, CHUNK, taken.uuid),
        Written(64 * CHUNK, SIZE - 64 * CHUNK, taken.uuid),
    ]
    assert made.written_outside("s") == expected
    again = reopen(made)
    assert again.written_outside("s") == expected
    again.close()


def test_mark_counts_for_older_snapshots_that_read_the_chunk_there(made: volume.Volume) -> None:
    made.create_snapshot("old")
    made.device.writev(0, block(9, CHUNK))  # `old` has all of chunk 0
    new = made.create_snapshot("new")
    for chunk in (0, 1):
        lun(new).writev(chunk * CHUNK, block(1, CHUNK))
    assert made.written_outside("new") == [Written(0, 2 * CHUNK, new.uuid)]
    assert made.written_outside("old") == [Written(CHUNK, CHUNK, new.uuid)]
    later = made.create_snapshot("later")
    assert made.written_outside("later") == []
    assert later in made.snapshots


def test_marks_go_along_when_a_snapshot_is_deleted(made: volume.Volume) -> None:
    old = made.create_snapshot("old")
    new = made.create_snapshot("new")
    made.device.writev(2 * CHUNK, block(9, CHUNK))
    lun(new).writev(CHUNK, block(1, CHUNK))
    made.delete_snapshot("new")
    assert made.written_outside("old") == [Written(CHUNK, CHUNK, old.uuid)]
    again = reopen(made)
    assert again.written_outside("old") == [Written(CHUNK, CHUNK, old.uuid)]
    again.delete_snapshot("old")
    assert list((again.directory / "snapshots").iterdir()) == []
    again.close()


def test_rollback_names_the_blocks_and_happens_only_if_they_are_accepted(made: volume.Volume) -> None:
    taken = made.create_snapshot("s")
    moment = read(made.device)
    lun(taken).writev(2 * CHUNK, block(0xEE, CHUNK))
    made.device.writev(0, block(9))
    with pytest.raises(errors.WrittenOutside, match="initiators wrote to blocks 16 to 23 of 's'"):
        made.begin_rollback("s")
    assert made.rolling_back_to is None
    made.begin_rollback("s", accept_outside=True)
    assert made.continue_rollback()
    assert read(made.device) == moment[: 2 * CHUNK] + b"\xee" * CHUNK + moment[3 * CHUNK :]
