# SPDX-License-Identifier: Apache-2.0
"""Export files: complete or absent, sparse, and never in the place of an existing file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.backups.pieces import ExportPiece
from target.exports import image_file
from target.service import jobs, problems
from tests.powercut import replay
from tests.target.exports.content import pieces

MIB = 1 << 20
DATA = os.urandom(MIB)


def export(
    path: Path, parts: Iterable[ExportPiece], size: int, *, overwrite: bool = False, stop_after: int = 1 << 60
) -> list[tuple[int, int]]:
    """Export, and return the reports of progress; after `stop_after` of them the export is cancelled."""
    seen: list[tuple[int, int]] = []
    image_file.export(
        parts,
        size,
        path,
        overwrite=overwrite,
        progress=lambda done, total: seen.append((done, total)),
        cancelled=lambda: len(seen) >= stop_after,
    )
    return seen


def test_file_has_data_and_holes_and_is_sparse(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    seen = export(path, pieces(DATA, 64 * MIB, DATA, 7 * MIB), 73 * MIB)
    assert path.read_bytes() == DATA + bytes(64 * MIB) + DATA + bytes(7 * MIB)
    assert path.stat().st_blocks * 512 <= 3 * MIB
    assert seen == [(MIB, 73 * MIB), (65 * MIB, 73 * MIB), (66 * MIB, 73 * MIB), (73 * MIB, 73 * MIB)]
    assert list(tmp_path.iterdir()) == [path]


def test_zeroes_in_data_take_no_space(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    data = bytes(256 << 10) + DATA[: 64 << 10] + bytes(300 << 10) + b"x" + bytes((404 << 10) - 1)
    export(path, pieces(data), len(data))
    assert path.read_bytes() == data
    assert path.stat().st_blocks * 512 <= 192 << 10


def test_existing_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    path.write_bytes(b"precious")
    with pytest.raises(problems.Problem) as caught:
        export(path, pieces(DATA), MIB)
    assert caught.value.code == "file-exists"
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("nameless", [True, False])
def test_file_created_meanwhile_is_not_replaced(
    tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        monkeypatch.setattr(image_file, "_nameless", lambda *_: False)
    path = tmp_path / "out.img"

    def slow() -> Iterator[ExportPiece]:
        path.write_bytes(b"precious")
        yield from pieces(DATA)

    with pytest.raises(problems.Problem) as caught:
        export(path, slow(), MIB)
    assert caught.value.code == "file-exists"
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_file_is_replaced_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    path.write_bytes(b"old")
    export(path, pieces(DATA), MIB, overwrite=True)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_daemon_leaves_no_file(overwrite: bool) -> None:
    """The file has no name until it is complete."""
    with replay.scratch() as directory:  # in memory, where files may be nameless
        path = directory / "out.img"

        def watched() -> Iterator[ExportPiece]:
            for piece in pieces(DATA, DATA):
                yield piece
                assert list(directory.iterdir()) == []

        export(path, watched(), 2 * MIB, overwrite=overwrite)
        assert path.read_bytes() == DATA + DATA
        assert list(directory.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_export_works_where_files_have_one_name_only(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may be without a name there, but cannot be linked to one later."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "out.img"
    export(path, pieces(DATA), MIB, overwrite=overwrite)
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(problems.Problem, match="exists already"):
        export(path, pieces(DATA), MIB)


@pytest.mark.parametrize("overwrite", [False, True])
def test_unfinished_file_is_removed_where_files_need_a_name(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refusing(path: os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no such files here")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    path = tmp_path / "out.img"
    with pytest.raises(jobs.Cancelled):
        export(path, pieces(DATA, DATA), 2 * MIB, stop_after=1)
    assert list(tmp_path.iterdir()) == []
    export(path, pieces(DATA), MIB, overwrite=overwrite)
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]


def test_place_is_checked_again_before_the_file_gets_its_name(tmp_path: Path) -> None:
    path = tmp_path / "out.img"

    def refuse() -> None:
        raise problems.file_failed(path, "it belongs to volume vol0 now")

    path.write_bytes(b"its primary")
    with pytest.raises(problems.Problem, match="belongs to volume vol0 now"):
        image_file.export(
            pieces(DATA), MIB, path, overwrite=True, progress=lambda *_: None, cancelled=lambda: False, check=refuse
        )
    assert path.read_bytes() == b"its primary"
    assert list(tmp_path.iterdir()) == [path]


def test_cancelled_export_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    path.write_bytes(b"old")
    with pytest.raises(jobs.Cancelled):
        export(path, pieces(DATA, DATA, DATA), 3 * MIB, overwrite=True, stop_after=2)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_read_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[ExportPiece]:
        yield from pieces(DATA)
        raise block_device.MediumError(2048, writing=False, reason="rot")

    with pytest.raises(block_device.MediumError):
        export(tmp_path / "out.img", failing(), 2 * MIB)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["missing/out.img", "."])
def test_refusal_names_a_place_that_takes_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(problems.Problem) as caught:
        export(tmp_path / name, pieces(DATA), MIB, overwrite=True)
    assert caught.value.code == "file-failed"
    assert str(tmp_path / name) in caught.value.message


def test_export_larger_than_the_free_space_is_refused(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    image_file.check_room(tmp_path / "out", free // 2)
    with pytest.raises(problems.Problem, match="--anyway") as refused:
        image_file.check_room(tmp_path / "out", free + (1 << 40))
    assert refused.value.code == "no-room"
    with pytest.raises(problems.Problem):
        image_file.check_room(tmp_path / "nowhere" / "out", 1)
