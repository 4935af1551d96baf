# SPDX-License-Identifier: Apache-2.0
"""The marks of chunks that an initiator wrote to: durable before the data, and kept over restarts."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lun_backends import block_device, write_once
from lun_backends.files import storage_io
from lun_backends.stores import local, outside, store_file
from tests.faults.storage import FaultyIO
from tests.lun_backends import store_factory
from tests.lun_backends.store_factory import BLOCK, CHUNK

PER_CHUNK = CHUNK // BLOCK


class Order(storage_io.StorageIO):
    """The plain calls, with the names of the files that were synced, in order."""

    def __init__(self) -> None:
        self.synced: list[str] = []

    def _note(self, fd: int) -> None:
        self.synced.append(Path(f"/proc/self/fd/{fd}").readlink().suffix)

    def fdatasync(self, fd: int) -> None:
        self._note(fd)
        super().fdatasync(fd)

    def sync_map(self, fd: int) -> None:
        self._note(fd)
        super().sync_map(fd)

    def fsync_directory(self, path: Path) -> None:
        self.synced.append("directory")
        super().fsync_directory(path)


def marking(path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> write_once.WriteOnce:
    """Make a write-once LUN that marks what is written to it."""
    return write_once.WriteOnce(store_factory.create(path, io=io).store, marks=True)


def test_marks_are_kept_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "s.outside"
    marks = outside.Marks(path, storage_io.SYSTEM)
    assert not path.exists()
    marks.add([3])
    marks.add([5, 3, 1 << 30])
    marks.add([8, 9, 17])
    expected = {3, 5, 8, 9, 17, 1 << 30}
    for known in (marks, outside.Marks(path, storage_io.SYSTEM)):
        assert set(known.chunks) == expected
        assert (5 in known, 4 in known) == (True, False)
    assert path.stat().st_blocks * 512 < 1 << 20  # it is sparse


def test_writes_of_initiators_are_marked_and_copies_are_not(tmp_path: Path) -> None:
    lun = marking(tmp_path)
    lun.put_many([(0, store_factory.data(1))])
    assert not (tmp_path / "s.outside").exists()
    lun.writev(2 * CHUNK, store_factory.data(2))
    lun.write_zeroes(5 * CHUNK - BLOCK, 2 * BLOCK, discard=False)
    with pytest.raises(block_device.BlockWritten):  # refused, so nothing of it is in the LUN
        lun.writev(0, store_factory.data(3))
    assert set(lun.chunks_written_outside) == {2, 4, 5}
    lun.close()
    again = store_factory.reopen(tmp_path)
    assert [chunk for chunk in range(8) if again.written_outside(chunk)] == [2, 4, 5]
    again.close()


def test_mark_is_durable_before_the_data_is_committed(tmp_path: Path) -> None:
    io = Order()
    lun = marking(tmp_path, io)
    io.synced.clear()
    lun.writev(0, store_factory.data(1))
    assert io.synced[:2] == [".outside", "directory"]
    assert set(io.synced[2:]) == {".chunks", ".map"}
    lun.close()


def test_write_whose_mark_cannot_be_stored_is_refused_and_leaves_the_block_blank(tmp_path: Path) -> None:
    io = FaultyIO()
    lun = marking(tmp_path, io)
    for operation, number, error in (
        ("open", errno.ENOSPC, block_device.SpaceExhausted),
        ("fdatasync", errno.EIO, block_device.MediumError),
    ):
        io.fail(operation, number, path="*.outside")
        with pytest.raises(error):
            lun.writev(0, store_factory.data(1))
        io.heal()
        with pytest.raises(block_device.BlankBlock):
            lun.readv(0, store_factory.data(0))
    lun.writev(0, store_factory.data(1))
    assert set(lun.chunks_written_outside) == {0}
    lun.close()


def test_marks_that_cannot_be_read_keep_the_store_closed(tmp_path: Path) -> None:
    lun = marking(tmp_path)
    lun.writev(0, store_factory.data(1))
    lun.close()
    io = FaultyIO()
    io.fail("open", errno.EACCES, path="*.outside")
    with pytest.raises(store_file.StoreUnavailable, match="outside"):
        store_factory.reopen(tmp_path, io=io)
    store_factory.reopen(tmp_path).close()  # the failed open left no lock
    local.remove(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
