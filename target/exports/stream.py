# SPDX-License-Identifier: Apache-2.0
"""A raw image that is written from front to back into a pipe, as a FIFO or for the standard output of a command.

Holes are written as zeroes.  The writer waits for the reader, and meanwhile looks for a request to stop.  A reader that
goes away ends the export.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lun_backends.backups.pieces import ExportPiece
from target.service import jobs, problems

_POLL = 0.1  # seconds
_PIPE = 1 << 20  # bytes that the kernel keeps for the reader, if it lets us
_ZEROES = memoryview(bytes(1 << 20))


def is_fifo(path: Path) -> bool:
    """Return whether there is a FIFO at `path`, perhaps behind a link."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


def to_fifo(
    pieces: Iterable[ExportPiece],
    size: int,
    path: Path,
    *,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Wait for a reader of the FIFO at `path`, and write the pieces to it.

    Raises jobs.Cancelled, Problem, and the errors of reading the pieces.
    """
    try:
        fd = _opened(path, cancelled)
    except OSError as error:
        raise problems.write_failed(path, error) from error
    try:
        to_pipe(pieces, size, fd, path, progress=progress, cancelled=cancelled)
    except BrokenPipeError:
        raise problems.file_failed(path, "its reader has gone") from None
    finally:
        os.close(fd)


def _opened(path: Path, cancelled: Callable[[], bool]) -> int:
    while True:
        if cancelled():
            raise jobs.Cancelled
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(_POLL)  # no process has opened it for reading yet
            continue
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise problems.file_failed(path, "it is no longer a FIFO")
        return fd


def to_pipe(
    pieces: Iterable[ExportPiece],
    size: int,
    fd: int,
    name: Path,
    *,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write the pieces, which make up `size` bytes, to the pipe `fd`; refusals call it `name`.

    Raises jobs.Cancelled, Problem, BrokenPipeError (the reader has gone), and the errors of reading the pieces.
    """
    prepare(fd)
    try:
        done = 0
        for piece in pieces:
            if piece.data is not None:
                _fill(fd, piece.offset - done, cancelled)
                send(fd, piece.data, cancelled)
                done = piece.offset + piece.length
            elif cancelled():
                raise jobs.Cancelled
            progress(piece.offset + piece.length, size)
        _fill(fd, size - done, cancelled)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise problems.write_failed(name, error) from error


def prepare(fd: int) -> None:
    """Let `send` write to the pipe `fd`."""
    os.set_blocking(fd, False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)


def _fill(fd: int, length: int, cancelled: Callable[[], bool]) -> None:
    while length > 0:
        send(fd, _ZEROES[:length], cancelled)
        length -= len(_ZEROES)


def send(fd: int, data: memoryview, cancelled: Callable[[], bool]) -> None:
    """Write all data to a pipe that does not block.  Raises jobs.Cancelled, BrokenPipeError, OSError."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while len(data):
        if cancelled():
            raise jobs.Cancelled
        if poll.poll(_POLL * 1000):
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(fd, data) :]
