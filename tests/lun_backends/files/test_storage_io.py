# SPDX-License-Identifier: Apache-2.0
"""The plain system calls, and the loops over calls that stop short."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lun_backends.files import storage_io
from lun_backends.files.storage_io import SYSTEM

CONTENT = bytes(range(256)) * 20


class ShortIO(storage_io.StorageIO):
    """A `StorageIO` that moves at most `most` bytes per call."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls = 0

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        self.calls += 1
        return super().preadv(fd, [buffers[0][: self.most]], offset, flags)

    def pwritev(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        self.calls += 1
        return super().pwritev(fd, [buffers[0][: self.most]], offset)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = SYSTEM.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    SYSTEM.close(fd)


def pieces(content: bytes, *cuts: int) -> list[memoryview]:
    view = memoryview(bytearray(content))
    bounds = [0, *cuts, len(content)]
    return [view[begin:end] for begin, end in itertools.pairwise(bounds)]


@pytest.mark.parametrize("most", [1, 7, 255, 4096, 1 << 20])
def test_short_transfers_go_on_where_they_stopped(fd: int, most: int) -> None:
    content = CONTENT[: min(len(CONTENT), 300 * most)]
    io = ShortIO(most)
    storage_io.write_all(io, fd, pieces(content, 10, 100, 101), 3, len(content))
    assert os.pread(fd, len(content) + 9, 0) == bytes(3) + content
    target = pieces(bytes(len(content)), 1, 50)
    assert storage_io.read_all(io, fd, target, 3, len(content)) == len(content)
    assert b"".join(target) == content
    assert io.calls >= 2 * (len(content) // most)


def test_more_buffers_than_a_call_accepts_are_moved_in_several_calls(fd: int) -> None:
    buffers = [memoryview(bytearray([value % 251])) for value in range(3 * storage_io.IOV_MAX)]
    storage_io.write_all(SYSTEM, fd, buffers, 0, len(buffers))
    target = [memoryview(bytearray(1)) for _ in buffers]
    assert storage_io.read_all(SYSTEM, fd, target, 0, len(target)) == len(target)
    assert b"".join(target) == b"".join(buffers)


def test_a_read_stops_at_the_end_of_the_file(fd: int) -> None:
    os.pwrite(fd, CONTENT[:1000], 0)
    assert storage_io.read_all(SYSTEM, fd, pieces(bytes(2000), 600), 0, 2000) == 1000


def test_space_behind_the_end_is_set_aside_and_freed(fd: int) -> None:
    os.pwrite(fd, CONTENT[:4096], 0)
    try:
        SYSTEM.set_aside(fd, 4096, 1 << 20)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        pytest.skip("the file system cannot set space aside")
    assert os.fstat(fd).st_size == 4096
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    SYSTEM.ftruncate(fd, 4096)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20


def test_fallocate_raises_the_kernels_error(fd: int) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        storage_io.fallocate(fd, storage_io.FALLOC_KEEP_SIZE, 0, 0)
    assert caught.value.errno == errno.EINVAL


def test_stored_words_are_in_the_mapping_at_once(fd: int) -> None:
    SYSTEM.ftruncate(fd, 8192)
    SYSTEM.reserve(fd, 4096, 4096)
    mapping = SYSTEM.map(fd, 8192)
    SYSTEM.store(fd, b"abc", 4096)
    assert mapping[4096:4099] == b"abc"
    SYSTEM.sync_map(fd)
    assert os.pread(fd, 3, 4096) == b"abc"
    with pytest.raises(TypeError):
        mapping[4096] = 0
    mapping.close()


def test_descriptors_are_not_inherited(fd: int) -> None:
    assert not os.get_inheritable(fd)
