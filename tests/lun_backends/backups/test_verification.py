# SPDX-License-Identifier: Apache-2.0
"""Verifying a snapshot: all blocks that its view may read, in whatever snapshot, while snapshots are taken and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.backups import verification
from lun_backends.stores import contract, thin
from lun_backends.volumes import errors, volume

CHUNK = 4096
SIZE = 32 * CHUNK + 512
GOOD, DAMAGED, UNVERIFIABLE = contract.Verdict.GOOD, contract.Verdict.DAMAGED, contract.Verdict.UNVERIFIABLE


@pytest.fixture
def made(tmp_path: Path) -> Iterator[volume.Volume]:
    opened = volume.Volume.create(tmp_path / "state", "vol0", tmp_path / "disk.img", size=SIZE, chunk_size=CHUNK)
    yield opened
    opened.close()


def write(owner: volume.Volume, *chunks: int) -> None:
    for chunk in chunks:
        owner.device.writev(chunk * CHUNK, [memoryview(bytes([chunk + 1]) * min(CHUNK, SIZE - chunk * CHUNK))])


def verdicts(owner: volume.Volume, name: str) -> list[tuple[str, int, contract.Verdict]]:
    return [
        (checked.kept_in, checked.report.offset // CHUNK, checked.report.verdict)
        for checked in verification.verify(owner, name)
    ]


def rot(owner: volume.Volume, name: str, slot: int) -> None:
    path = thin.files(owner.directory / "snapshots" / str(owner.snapshot(name).uuid))[1]
    with path.open("r+b") as file:
        file.seek(slot * CHUNK + 7)
        file.write(b"rot")


def test_pre_images_that_newer_snapshots_keep_are_checked_too(made: volume.Volume) -> None:
    write(made, *range(33))
    made.create_snapshot("a")
    write(made, 3, 32)
    made.create_snapshot("b")
    write(made, 3, 4)
    made.create_snapshot("c")
    write(made, 5)
    assert verdicts(made, "a") == [("a", 3, GOOD), ("a", 32, GOOD), ("b", 4, GOOD), ("c", 5, GOOD)]
    assert verdicts(made, "b") == [("b", 3, GOOD), ("b", 4, GOOD), ("c", 5, GOOD)]
    assert verification.preserved_bytes(made, "b") == 3 * CHUNK
    rot(made, "b", 1)  # chunk 3, which only b's view needs
    assert {verdict for _, _, verdict in verdicts(made, "a")} == {GOOD}
    assert ("b", 3, DAMAGED) in verdicts(made, "b")
    rot(made, "b", 2)
    assert ("b", 4, DAMAGED) in verdicts(made, "a")
    assert {verdict for _, _, verdict in verdicts(made, "c")} == {GOOD}


def test_a_chunk_preserved_in_part_is_checked_in_newer_snapshots_too(made: volume.Volume) -> None:
    a = made.create_snapshot("a")
    a.write_once.writev(6 * CHUNK, [memoryview(bytes(512))])
    made.create_snapshot("b")
    write(made, 6)
    assert verdicts(made, "a") == [("a", 6, UNVERIFIABLE), ("b", 6, GOOD)]


def test_a_newer_snapshot_may_be_deleted_meanwhile(made: volume.Volume) -> None:
    write(made, *range(33))
    made.create_snapshot("a")
    write(made, 2, 9)
    made.create_snapshot("b")
    write(made, 2, 4, 12)
    checking = verification.verify(made, "a")
    seen = [next(checking) for _ in range(3)]
    assert [(checked.kept_in, checked.report.offset // CHUNK) for checked in seen] == [("a", 2), ("a", 9), ("b", 4)]
    made.delete_snapshot("b")
    assert [(checked.kept_in, checked.report.offset // CHUNK) for checked in checking] == [("a", 12)]


def test_a_snapshot_deleted_while_it_is_verified_ends_the_check(made: volume.Volume) -> None:
    made.create_snapshot("a")
    write(made, 2, 9)
    checking = verification.verify(made, "a")
    next(checking)
    made.delete_snapshot("a")
    with pytest.raises(block_device.DeviceClosed):
        next(checking)
    with pytest.raises(errors.NoSuchSnapshot):
        next(verification.verify(made, "a"))


def test_a_lost_snapshot_cannot_be_verified(made: volume.Volume) -> None:
    made.create_snapshot("a")
    write(made, 2)
    lost = made.create_snapshot("b")
    made.close()
    thin.files(made.directory / "snapshots" / str(lost.uuid))[0].unlink()
    again = volume.Volume.open(made.directory)
    try:
        with pytest.raises(block_device.SnapshotInvalid, match="does not exist"):
            verdicts(again, "a")  # its view needs the lost one
        with pytest.raises(block_device.SnapshotInvalid):
            verification.damaged_headers(again, "b")
    finally:
        again.close()


def test_damaged_headers_are_named(made: volume.Volume) -> None:
    taken = made.create_snapshot("a")
    assert verification.damaged_headers(made, "a") == []
    with thin.files(made.directory / "snapshots" / str(taken.uuid))[0].open("r+b") as file:
        file.seek(60)
        file.write(b"rot")
    (damage,) = verification.damaged_headers(made, "a")
    assert damage.startswith("copy 1 of the map's superblock")
