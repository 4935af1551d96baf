# SPDX-License-Identifier: Apache-2.0
"""Reads that compare chunks with their checksums: rot is an error that names the block, and is never served as good data."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.damage import Damage
from lun_backends.stores import contract, reader, thin
from lun_backends.stores.superblock import ARRAYS, RECORDS
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK, PER_CHUNK, data, read

SIZE = 7 * CHUNK + 3 * BLOCK  # the last chunk is short
LAST = 7


def content(chunk: int) -> bytes:
    return b"".join(data(chunk + 1, PER_CHUNK))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return make(tmp_path)


def make(tmp_path: Path, version: int = RECORDS) -> Path:
    """Make a LUN: chunks 0, 1, 2 and the last are whole, chunk 5 is written in part.  Return the chunk file."""
    lun = store_factory.create(tmp_path, size=SIZE, version=version)
    for chunk in (0, 1, 2):
        lun.writev(chunk * CHUNK, data(chunk + 1, PER_CHUNK))
    lun.writev(LAST * CHUNK, data(LAST + 1, 3))
    lun.writev(5 * CHUNK, data(6, 2))
    lun.close()
    return thin.files(tmp_path / "s")[1]


def rot(file: Path, content: bytes, at: int) -> None:
    """Flip one bit of byte `at` of the stored `content`, whose beginning is intact."""
    with file.open("r+b") as opened:
        place = opened.read().index(content[:at]) + at
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))


def read_now(lun: write_once.WriteOnce, lba: int, blocks: int) -> bytes | None:
    buffer = bytearray(blocks * BLOCK)
    return bytes(buffer) if lun.read_now(lba * BLOCK, len(buffer), [memoryview(buffer)]) else None


def test_a_block_of_a_damaged_chunk_is_an_error_that_names_it(tmp_path: Path, files: Path) -> None:
    rot(files, content(1), 6 * BLOCK + 9)
    lun = store_factory.reopen(tmp_path)
    for lba, blocks, first in ((8, 8, 8), (8, 1, 8), (11, 2, 11), (15, 1, 15), (3, 9, 8), (0, 24, 8)):
        with pytest.raises(block_device.DamagedBlocks, match=r"CRC32C is 0x\w{8}, was 0x\w{8} when written") as caught:
            read(lun, lba, blocks)
        assert (caught.value.lba, caught.value.writing) == (first, False)
        end = min(lba + blocks, 16)
        assert (caught.value.damage.offset, caught.value.damage.length) == (first * BLOCK, (end - first) * BLOCK)
        assert caught.value.damage.kept_in == store_factory.SNAPSHOT
        assert read_now(lun, lba, blocks) is None  # a worker looks at it a second time
    assert lun.damaged_chunks == 1
    assert read(lun, 0, 8) == content(0)
    assert read(lun, 16, 8) == content(2)
    lun.close()


@pytest.mark.parametrize("version", [ARRAYS, RECORDS])
@pytest.mark.parametrize("chunk", [0, LAST])
def test_rot_that_comes_after_the_first_read_is_found(tmp_path: Path, chunk: int, version: int) -> None:
    file = make(tmp_path, version)
    lun = store_factory.reopen(tmp_path)
    whole = content(chunk)[: 3 * BLOCK] if chunk == LAST else content(chunk)
    assert read_now(lun, chunk * PER_CHUNK + 1, 1) == whole[BLOCK : 2 * BLOCK]
    assert read(lun, chunk * PER_CHUNK, len(whole) // BLOCK) == whole
    rot(file, whole, 5)
    for lba, blocks in ((1, 1), (0, 1), (0, len(whole) // BLOCK)):  # the block itself may be good
        assert read_now(lun, chunk * PER_CHUNK + lba, blocks) is None
        with pytest.raises(block_device.DamagedBlocks):
            read(lun, chunk * PER_CHUNK + lba, blocks)
        with pytest.raises(block_device.DamagedBlocks):
            lun.read_checked(chunk * CHUNK + lba * BLOCK, [memoryview(bytearray(blocks * BLOCK))])
    lun.close()


def test_a_grain_of_a_large_chunk_is_compared_by_itself(tmp_path: Path) -> None:
    """Reads of every offset and length are those of the content, or name the one damaged grain."""
    chunk, grain = 65536, 4096
    lun = store_factory.create(tmp_path, size=3 * chunk - 3 * BLOCK, chunk_size=chunk)
    whole = random.Random(1).randbytes(lun.size)
    lun.writev(0, [memoryview(whole)[: 70_000 // BLOCK * BLOCK]])
    lun.writev(70_000 // BLOCK * BLOCK, [memoryview(whole)[70_000 // BLOCK * BLOCK :]])
    rot(thin.files(tmp_path / "s")[1], whole[: 5 * grain + 17], 5 * grain + 16)
    damaged = range(5 * grain // BLOCK, 6 * grain // BLOCK)
    dice = random.Random(2)
    for _ in range(400):
        first = dice.randrange(lun.size // BLOCK)
        count = min(dice.choice((1, 7, 8, 9, 100, 300)), lun.size // BLOCK - first)
        met = [lba for lba in range(first, first + count) if lba in damaged]
        if not met:
            assert read(lun, first, count) == whole[first * BLOCK : (first + count) * BLOCK]
            continue
        with pytest.raises(block_device.DamagedBlocks) as caught:
            read(lun, first, count)
        assert (caught.value.lba, caught.value.damage.length) == (met[0], len(met) * BLOCK)
        reported: list[Damage] = []
        lun.read_checked(first * BLOCK, [memoryview(bytearray(count * BLOCK))], reported.append)
        assert [(one.offset, one.length) for one in reported] == [(met[0] * BLOCK, len(met) * BLOCK)]
    reports = {report.offset: (report.length, report.verdict) for report in lun.verify()}
    assert reports == {
        0: (5 * grain, contract.Verdict.GOOD),
        5 * grain: (grain, contract.Verdict.DAMAGED),
        6 * grain: (10 * grain, contract.Verdict.GOOD),
        chunk: (chunk, contract.Verdict.GOOD),
        2 * chunk: (chunk - 3 * BLOCK, contract.Verdict.GOOD),
    }
    assert lun.damaged_chunks == 1
    lun.close()


def test_a_chunk_that_verify_found_damaged_is_no_longer_read(tmp_path: Path, files: Path) -> None:
    lun = store_factory.reopen(tmp_path)
    read(lun, 0, 24)
    rot(files, content(2), 99)
    list(lun.verify())
    assert lun.damaged_chunks == 1
    with pytest.raises(block_device.DamagedBlocks):
        read(lun, 16)
    rot(files, content(2), 99)  # the content is restored
    assert read(lun, 16) == content(2)[:BLOCK]
    assert lun.damaged_chunks == 0
    lun.close()


def test_reads_without_verification_serve_the_file_as_it_is(tmp_path: Path, files: Path) -> None:
    rot(files, content(1), 9)
    lun = store_factory.reopen(tmp_path)
    lun.verify_reads = False
    assert read(lun, 8, 8) != content(1)
    assert read(lun, 9, 7) == content(1)[BLOCK:]
    lun.verify_reads = True
    with pytest.raises(block_device.DamagedBlocks):
        read(lun, 9)
    lun.close()


def test_a_chunk_written_in_part_has_no_checksum_and_is_read(tmp_path: Path, files: Path) -> None:
    rot(files, b"".join(data(6, 2)), 3)
    lun = store_factory.reopen(tmp_path)
    assert read(lun, 5 * PER_CHUNK, 2) != b"".join(data(6, 2))
    lun.read_checked(5 * CHUNK, [memoryview(bytearray(BLOCK))])
    lun.close()


def test_damage_is_reported_and_read_as_it_is_on_demand(tmp_path: Path, files: Path) -> None:
    rot(files, content(1), 9)
    lun = store_factory.reopen(tmp_path)
    reported: list[Damage] = []
    buffer = bytearray(3 * CHUNK - BLOCK)
    lun.read_checked(BLOCK, [memoryview(buffer)[:99], memoryview(buffer)[99:]], reported.append)
    spoiled = bytearray(content(0)[BLOCK:] + content(1) + content(2))
    spoiled[CHUNK - BLOCK + 9] ^= 1
    assert buffer == spoiled
    assert [(damage.offset, damage.length) for damage in reported] == [(CHUNK, CHUNK)]
    lun.close()


def test_an_unreadable_chunk_is_zeroes_on_demand(tmp_path: Path, files: Path) -> None:
    io = store_factory.FaultyIO()
    lun = store_factory.reopen(tmp_path, io=io)
    io.fail("preadv")
    reported: list[Damage] = []
    buffer = bytearray(b"\xff" * CHUNK)
    lun.read_checked(CHUNK, [memoryview(buffer)], reported.append)
    assert buffer == bytes(CHUNK)
    assert [(damage.offset, damage.length) for damage in reported] == [(CHUNK, CHUNK)]
    assert "Input/output error" in reported[0].reason
    with pytest.raises(block_device.MediumError):
        lun.read_checked(CHUNK, [memoryview(buffer)])
    lun.close()


def test_a_fault_in_memory_is_healed_from_the_disk(tmp_path: Path, files: Path) -> None:
    class Memory(store_factory.FaultyIO):
        spoiled = True

        def preadv(self, fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:  # type: ignore[override]
            done = super().preadv(fd, buffers, offset, flags)
            if self.spoiled and offset >= CHUNK:
                buffers[0][7] ^= 1
            return done

        def forget(self, fd: int, offset: int, length: int) -> None:
            self.spoiled = False

    lun = store_factory.reopen(tmp_path, io=Memory())
    assert read(lun, 8, 8) == content(1)
    assert lun.damaged_chunks == 0
    lun.close()


def test_a_read_that_must_not_wait_does_not(tmp_path: Path, files: Path) -> None:
    io = store_factory.FaultyIO()
    lun = store_factory.reopen(tmp_path, io=io)
    io.fail("preadv", errno.EAGAIN)
    assert read_now(lun, 9, 1) is None
    io.before.clear()
    assert read_now(lun, 9, 1) == content(1)[BLOCK : 2 * BLOCK]
    lun.close()


def test_a_blank_block_is_one_whatever_is_checked(tmp_path: Path, files: Path) -> None:
    lun = store_factory.reopen(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: read(lun, 22, 4),
        lambda: lun.read_checked(22 * BLOCK, [memoryview(bytearray(4 * BLOCK))]),
        lambda: lun.read_checked(22 * BLOCK, [memoryview(bytearray(4 * BLOCK))], lambda _: None),
    ]
    for attempt in attempts:
        with pytest.raises(block_device.BlankBlock) as caught:
            attempt()
        assert caught.value.lba == 24
    lun.close()
    with pytest.raises(block_device.DeviceClosed):
        lun.read_checked(0, [memoryview(bytearray(BLOCK))])


def test_pieces_end_with_their_chunks() -> None:
    assert list(reader.pieces(6, 12, 8)) == [(0, 6, 2), (1, 0, 8), (2, 0, 2)]
    assert list(reader.pieces(8, 8, 8)) == [(1, 0, 8)]
    assert list(reader.pieces(3, 0, 8)) == []
