# SPDX-License-Identifier: Apache-2.0
"""Replacing a small file: after any failure or cut, the file has the old content or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lun_backends.files import small_file
from tests.faults.storage import FaultyIO

OLD, NEW = b"old\n", b"the new content\n"
ORDER = ["open", "pwritev", "ftruncate", "fdatasync", "rename", "fsync_directory"]


class Ordered(FaultyIO):
    """A `StorageIO` that lists the operations in order."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def _meet(self, operation: str, name: str) -> None:
        self.order.append(operation)
        super()._meet(operation, name)

    def _meet_fd(self, operation: str, fd: int) -> None:
        self._meet(operation, str(fd))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


def test_the_content_is_synced_before_the_name_and_the_name_before_the_return(path: Path) -> None:
    io = Ordered()
    small_file.replace(path, NEW, io=io)
    assert path.read_bytes() == NEW
    assert [operation for operation in io.order if operation != "unlink"] == ORDER
    assert not small_file.beside(path).exists()


@pytest.mark.parametrize("operation", ORDER)
def test_a_failure_leaves_one_of_the_two(path: Path, operation: str) -> None:
    io = Ordered()
    io.fail(operation, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        small_file.replace(path, NEW, io=io)
    assert path.read_bytes() == (NEW if operation == "fsync_directory" else OLD)
    io.heal()
    small_file.replace(path, NEW, io=io)  # over the leftovers of the first attempt
    assert path.read_bytes() == NEW


def test_prepare_leaves_the_file_alone_until_commit(path: Path) -> None:
    small_file.prepare(path, NEW)
    assert path.read_bytes() == OLD
    assert small_file.beside(path).read_bytes() == NEW
    small_file.commit(path)
    assert path.read_bytes() == NEW


def replace_in(room: Path, path: Path, content: bytes) -> None:
    small_file.prepare(path, content, room=room, slack=8192)
    small_file.commit(path, room=room)
    assert path.read_bytes().rstrip() == content.rstrip()
    assert not small_file.beside(path).exists()


def test_two_files_take_turns_and_keep_their_space(path: Path) -> None:
    room = path.with_name("room")
    room.write_bytes(bytes(20_000))
    inodes = {path.stat().st_ino, room.stat().st_ino}
    taken = path.stat().st_blocks
    for content in (NEW, OLD, NEW):
        replace_in(room, path, content)
        assert {path.stat().st_ino, room.stat().st_ino} == inodes
        assert path.stat().st_blocks * 512 >= 8192
    assert path.stat().st_blocks + room.stat().st_blocks > taken
    room.write_bytes(bytes(1 << 20))
    replace_in(room, path, NEW)
    assert path.read_bytes() == NEW  # so much is given back


def test_room_is_made_by_the_first_commit(path: Path) -> None:
    room = path.with_name("room")
    replace_in(room, path, NEW)
    assert room.read_bytes() == OLD


def test_file_in_force_is_never_written_to_by_another_name(path: Path) -> None:
    room = path.with_name("room")
    room.hardlink_to(path)
    small_file.beside(path).hardlink_to(path)
    small_file.prepare(path, NEW, room=room)
    assert path.read_bytes() == OLD
    small_file.commit(path, room=room)
    assert path.read_bytes() == NEW


def test_room_survives_a_content_that_could_not_be_written(path: Path) -> None:
    room = path.with_name("room")
    room.write_bytes(bytes(20_000))
    io = FaultyIO()
    io.fail("fdatasync", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        small_file.prepare(path, NEW, io=io, room=room)
    assert room.stat().st_size == 20_000
    assert path.read_bytes() == OLD


def test_file_whose_exchange_may_not_be_durable_is_not_written_to(path: Path) -> None:
    room = path.with_name("room")
    old = path.with_name("old")
    old.hardlink_to(path)
    io = FaultyIO()
    small_file.prepare(path, NEW, io=io, room=room)
    io.fail("fsync_directory", times=1)
    with pytest.raises(OSError, match="Input/output"):
        small_file.commit(path, io, room=room)
    small_file.prepare(path, b"third", io=io, room=room)
    assert old.read_bytes() == OLD


def test_file_system_that_cannot_exchange_renames(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lun_backends.files.storage_io._renameat2", None)
    room = path.with_name("room")
    replace_in(room, path, NEW)
    assert not room.exists()


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_file_gets_the_requested_mode(path: Path, mode: int) -> None:
    mask = os.umask(0o077)
    try:
        small_file.replace(path, NEW, mode)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == mode


def test_a_file_beside_that_is_linked_elsewhere_is_not_written_to(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    small_file.beside(path).symlink_to(victim)
    small_file.replace(path, NEW)
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == NEW


def test_remove_is_durable_and_needs_no_file(path: Path) -> None:
    io = Ordered()
    small_file.remove(path, io)
    assert not path.exists()
    assert io.order == ["unlink", "fsync_directory"]
    small_file.remove(path, io)
