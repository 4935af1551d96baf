# SPDX-License-Identifier: Apache-2.0
"""Rot in any byte of map or chunk file: every chunk that reads wrong is named as damaged or unverifiable."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.stores import contract, store_file, thin
from lun_backends.stores.superblock import PAGE, USED, Layout, Superblock
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK, PER_CHUNK, data
from tests.powercut import replay

CHUNKS = 11
FULL, PART, BLANK = (0, 1, 4, 9), 6, (2, 3, 5, 7, 8, 10)
GOOD, DAMAGED, UNVERIFIABLE = contract.Verdict.GOOD, contract.Verdict.DAMAGED, contract.Verdict.UNVERIFIABLE


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Make a store of four whole chunks, one written in part, and blank ones, and close it."""
    return make(tmp_path)


def make(tmp_path: Path) -> tuple[Path, Path]:
    lun = store_factory.create(tmp_path, size=CHUNKS * CHUNK)
    for chunk in FULL:
        lun.writev(chunk * CHUNK, data(chunk, PER_CHUNK))
    lun.writev(PART * CHUNK + BLOCK, data(PART, 3))
    lun.close()
    return thin.files(tmp_path / "s")


def truth(chunk: int, block: int) -> bytes | None:
    """Return the content of a block, None if it is blank."""
    if chunk in FULL:
        return b"".join(data(chunk, PER_CHUNK))[block * BLOCK : (block + 1) * BLOCK]
    if chunk == PART and 1 <= block <= 3:
        return b"".join(data(PART, 3))[(block - 1) * BLOCK : block * BLOCK]
    return None


def wrong_chunks(lun: write_once.WriteOnce) -> Iterator[tuple[int, bool]]:
    """Return (chunk, whether a read failed) for every chunk that does not read as it was written."""
    for chunk in range(CHUNKS):
        for block in range(PER_CHUNK):
            content: bytes | None
            try:
                content = store_factory.read(lun, chunk * PER_CHUNK + block)
            except block_device.BlankBlock:
                content = None
            except block_device.MediumError:
                yield chunk, True
                break
            if content != truth(chunk, block):
                yield chunk, False
                break


def rot(path: Path, offset: int, change: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ change]))


