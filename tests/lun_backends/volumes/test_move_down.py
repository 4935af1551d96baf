# SPDX-License-Identifier: Apache-2.0
"""Moving pre-images down: only blank blocks are filled, and checksums move along, so rot stays rot."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, tracking, write_once
from lun_backends.damage import Damage
from lun_backends.stores import contract, thin
from lun_backends.volumes import errors, move_down, volume
from lun_backends.volumes.snapshot import Snapshot
from tests.faults.storage import FaultyIO
from tests.lun_backends import store_factory
from tests.lun_backends.rotting import forget_checksum, rot
from tests.lun_backends.volumes.sample import CHUNK, SIZE, block, read, reopen

GOOD, DAMAGED, UNVERIFIABLE = contract.Verdict.GOOD, contract.Verdict.DAMAGED, contract.Verdict.UNVERIFIABLE


def device(snapshot: Snapshot) -> write_once.WriteOnce:
    assert isinstance(snapshot.write_once, write_once.WriteOnce)
    return snapshot.write_once


def verdicts(snapshot: Snapshot) -> dict[int, contract.Verdict]:
    return {report.offset // CHUNK: report.verdict for report in device(snapshot).verify()}


def write(owner: volume.Volume, *chunks: int, fill: int = 9) -> None:
    for chunk in chunks:
        owner.device.writev(chunk * CHUNK, block(fill, min(CHUNK, SIZE - chunk * CHUNK)))


@pytest.fixture
def history(made: volume.Volume) -> volume.Volume:
    """Make a volume whose snapshot `old` has chunk 1, and `new` has chunks 1 to 4 and the last, short one."""
    write(made, 64, fill=3)
    made.create_snapshot("old")
    write(made, 1)
    made.create_snapshot("new")
    write(made, 1, 2, 3, 4, 64, fill=10)
    return made


def test_damaged_chunk_stays_damaged(history: volume.Volume) -> None:
    moment = read(history.snapshot("old").view)
    old, new = history.snapshot("old"), history.snapshot("new")
    rot(new, 3)
    rot(new, 64)
    reported: list[Damage] = []
    history.delete_snapshot("new", on_damage=reported.append)
    assert [(damage.offset, damage.length, damage.kept_in) for damage in reported] == [
        (3 * CHUNK, CHUNK, old.uuid),
        (64 * CHUNK, 512, old.uuid),
    ]
    assert old.write_once.damaged_chunks == 2
    for _ in range(2):
        old = history.snapshot("old")
        assert verdicts(old) == {1: GOOD, 2: GOOD, 3: DAMAGED, 4: GOOD, 64: DAMAGED}
        with pytest.raises(block_device.DamagedBlocks) as caught:
            read(old.view)
        assert caught.value.lba == 3 * CHUNK // 512
        assert read(old.view, 0, 3 * CHUNK) == moment[: 3 * CHUNK]
        assert read(old.view, 4 * CHUNK, 60 * CHUNK) == moment[4 * CHUNK : 64 * CHUNK]
        history = reopen(history)
    history.close()


def test_moved_chunks_that_fit_keep_their_checksums(history: volume.Volume) -> None:
    old, new = device(history.snapshot("old")), device(history.snapshot("new"))
    checksums = {chunk: store_factory.thin_of(new)._map.checksums(chunk, 0, 1) for chunk in (2, 3, 4, 64)}
    history.delete_snapshot("new")
    assert {chunk: store_factory.thin_of(old)._map.checksums(chunk, 0, 1) for chunk in checksums} == checksums
    assert set(verdicts(history.snapshot("old")).values()) == {GOOD}


def test_damaged_chunk_that_the_older_snapshot_has_itself_is_no_loss(history: volume.Volume) -> None:
    rot(history.snapshot("new"), 1)
    reported: list[Damage] = []
    history.delete_snapshot("new", on_damage=reported.append)
    assert reported == []
    assert set(verdicts(history.snapshot("old")).values()) == {GOOD}


def test_chunk_without_a_checksum_gets_none(history: volume.Volume) -> None:
    forget_checksum(history.snapshot("new"), 2)
    history.delete_snapshot("new")
    assert verdicts(history.snapshot("old")) == {1: GOOD, 2: UNVERIFIABLE, 3: GOOD, 4: GOOD, 64: GOOD}


def test_chunk_of_two_parts_without_a_checksum_gets_none(made: volume.Volume) -> None:
    before = read(made.device)
    old = made.create_snapshot("old")
    new = made.create_snapshot("new")
    write(made, 20)
    made.create_snapshot("newest")
    old.write_once.writev(5 * CHUNK, [memoryview(before)[5 * CHUNK : 5 * CHUNK + 512]])
    new.write_once.writev(5 * CHUNK + 512, [memoryview(before)[5 * CHUNK + 512 : 6 * CHUNK]])
    made.delete_snapshot("new")
    assert verdicts(old) == {5: UNVERIFIABLE, 20: GOOD}
    assert read(old.view) == before


def test_damage_that_would_be_forgotten_stops_the_move(history: volume.Volume) -> None:
    """A part of the chunk is in the older snapshot already, so no checksum could say that the rest is damaged."""
    old, new = history.snapshot("old"), history.snapshot("new")
    moment = read(old.view)
    old.write_once.writev(3 * CHUNK, [memoryview(moment)[3 * CHUNK : 3 * CHUNK + 512]])
    rot(new, 3)
    for accept_loss in (False, True):
        with pytest.raises(errors.DamageFound) as caught:
            history.delete_snapshot("new", accept_loss=accept_loss)
        assert "blocks 25 to 31 of 'new' are damaged (CRC32C is 0x" in caught.value.reason
        assert caught.value.remedy == "delete 'old' and all older ones first"
    assert verdicts(old)[3] is UNVERIFIABLE
    history.delete_snapshot("old")
    assert history.snapshots == ()


def test_part_of_a_chunk_that_fits_is_moved(history: volume.Volume) -> None:
    old = history.snapshot("old")
    moment = read(old.view)
    old.write_once.writev(3 * CHUNK, [memoryview(moment)[3 * CHUNK : 3 * CHUNK + 512]])
    history.delete_snapshot("new")
    assert verdicts(old)[3] is GOOD
    assert read(old.view) == moment


@pytest.mark.parametrize("damaged", [False, True])
def test_chunk_at_the_end_of_a_smaller_snapshot(tmp_path: Path, damaged: bool) -> None:
    made = volume.Volume.create(tmp_path / "state", "v", tmp_path / "disk", size=SIZE, chunk_size=CHUNK)
    made.device.writev(64 * CHUNK, block(3))
    old = made.create_snapshot("old")
    made.resize(SIZE + 4 * CHUNK)
    new = made.create_snapshot("new")
    made.device.writev(64 * CHUNK, block(9, CHUNK))
    if damaged:
        rot(new, 64, at=CHUNK - 1)  # it is not known whether the part that moves is damaged
    reported: list[Damage] = []
    made.delete_snapshot("new", on_damage=reported.append)
    assert verdicts(old) == {64: DAMAGED if damaged else GOOD}
    assert [(damage.offset, damage.length) for damage in reported] == ([(64 * CHUNK, 512)] if damaged else [])
    if not damaged:
        assert read(old.view, 64 * CHUNK, 512) == bytes([3]) * 512
    made.close()


class Bench:
    """A volume over a disk that fails on demand."""

    def __init__(self, path: Path) -> None:
        self.io = FaultyIO()
        self.made = volume.Volume.create(path / "v", "v", path / "disk", size=SIZE, chunk_size=CHUNK, io=self.io)
        write(self.made, *range(10), fill=1)
        self.old = self.made.create_snapshot("old")
        self.new = self.made.create_snapshot("new")
        write(self.made, 2, 3, fill=2)

    def break_new(self) -> None:
        """Let all reads of the newer snapshot's chunks fail."""
        path = thin.files(self.made.directory / "snapshots" / str(self.new.uuid))[1]
        self.io.fail("preadv", errno.EIO, path=path.name)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    opened = Bench(tmp_path)
    yield opened
    opened.made.close()


