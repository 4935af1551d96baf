# SPDX-License-Identifier: Apache-2.0
"""Rot in any byte of map or chunk file: every chunk that reads wrong is named as damaged or unverifiable."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.stores import contract, record_map, store_file, thin
from lun_backends.stores.chunk_map import WORDS
from lun_backends.stores.superblock import PAGE, USED
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK, PER_CHUNK, data
from tests.powercut import replay

CHUNKS = 11
RECORD, SLOT, MASK = 32, 16, 24  # of a chunk of 4 KiB: the length of its record, the places of slot and mask within it
CONFIRMED = WORDS + PAGE
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
def test_a_change_of_any_byte_of_the_records_is_noticed(tmp_path: Path, files: tuple[Path, Path], change: int) -> None:
    for offset in range(CHUNKS * RECORD):
        rot(files[0], WORDS + offset, change)
        met = check(tmp_path)
        rot(files[0], WORDS + offset, change)
        chunk, at = divmod(offset, RECORD)
        if 4 <= at < SLOT:  # not used
            assert met == "header"
        elif chunk in FULL or at >= MASK:
            assert met in ("damaged", "refused")
        elif chunk in BLANK:
            assert met in ("unverifiable", "refused")
    for offset in range(-(-CHUNKS // 8)):
        rot(files[0], CONFIRMED + offset, change)
        met = check(tmp_path)
        rot(files[0], CONFIRMED + offset, change)
        # A chunk that lost its confirmation is good all the same: an interrupted commit leaves such chunks, too.
        assert met == {(0x01, 0): "unseen", (0x80, 1): "header", (0xFF, 1): "header"}.get((change, offset), "damaged")


def test_without_the_complement_a_changed_mask_would_be_believed(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: it fails if the map takes any mask as it is."""

    def careless(self: record_map.RecordMap, chunk: int) -> tuple[int, int]:
        at = chunk * self._stride + self._first_mask
        return self._quads[at] & 0xFF, 0

    monkeypatch.setattr(record_map.RecordMap, "_look", careless)
    rot(files[0], WORDS + 4 * RECORD + MASK, 0xFF)  # chunk 4 becomes blank
    lun = store_factory.reopen(tmp_path)
    lun.store._map._confirmed = bytes(2)  # type: ignore[attr-defined]
    with pytest.raises(block_device.BlankBlock):
        store_factory.read(lun, 4 * PER_CHUNK)
    lun.close()


def test_a_change_of_the_gaps_of_the_map_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    lun = store_factory.reopen(tmp_path)
    for start, end in (
        (USED, PAGE),
        (PAGE + USED, 2 * PAGE),
        (WORDS + CHUNKS * RECORD, CONFIRMED),
        (CONFIRMED + 2, CONFIRMED + PAGE),
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


@pytest.mark.parametrize(("place", "expected"), [(WORDS, "damaged"), (CONFIRMED, "unseen")])
def test_a_lost_page_of_the_map_is_noticed(tmp_path: Path, files: tuple[Path, Path], place: int, expected: str) -> None:
    with files[0].open("r+b") as file:
        file.seek(place)
        file.write(bytes(PAGE))
    assert check(tmp_path) == expected  # only the confirmations may be lost: all other words are there


@pytest.mark.parametrize("sector", range(4))
def test_a_lost_sector_of_a_large_record_is_noticed(tmp_path: Path, sector: int) -> None:
    chunk = 1 << 20
    lun = store_factory.create(tmp_path, size=chunk, chunk_size=chunk)
    content = random.Random(1).randbytes(chunk)
    lun.writev(0, [memoryview(content)])
    lun.close()
    path = thin.files(tmp_path / "s")[0]
    with path.open("r+b") as file:
        file.seek(WORDS + 512 * sector)
        file.write(bytes(512))
    lun = store_factory.reopen(tmp_path)
    verdicts = {report.verdict for report in lun.verify()}
    assert verdicts == [{GOOD, UNVERIFIABLE}, {GOOD, UNVERIFIABLE}, {DAMAGED}, {DAMAGED}][sector]
    if sector < 2:
        assert store_factory.read(lun, 0, chunk // BLOCK) == content
    else:
        with pytest.raises(block_device.MediumError, match="lost"):
            store_factory.read(lun, 0)
    lun.close()


def test_a_chunk_whose_slot_is_lost_is_not_stored_a_second_time(tmp_path: Path, files: tuple[Path, Path]) -> None:
    rot(files[0], WORDS + 4 * RECORD + SLOT, 3)  # chunk 4 was in slot 3
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
    rot(files[0], WORDS + 9 * RECORD + SLOT, 4 ^ 2)  # chunk 9 was in slot 4, chunk 1 is in 2
    reports = {report.offset // CHUNK: report for report in lun.verify()}
    assert reports[1].verdict is GOOD
    assert reports[9].verdict is DAMAGED
    assert reports[9].reason == "it shares slot 2 with chunk 1"
    lun.close()


def test_only_what_is_durable_is_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut would look like rot."""
    monkeypatch.setattr(thin, "_CONFIRMED_TOGETHER", 1)
    io = store_factory.FaultyIO()
    lun = store_factory.create(tmp_path, io=io)
    store = store_factory.thin_of(lun)
    confirmed: list[bool] = []
    io.before["sync_map"] = lambda: confirmed.append(store._map.confirmed(0))
    lun.writev(0, data(1, 3))
    lun.writev(3 * BLOCK, data(1, 5))
    assert confirmed == [False, True]
    io.fail("sync_map")
    with pytest.raises(block_device.MediumError):
        lun.writev(CHUNK, data(1, PER_CHUNK))
    assert not store._map.confirmed(1)
    lun.close()
