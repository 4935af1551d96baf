# SPDX-License-Identifier: Apache-2.0
"""A complete file gets its name, and never the place of another file, with each of the ways that a file system may lack."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from target.exports import new_name


def lacking(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=["link", "renameat2", "neither"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take away what a file system may not have."""
    if request.param != "link":
        monkeypatch.setattr(os, "link", lacking)
    if request.param == "neither":
        monkeypatch.setattr(new_name, "_rename_noreplace", lacking)
    return str(request.param)


@pytest.mark.usefixtures("ways")
def test_file_gets_a_name_that_is_free(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"content")
    new_name.move(tmp_path / "old", tmp_path / "new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"new": b"content"}


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("taken", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_name_that_is_taken_is_left_alone(tmp_path: Path, taken: Callable[[Path], None]) -> None:
    (tmp_path / "old").write_bytes(b"content")
    taken(tmp_path / "new")
    before = os.lstat(tmp_path / "new").st_ino
    with pytest.raises(FileExistsError):
        new_name.move(tmp_path / "old", tmp_path / "new")
    assert os.lstat(tmp_path / "new").st_ino == before
    assert (tmp_path / "old").read_bytes() == b"content"


def test_other_errors_are_not_taken_for_a_missing_way(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        new_name.move(tmp_path / "missing", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_rename_without_replacing_works_here(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    new_name._rename_noreplace(tmp_path / "old", tmp_path / "new")
    (tmp_path / "old").touch()
    with pytest.raises(FileExistsError):
        new_name._rename_noreplace(tmp_path / "old", tmp_path / "new")