def test_unreadable_blocks_stop_the_move_until_their_loss_is_accepted(bench: Bench) -> None:
    bench.break_new()
    with pytest.raises(errors.DamageFound) as caught:
        bench.made.delete_snapshot("new")
    assert "block 16 of 'new' cannot be read" in caught.value.reason
    assert "--damaged" in caught.value.remedy
    bench.io.heal()
    with pytest.raises(errors.DeletionStopped):
        bench.made.delete_snapshot("new", cancelled=lambda: True)
    bench.break_new()
    reported: list[Damage] = []
    bench.made.delete_snapshot("new", accept_loss=True, on_damage=reported.append)
    assert [damage.offset for damage in reported] == [2 * CHUNK, 3 * CHUNK]
    assert verdicts(bench.old) == {2: DAMAGED, 3: DAMAGED}
    with pytest.raises(block_device.DamagedBlocks):
        read(bench.old.view)


def test_unreadable_blocks_that_become_readable_again_are_moved_whole(bench: Bench) -> None:
    bench.break_new()
    with pytest.raises(errors.DamageFound):
        bench.made.delete_snapshot("new")
    bench.io.heal()
    bench.made.delete_snapshot("new")
    assert verdicts(bench.old) == {2: GOOD, 3: GOOD}
    assert read(bench.old.view, 0, 10 * CHUNK) == bytes([1]) * 10 * CHUNK