def check(tmp_path: Path) -> str:
    """Open, read and verify the store.  Return how it reacted to the change."""
    try:
        lun = store_factory.reopen(tmp_path)
    except store_file.StoreDamaged:
        return "refused"
    try:
        verdicts = {report.offset // CHUNK: report.verdict for report in lun.verify()}
        headers = lun.check_headers()
        for chunk, said_so in wrong_chunks(lun):
            verdict = verdicts.get(chunk)
            if chunk == PART:
                assert verdict in (UNVERIFIABLE, DAMAGED)
            elif chunk in BLANK and not said_so:
                assert (
                    verdict is UNVERIFIABLE
                )  # rot gave it bits and a slot, which cannot be distinguished from real ones
            else:
                assert verdict is DAMAGED, f"chunk {chunk} reads wrong, and verify says {verdict}"
        if headers:
            return "header"
        if DAMAGED in verdicts.values():
            return "damaged"
        return "unseen" if verdicts == {**dict.fromkeys(FULL, GOOD), PART: UNVERIFIABLE} else "unverifiable"
    finally:
        lun.close()


@pytest.mark.parametrize("change", [0xFF, 0x01, 0x80])
def test_a_change_of_any_meaningful_byte_of_the_map_is_noticed(
    tmp_path: Path, files: tuple[Path, Path], change: int
) -> None:
    layout = Layout.of(Superblock(store_factory.SNAPSHOT, store_factory.VOLUME, CHUNKS * CHUNK, BLOCK, CHUNK))
    for start, width in ((layout.slots, 8), (layout.written, 1), (layout.checksums, 4)):
        for offset in range(CHUNKS * width):
            rot(files[0], start + offset, change)
            met = check(tmp_path)
            rot(files[0], start + offset, change)
            if offset // width in FULL:
                assert met in ("damaged", "refused")
            elif offset // width in BLANK:
                assert met in ("unverifiable", "refused")
    for offset in range(-(-CHUNKS // 8)):
        rot(files[0], layout.confirmed + offset, change)
        met = check(tmp_path)
        rot(files[0], layout.confirmed + offset, change)
        # A chunk that lost its confirmation is good all the same: an interrupted commit leaves such chunks, too.
        assert met == {(0x01, 0): "unseen", (0x80, 1): "header", (0xFF, 1): "header"}.get((change, offset), "damaged")


def test_a_change_of_the_gaps_of_the_map_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    layout = Layout.of(Superblock(store_factory.SNAPSHOT, store_factory.VOLUME, CHUNKS * CHUNK, BLOCK, CHUNK))
    lun = store_factory.reopen(tmp_path)
    for start, end in (
        (USED, PAGE),
        (PAGE + USED, 2 * PAGE),
        (layout.slots + CHUNKS * 8, layout.written),
        (layout.written + CHUNKS, layout.checksums),
        (layout.checksums + CHUNKS * 4, layout.confirmed),
        (layout.confirmed + 2, layout.length),
    ):
        assert end - start > 2000
        for offset in (*range(start, end, 7), end - 1):
            rot(files[0], offset, 0x10)
            assert len(lun.check_headers()) == 1, offset
            rot(files[0], offset, 0x10)
    assert lun.check_headers() == []
    lun.close()


def test_a_damaged_superblock_is_named_and_its_copy_used(tmp_path: Path, files: tuple[Path, Path]) -> None:
    for copy, offset in itertools.product((0, PAGE), range(0, USED, 7)):
        rot(files[0], copy + offset, 0x10)
        assert check(tmp_path) == "header"
        rot(files[0], copy + offset, 0x10)
    for offset in (0, PAGE):
        rot(files[0], offset + 40, 0x10)
    assert check(tmp_path) == "refused"


def test_a_change_of_any_byte_of_the_chunk_file_is_noticed(tmp_path: Path, files: tuple[Path, Path]) -> None:
    used = 36
    assert files[1].read_bytes()[used:CHUNK].strip(b"\0") == b""
    for offset in range(used):
        rot(files[1], offset, 0x04)
        assert check(tmp_path) == "refused"
        rot(files[1], offset, 0x04)
    for offset in range(CHUNK, 5 * CHUNK, 61):
        rot(files[1], offset, 0x04)
        assert check(tmp_path) == "damaged"
        rot(files[1], offset, 0x04)


def test_a_change_of_any_byte_of_an_open_chunk_file_is_noticed() -> None:
    with replay.scratch() as memory:  # on a disk, each of these many changes would have to be written and read back
        _, file = make(memory)
        lun = store_factory.reopen(memory)
        for offset in (*range(36, CHUNK, 7), CHUNK - 1):
            rot(file, offset, 0x04)
            assert lun.check_headers() == ["behind its header the chunk file is not zeroes"]
            rot(file, offset, 0x04)
        for offset in range(CHUNK, 5 * CHUNK):
            rot(file, offset, 1 << offset % 8)
            assert [report.verdict for report in lun.verify()].count(DAMAGED) == 1
            rot(file, offset, 1 << offset % 8)
        assert lun.check_headers() == []
        lun.close()


def test_a_header_that_rots_while_it_is_open_is_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    lun = store_factory.reopen(tmp_path)
    assert lun.check_headers() == []
    rot(files[1], 9, 0x01)
    rot(files[0], PAGE + 100, 0x01)
    faults = lun.check_headers()
    assert len(faults) == 2
    assert "copy 2 of the map's superblock: superblock CRC" in faults[0]
    assert "the chunk file's header: format version" in faults[1]
    lun.close()


@pytest.mark.parametrize("array", ["slots", "written", "checksums", "confirmed"])
def test_a_lost_page_of_the_map_is_noticed(tmp_path: Path, files: tuple[Path, Path], array: str) -> None:
    layout = Layout.of(Superblock(store_factory.SNAPSHOT, store_factory.VOLUME, CHUNKS * CHUNK, BLOCK, CHUNK))
    with files[0].open("r+b") as file:
        file.seek(getattr(layout, array))
        file.write(bytes(PAGE))
    met = check(tmp_path)
    # Only the confirmations may be lost: all other words are there.
    assert met == {"slots": "damaged", "written": "damaged", "checksums": "unverifiable", "confirmed": "unseen"}[array]


def test_a_chunk_whose_slot_is_lost_is_not_stored_a_second_time(tmp_path: Path, files: tuple[Path, Path]) -> None:
    layout = Layout.of(Superblock(store_factory.SNAPSHOT, store_factory.VOLUME, CHUNKS * CHUNK, BLOCK, CHUNK))
    rot(files[0], layout.slots + 4 * 8, 3)  # chunk 4 was in slot 3
    lun = store_factory.reopen(tmp_path)
    with pytest.raises(block_device.BlockWritten):  # otherwise copy-on-write would preserve new data as old
        lun.writev(4 * CHUNK, data(77, PER_CHUNK))
    with pytest.raises(block_device.MediumError, match="lost where"):
        store_factory.read(lun, 4 * PER_CHUNK)
    with pytest.raises(block_device.MediumError, match="lost where"):
        store_factory.read(lun, 3 * PER_CHUNK + 8, 8)
    assert (4 * CHUNK, CHUNK, block_device.ExtentKind.DATA) in [
        (extent.offset, extent.length, extent.kind) for extent in lun.extents(0, lun.size)
    ]
    reports = {report.offset // CHUNK: report for report in lun.verify()}
    assert reports[4].verdict is DAMAGED
    assert "lost where it is" in reports[4].reason
    lun.close()


def test_two_chunks_in_one_slot_are_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    lun = store_factory.reopen(tmp_path)  # as long as the store is open, nothing checks the slots
    layout = Layout.of(Superblock(store_factory.SNAPSHOT, store_factory.VOLUME, CHUNKS * CHUNK, BLOCK, CHUNK))
    rot(files[0], layout.slots + 9 * 8, 4 ^ 2)  # chunk 9 was in slot 4, chunk 1 is in 2
    reports = {report.offset // CHUNK: report for report in lun.verify()}
    assert reports[1].verdict is GOOD
    assert reports[9].verdict is DAMAGED
    assert reports[9].reason == "it shares slot 2 with chunk 1"
    lun.close()


def test_only_what_is_durable_is_confirmed(tmp_path: Path) -> None:
    """Otherwise a power cut would look like rot."""
    io = store_factory.FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    confirmed: list[bool] = []
    io.before["sync_map"] = lambda: confirmed.append(store_factory.thin_of(lun)._map.confirmed(0))
    lun.writev(0, data(1, 3))
    lun.writev(3 * BLOCK, data(1, 5))
    assert confirmed == [False, False]
    assert store_factory.thin_of(lun)._map.confirmed(0)
    io.fail("sync_map")
    with pytest.raises(block_device.MediumError):
        lun.writev(CHUNK, data(1, PER_CHUNK))
    assert not store_factory.thin_of(lun)._map.confirmed(1)
    lun.close()
