# SPDX-License-Identifier: Apache-2.0
"""Raw images that go into a pipe: whole, in order, and ended by the reader or by a cancellation."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.backups.pieces import ExportPiece
from target.exports import stream
from target.service import jobs, problems
from tests.target.exports.content import pieces

MIB = 1 << 20
DATA = os.urandom(MIB)


def read_in_a_thread(path: Path) -> tuple[threading.Thread, list[bytes]]:
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(path.read_bytes()))
    thread.start()
    return thread, got


def test_fifo_gets_all_bytes_and_holes_as_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    seen: list[tuple[int, int]] = []
    thread, got = read_in_a_thread(path)
    parts = (3 * MIB, DATA, MIB + 512, DATA, DATA, 5)
    size = sum(part if isinstance(part, int) else len(part) for part in parts)
    stream.to_fifo(pieces(*parts), size, path, progress=lambda *step: seen.append(step), cancelled=lambda: False)
    thread.join()
    assert got[0] == bytes(3 * MIB) + DATA + bytes(MIB + 512) + DATA + DATA + bytes(5)
    assert seen[-1] == (size, size)
    assert path.is_fifo()


@pytest.mark.parametrize("reader", [False, True])
def test_cancellation_ends_the_wait_for_a_reader_and_for_room(tmp_path: Path, reader: bool) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    looks = itertools.count()
    with contextlib.ExitStack() as closing:
        if reader:  # it never reads
            closing.callback(os.close, os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        with pytest.raises(jobs.Cancelled):
            stream.to_fifo(
                pieces(*itertools.repeat(DATA, 4)),
                4 * MIB,
                path,
                progress=lambda *_: None,
                cancelled=lambda: next(looks) > 3,
            )


def test_reader_that_goes_away_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def parts() -> Iterator[ExportPiece]:
        os.close(reading)
        yield from pieces(DATA)

    with pytest.raises(problems.Problem, match="its reader has gone"):
        stream.to_fifo(parts(), MIB, path, progress=lambda *_: None, cancelled=lambda: False)


def test_only_a_fifo_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "file").touch()
    kinds = {name: stream.is_fifo(tmp_path / name) for name in ("fifo", "link", "file", "missing", "file/below")}
    assert kinds == {"fifo": True, "link": True, "file": False, "missing": False, "file/below": False}
