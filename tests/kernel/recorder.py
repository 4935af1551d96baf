# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.kernel.recorder serve ...`: wolun as a storage host that records what was on its primary at each fence.

It runs in a guest, or with its files in $WOLUN_LAB_MEDIUM.  One process may serve the primary and another one the log, or one process both.  The first FENCED
record of an epoch ends the fence: since LOGICAL UNIT RESET nobody may have written, and nobody may write before that
record can be read.  So the process with the log copies the medium, and holds all writes until the record is in the log:

| path below MEDIUM  | content                                                                                |
| ------------------ | -------------------------------------------------------------------------------------- |
| `image`            | the medium of the primary                                                              |
| `fences/NAME`      | the medium at the fence of that snapshot; `#EPOCH` for an epoch without a snapshot     |
| `in-flight/NAME`   | only if a write was under way at the end of the fence, so the fence did not wait for it |
| `delay`            | the most milliseconds that a write waits before it reaches the medium; every tenth does |
| `hold`             | as long as it is there, no write reaches the medium; the first one makes `held`         |

Copy-on-write takes no part in it: the copies are those of a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lun_backends import flat
from lun_backends.block_device import Buffers
from lun_backends.cluster import records
from target import cli
from target.service import pool

MEDIUM = Path(os.environ.get("WOLUN_LAB_MEDIUM", "/run/medium"))
IMAGE, LOCK = MEDIUM / "image", MEDIUM / "lock"
DELAY, HOLD, HELD = MEDIUM / "delay", MEDIUM / "hold", MEDIUM / "held"
FENCES, IN_FLIGHT, NAMES = MEDIUM / "fences", MEDIUM / "in-flight", MEDIUM / "names"
_CELL = 4096
_ZEROES = bytes(_CELL)
_RECORDING = threading.Lock()  # of two FENCED records of an epoch, the second one must not be taken for the first


@contextlib.contextmanager
def _lock() -> Iterator[int]:
    # A descriptor of its own for each write: then the lock of one thread does not count as that of another.
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    with _lock() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not random.randrange(10):
            with contextlib.suppress(FileNotFoundError, ValueError):
                time.sleep(random.uniform(0, int(DELAY.read_text())) / 1000)
        while HOLD.exists():
            HELD.touch()
            time.sleep(0.05)
        yield


class Primary(flat.Flat):
    """The primary; its writes say that they are under way."""

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        """Leave every write to a worker, because it may be delayed."""
        return False

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        with _writing():
            super().writev(offset, buffers, fua=fua)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        with _writing():
            super().write_zeroes(offset, length, discard=discard, fua=fua)


class Log(pool._Log):
    """The log; it copies the medium behind a fence."""

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        block = b"".join(buffers)
        record = records.decode(block, offset // pool.RECORD, uuid.UUID(bytes=block[24:40]))
        with _RECORDING:
            name = NAMES / str(record.epoch)
            if record.type is records.Type.FENCED and not (FENCES / name.read_text()).exists():
                self._end_fence(name.read_text(), offset, buffers)
                return
            super().writev(offset, buffers, fua=fua)
            if record.type is records.Type.EPOCH:
                _store(name, (record.name or f"#{record.epoch}").encode())

    def _end_fence(self, name: str, offset: int, buffers: Buffers) -> None:
        with _lock() as lock:
            quiet = True
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                quiet = False
            content = IMAGE.read_bytes()
            super().writev(offset, buffers)  # raises if another node was first
        if not quiet:
            _store(IN_FLIGHT / name, b"")
        _store(FENCES / name, content)


def _store(path: Path, content: bytes) -> None:
    """Make a file, sparse, so that it is there as a whole or not at all."""
    unfinished = MEDIUM / f"unfinished-{os.getpid()}"
    with unfinished.open("wb") as file:
        for at in range(0, len(content), _CELL):
            if (cell := content[at : at + _CELL]) != _ZEROES:
                file.seek(at)
                file.write(cell)
        file.truncate(len(content))
    unfinished.rename(path)


def main() -> None:
    """Serve with the recording devices in place of the usual ones."""
    for directory in (FENCES, IN_FLIGHT, NAMES):
        directory.mkdir(parents=True, exist_ok=True)
    flat.Flat = Primary  # type: ignore[misc]
    pool._Log = Log  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    main()