def test_unreadable_chunk_without_a_checksum_is_damaged_too(bench: Bench) -> None:
    forget_checksum(bench.new, 2)
    bench.break_new()
    bench.made.delete_snapshot("new", accept_loss=True)
    assert verdicts(bench.old) == {2: DAMAGED, 3: DAMAGED}


def test_unreadable_part_of_a_chunk_stops_the_move_for_good(bench: Bench) -> None:
    bench.new.write_once.writev(20 * CHUNK, block(0))
    bench.made.create_snapshot("newest")
    bench.break_new()
    with pytest.raises(errors.DamageFound) as caught:
        bench.made.delete_snapshot("new", accept_loss=True)
    assert "block 160 of 'new' cannot be read" in caught.value.reason
    assert caught.value.remedy == "repair the disk, or delete 'old' and all older ones first"
    bench.made.delete_snapshot("old")
    assert [snapshot.name for snapshot in bench.made.snapshots] == ["newest"]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[write_once.WriteOnce]:
    (tmp_path / "source").mkdir()
    opened = store_factory.create(tmp_path / "source", size=SIZE)
    yield opened
    opened.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[write_once.WriteOnce]:
    (tmp_path / "target").mkdir()
    opened = store_factory.create(tmp_path / "target", size=SIZE)
    yield opened
    opened.close()


def test_only_blank_blocks_of_the_older_snapshot_are_filled(
    source: write_once.WriteOnce, target: write_once.WriteOnce
) -> None:
    source.writev(0, block(1, 2 * CHUNK))
    target.writev(512, block(9))
    target.writev(CHUNK + 1024, block(9))
    assert move_down.move_down(source, target, CHUNK)
    expected = bytearray(b"\1" * 2 * CHUNK)
    expected[512:1024] = expected[CHUNK + 1024 : CHUNK + 1536] = b"\x09" * 512
    assert read(target, 0, 2 * CHUNK) == expected
    assert list(tracking.whole(target)) == [(0, 2)]


def test_blocks_beyond_the_end_of_the_older_snapshot_stay_behind(source: write_once.WriteOnce, tmp_path: Path) -> None:
    smaller = store_factory.create(tmp_path, size=2 * CHUNK)
    source.writev(CHUNK, block(1, 4 * CHUNK))
    assert move_down.move_down(source, smaller, CHUNK)
    assert read(smaller, CHUNK, CHUNK) == b"\1" * CHUNK
    smaller.close()


def test_a_move_can_be_run_again(source: write_once.WriteOnce, target: write_once.WriteOnce) -> None:
    source.writev(0, block(1, 3 * CHUNK))
    for _ in range(2):
        assert move_down.move_down(source, target, CHUNK)
        assert read(target, 0, 3 * CHUNK) == b"\1" * 3 * CHUNK


def test_a_cancelled_move_ends_between_two_batches(
    source: write_once.WriteOnce, target: write_once.WriteOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_down, "_BATCH", 2 * CHUNK)
    source.writev(0, block(1, 6 * CHUNK))
    reports: list[tuple[int, int]] = []
    done = move_down.move_down(
        source,
        target,
        CHUNK,
        progress=lambda moved, total: reports.append((moved, total)),
        cancelled=lambda: len(reports) == 2,
    )
    assert not done
    assert reports == [(2 * CHUNK, 6 * CHUNK), (4 * CHUNK, 6 * CHUNK)]
    assert list(tracking.touched(target)) == [(0, 4)]
