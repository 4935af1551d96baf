# SPDX-License-Identifier: Apache-2.0
"""Writes whose order a snapshot must keep, and the check that a view shows a moment of them; it runs in a guest.

    numbered.py write DISK WRITER STATUS            write random cells until STATUS.stop exists
    numbered.py check DISK WRITER LEAST MOST        check that the disk shows the first k writes, with k from LEAST to MOST

One write follows the other, past the page cache, and each says which write it is of which cell.  The cells of the writers
lie between each other, so all write into the same chunks.  A writer that begins goes on behind the last write that is on
the disk.  STATUS has three numbers: how many writes have begun, how many have ended, and the longest time from the end of
a write to the end of the next one, in microseconds.  A writer that finds STATUS.reset removes it and measures anew.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CELL, COUNT, WRITERS = 4096, 64, 3
PAUSE = 0.02  # seconds; without one, the writer and the daemon would leave the only processor to nothing else
_STATUS = struct.Struct("<QQQ")
_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"cellcell"


def _cells(writer: int) -> Iterator[tuple[int, int]]:
    """Yield the number of each write, from 1 on, and its cell."""
    dice, number = random.Random(writer), 0
    while True:
        number += 1
        yield number, dice.randrange(COUNT) * WRITERS + writer


def _content(cell: int, number: int) -> bytes:
    return bytes(CELL) if number == 0 else (_HEAD.pack(_MAGIC, cell, number) * (CELL // _HEAD.size + 1))[:CELL]


def _shown(disk: str, writer: int) -> dict[int, int]:
    """Return the number of the last write to each cell, 0 for none.  Exit with a message if a cell is torn."""
    device = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, COUNT * WRITERS * CELL)
    if os.preadv(device, [page], 0) != len(page):
        raise SystemExit("a read was short")
    os.close(device)
    shown = {}
    for cell in range(writer, COUNT * WRITERS, WRITERS):
        data = page[cell * CELL : (cell + 1) * CELL]
        magic, written, number = _HEAD.unpack_from(data)
        shown[cell] = number = number if magic == _MAGIC else 0
        if data != _content(cell, number) or (number and written != cell):
            raise SystemExit(f"cell {cell} is torn, or misplaced")
    return shown


def write(disk: str, writer: int, status: str) -> None:
    """Write until the file `status`.stop exists."""
    before = max(_shown(disk, writer).values())
    device = os.open(disk, os.O_WRONLY | os.O_DIRECT)
    shown = os.open(status, os.O_WRONLY | os.O_CREAT, 0o600)
    page = mmap.mmap(-1, CELL)
    longest, ended = 0, time.monotonic_ns()
    for number, cell in _cells(writer):
        if number <= before:
            continue
        os.pwrite(shown, _STATUS.pack(number, number - 1, longest), 0)
        page[:] = _content(cell, number)
        if os.pwrite(device, page, cell * CELL) != CELL:
            raise SystemExit(f"write {number} was short")
        now = time.monotonic_ns()
        longest, ended = max(longest, (now - ended) // 1000), now
        os.pwrite(shown, _STATUS.pack(number, number, longest), 0)
        if os.path.exists(status + ".reset"):  # noqa: PTH110 - pathlib costs more, once for each write
            Path(status + ".reset").unlink()
            longest = 0
        if os.path.exists(status + ".stop"):  # noqa: PTH110
            return
        time.sleep(PAUSE)


def check(disk: str, writer: int, least: int, most: int) -> None:
    """Exit with a message if the disk does not show a moment between these numbers of writes."""
    shown = _shown(disk, writer)
    reached = max(shown.values())  # the last write is visible in any case
    if not least <= reached <= most:
        raise SystemExit(f"it shows write {reached}; {least} had ended before, and {most} had begun after")
    expected = dict.fromkeys(shown, 0)
    for number, cell in _cells(writer):
        if number > reached:
            break
        expected[cell] = number
    wrong = {cell: (shown[cell], expected[cell]) for cell in shown if shown[cell] != expected[cell]}
    if wrong:
        raise SystemExit(f"{len(wrong)} cells are not those after {reached} writes: {wrong}")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        check(sys.argv[2], *map(int, sys.argv[3:6]))
