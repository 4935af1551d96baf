# SPDX-License-Identifier: Apache-2.0
"""Files that are closed while others need their descriptors: they stay usable, and no call loses its descriptor."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from lun_backends.files import reopened, storage_io


def opened(path: Path, pool: reopened.Descriptors, text: bytes = b"") -> reopened.Reopened:
    path.write_bytes(text)
    return reopened.Reopened(path, os.open(path, os.O_RDWR), storage_io.SYSTEM, lambda _fd: None, pool)


def content(file: reopened.Reopened) -> bytes:
    with file as fd:
        return os.pread(fd, 100, 0)


def test_as_many_files_as_allowed_are_open_and_all_can_be_read(tmp_path: Path) -> None:
    pool = reopened.Descriptors(4)
    files = [opened(tmp_path / f"{number}", pool, b"%d" % number) for number in range(20)]
    for _ in range(3):
        for number, file in enumerate(files):
            assert content(file) == b"%d" % number
            assert len(pool) <= 4
    assert sum(file.fd is not None for file in files) == len(pool) == 4
    for file in files:
        file.close()
    assert len(pool) == 0


def test_a_file_that_is_used_or_not_synced_stays_open(tmp_path: Path) -> None:
    pool = reopened.Descriptors(1)
    used, dirty = opened(tmp_path / "used", pool, b"used"), opened(tmp_path / "dirty", pool)
    dirty.dirty = True
    with used as fd:
        others = [opened(tmp_path / f"{number}", pool) for number in range(5)]
        assert os.pread(fd, 4, 0) == b"used"
        assert used.fd == fd
    assert dirty.fd is not None
    dirty.dirty = False
    for file in others:
        content(file)
    assert len(pool) == 1
    assert used.fd is None
    assert dirty.fd is None
    assert content(used) == b"used"


def test_its_status_is_told_without_opening_it(tmp_path: Path) -> None:
    pool = reopened.Descriptors(1)
    first = opened(tmp_path / "first", pool, b"12345")
    for number in range(3):
        opened(tmp_path / f"{number}", pool)
    assert first.fd is None
    assert first.status().st_size == 5
    assert first.fd is None


def test_another_file_in_its_place_is_refused(tmp_path: Path) -> None:
    pool = reopened.Descriptors(1)
    first = opened(tmp_path / "first", pool, b"mine")
    for number in range(3):
        opened(tmp_path / f"{number}", pool)
    (tmp_path / "other").write_bytes(b"not mine")
    (tmp_path / "other").replace(tmp_path / "first")
    with pytest.raises(OSError, match="another file is in its place") as raised:
        content(first)
    assert raised.value.errno == errno.ESTALE
    first.close()


def test_threads_never_read_another_file(tmp_path: Path) -> None:
    pool = reopened.Descriptors(2)
    files = [opened(tmp_path / f"{number}", pool, b"%d" % number) for number in range(6)]
    wrong: list[tuple[int, bytes]] = []

    def read(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(3000):
            number = choose.randrange(len(files))
            if (found := content(files[number])) != b"%d" % number:
                wrong.append((number, found))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
