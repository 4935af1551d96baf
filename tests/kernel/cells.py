# SPDX-License-Identifier: Apache-2.0
"""Writes whose order a snapshot must keep, and the check that a view shows a moment of them; it runs in a guest.

    cells.py write DISK FIRST STATUS             write random cells until STATUS.stop exists
    cells.py check DISK FIRST LEAST MOST         check that the disk shows the first k writes, with k from LEAST to MOST

One write follows the other, past the page cache, and each says which write it is of which cell.  STATUS has two
numbers: how many writes have begun, and how many have ended.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

CELL, COUNT = 4096, 64
_STATUS = struct.Struct("<QQ")
_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"cellcell"


def _cells(first: int) -> Iterator[tuple[int, int]]:
    """Yield the number of each write, from 1 on, and its cell."""
    dice, number = random.Random(first), 0
    while True:
        number += 1
        yield number, first + dice.randrange(COUNT)


def _content(cell: int, number: int) -> bytes:
    return bytes(CELL) if number == 0 else (_HEAD.pack(_MAGIC, cell, number) * (CELL // _HEAD.size + 1))[:CELL]


def write(disk: str, first: int, status: str) -> None:
    """Write until the file `status`.stop exists."""
    device = os.open(disk, os.O_WRONLY | os.O_DIRECT)
    shown = os.open(status, os.O_WRONLY | os.O_CREAT, 0o600)
    page = mmap.mmap(-1, CELL)
    for number, cell in _cells(first):
        os.pwrite(shown, _STATUS.pack(number, number - 1), 0)
        page[:] = _content(cell, number)
        if os.pwrite(device, page, cell * CELL) != CELL:
            raise SystemExit(f"write {number} was short")
        os.pwrite(shown, _STATUS.pack(number, number), 0)
        if Path(status + ".stop").exists():
            return


def check(disk: str, first: int, least: int, most: int) -> None:
    """Exit with a message if the disk does not show a moment between these numbers of writes."""
    device = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, COUNT * CELL)
    if os.preadv(device, [page], first * CELL) != COUNT * CELL:
        raise SystemExit("a read was short")
    shown = {}
    for at in range(COUNT):
        data = page[at * CELL : (at + 1) * CELL]
        magic, cell, number = _HEAD.unpack_from(data)
        shown[first + at] = number = number if magic == _MAGIC else 0
        if data != _content(first + at, number) or (number and cell != first + at):
            raise SystemExit(f"cell {first + at} is torn, or misplaced")
    reached = max(shown.values())  # the last write is visible in any case
    if not least <= reached <= most:
        raise SystemExit(f"it shows write {reached}; {least} had ended before, and {most} had begun after")
    expected = dict.fromkeys(shown, 0)
    for number, cell in _cells(first):
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
