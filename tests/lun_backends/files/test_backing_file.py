# SPDX-License-Identifier: Apache-2.0
"""Making the file of a primary, and holding it open."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from lun_backends import refused
from lun_backends.files import backing_file

SIZE = 1 << 20


def test_a_new_file_is_sparse_and_private(tmp_path: Path) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    status = (tmp_path / "disk").stat()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 < SIZE
    assert status.st_mode & 0o777 == 0o600


def test_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"precious")
    with pytest.raises(backing_file.CannotOpen, match="exists already"):
        backing_file.create(tmp_path / "disk", SIZE)
    assert (tmp_path / "disk").read_bytes() == b"precious"


def test_a_missing_directory_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(backing_file.CannotOpen, match=r"no/where: No such file.*; check the path") as caught:
        backing_file.create(tmp_path / "no" / "where", SIZE)
    assert isinstance(caught.value, refused.Refused)


@pytest.mark.parametrize("size", [2 * SIZE, 1 << 63, 1 << 90])
def test_a_file_that_would_be_too_large_is_refused_and_not_left_behind(tmp_path: Path, size: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))  # as a file system with such a limit answers
    try:
        with pytest.raises(backing_file.CannotOpen, match=f"no file can have {size} bytes there; give a smaller size"):
            backing_file.create(tmp_path / "new", size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_descriptor_is_closed_with_its_last_reference(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    descriptor = backing_file.Descriptor(fd)
    running = descriptor
    del descriptor
    os.fstat(fd)
    del running
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_the_file_system_is_the_one_that_the_kernel_names() -> None:
    with open("/proc/self/status") as file:
        assert backing_file.file_system(file.fileno()) == "proc"


def test_a_file_has_no_physical_blocks(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        assert backing_file.physical_block_size(file.fileno()) == 0
