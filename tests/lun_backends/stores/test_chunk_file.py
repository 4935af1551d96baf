# SPDX-License-Identifier: Apache-2.0
"""The chunk file: its header, its slots, and reads beyond its end."""

from __future__ import annotations

import dataclasses
import errno
import uuid
from pathlib import Path

import crc32c
import pytest

from lun_backends import block_device
from lun_backends.files import storage_io
from lun_backends.stores import chunk_file, store_file
from lun_backends.stores.superblock import Superblock
from tests.lun_backends.store_factory import BLOCK, CHUNK, SNAPSHOT, VOLUME, FaultyIO

SUPERBLOCK = Superblock(SNAPSHOT, VOLUME, 64 * CHUNK, BLOCK, CHUNK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.chunks"


def create(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> chunk_file.ChunkFile:
    return chunk_file.ChunkFile.create(path, SUPERBLOCK, io)


def reopen(path: Path, superblock: Superblock = SUPERBLOCK) -> chunk_file.ChunkFile:
    return chunk_file.ChunkFile.open(path, superblock, storage_io.SYSTEM)


def test_a_new_file_has_a_header_only(path: Path) -> None:
    made = create(path)
    assert made.slots == 1
    assert made.check_header(SUPERBLOCK) == []
    made.close()
    assert path.stat().st_size == CHUNK
    opened = reopen(path)
    assert opened.slots == 1
    opened.close()


def test_the_next_free_slot_is_the_end_of_the_file(path: Path) -> None:
    made = create(path)
    made.write(5 * CHUNK, [memoryview(b"x" * BLOCK)], BLOCK)
    made.close()
    opened = reopen(path)
    assert opened.slots == 6  # a slot written in part counts
    opened.truncate()
    opened.close()
    assert path.stat().st_size == CHUNK


@pytest.mark.parametrize("now", [False, True])
def test_a_read_beyond_the_end_is_a_medium_error(path: Path, now: bool) -> None:
    made = create(path)
    made.write(CHUNK, [memoryview(b"ab" * (BLOCK // 2)), memoryview(b"c" * BLOCK)], 2 * BLOCK)
    target = memoryview(bytearray(2 * BLOCK))
    assert made.read(CHUNK, [target[:100], target[100:]], 2 * BLOCK, 0, False)
    assert bytes(target) == b"ab" * (BLOCK // 2) + b"c" * BLOCK
    whole = memoryview(bytearray(CHUNK))
    if now:
        assert not made.read(CHUNK, [whole], CHUNK, 8, True)
    else:
        with pytest.raises(block_device.MediumError, match="ends before the block") as caught:
            made.read(CHUNK, [whole], CHUNK, 8, False)
        assert caught.value.lba == 10
    with pytest.raises(block_device.MediumError):  # no file can have such a place
        made.read(1 << 63, [whole], CHUNK, 8, now)
    made.close()


def test_a_file_of_another_snapshot_or_geometry_is_refused(path: Path) -> None:
    create(path).close()
    for change, field in (({"snapshot": uuid.uuid4()}, "snapshot"), ({"chunk_size": 2 * CHUNK}, "chunk size")):
        with pytest.raises(store_file.StoreDamaged) as caught:
            reopen(path, dataclasses.replace(SUPERBLOCK, **change))
        assert caught.value.field == field


def test_a_creation_that_fails_leaves_no_file(path: Path) -> None:
    io = FaultyIO()
    io.fail("fdatasync", errno.ENOSPC)
    with pytest.raises(block_device.SpaceExhausted):
        create(path, io)
    assert not path.exists()


def test_rot_in_the_header_is_named(path: Path) -> None:
    made = create(path)
    with path.open("r+b") as file:
        file.seek(30)
        file.write(b"\xff")
    assert made.check_header(SUPERBLOCK) == ["the chunk file's header: header CRC: does not fit the content"]
    made.close()


def test_checksums_are_those_of_the_data_and_never_0(path: Path) -> None:
    data = bytes(range(256)) * (CHUNK // 256)
    made = create(path)
    made.write(CHUNK, [memoryview(data)], CHUNK)
    made.sync()
    assert made.read_from_disk(1, CHUNK) == data
    assert made.read_from_disk(1, 2 * CHUNK) == data  # the file ends there
    with pytest.raises(OSError, match="ends before"):
        made.read_from_disk(2, CHUNK)
    made.close()
    assert chunk_file.checksum([memoryview(data)[:7], memoryview(data)[7:]]) == crc32c.crc32c(data)
    assert chunk_file.checksum([]) == 1
