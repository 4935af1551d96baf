# SPDX-License-Identifier: Apache-2.0
"""Writes whose order a snapshot must keep, and the check that a view shows a moment of them.

A writer sends one write after the other, each to a random cell of its own region, through one node or through several in
turn.  Each cell says which write it is of.  So a view must show exactly the first *k* writes, for one *k* between those
that had ended before the snapshot was asked for and those that had begun before it was taken.  With a writer that
changes nodes after every write, this holds only if all nodes changed to the new snapshot at one moment.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests import libiscsi

CELL = 4096
_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"cluster!"
_PATIENCE = 60.0  # seconds in which a node that was cut off must write again


class Wrong(Exception):
    """A view, or a read, shows what it must not show."""


def content(cell: int, number: int) -> bytes:
    """Return the content of a cell after write `number`; 0: before the first."""
    return bytes(CELL) if number == 0 else (_HEAD.pack(_MAGIC, cell, number) * (CELL // _HEAD.size + 1))[:CELL]


def _write(lba: int) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, 0, lba, CELL // 512, 0, 0)


@dataclass
class Writer:
    """Writes to the cells from `first` on, `count` of them, of LUN `lun`, through `sessions` in turn."""

    sessions: Sequence[libiscsi.Session]
    first: int
    count: int
    seed: int
    lun: int = 0
    pause: float = 0.0  # seconds between two writes
    mortal: bool = False  # whether it ends in peace when the node is gone
    begun: int = 0
    ended: int = 0
    cells: list[int] = field(default_factory=lambda: [-1])  # the cell of each write; write 0 is none
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """End after the write that is under way.  Raise what went wrong."""
        self._stop.set()
        self._thread.join(_PATIENCE + 10)
        assert not self._thread.is_alive(), "a write never ended"
        if self.error is not None:
            raise self.error

    def wait_for(self, writes: int) -> None:
        """Return when that many further writes have ended.  Raise what went wrong."""
        wanted, deadline = self.ended + writes, time.monotonic() + _PATIENCE
        while self.ended < wanted:
            if self.error is not None:
                raise self.error
            assert time.monotonic() < deadline, f"{self.ended} writes, {wanted} expected"
            time.sleep(0.01)

    def _run(self) -> None:
        dice = random.Random(self.seed)
        try:
            while not self._stop.is_set():
                number = self.begun + 1
                cell = self.first + dice.randrange(self.count)
                self.cells.append(cell)
                self.begun = number
                self._send(self.sessions[number % len(self.sessions)], cell, content(cell, number))
                self.ended = number
                if self.pause:
                    time.sleep(self.pause)
        except libiscsi.LibiscsiError as error:
            self.error = None if self.mortal else error
        except BaseException as error:  # noqa: BLE001 - raised by the thread that stops or waits
            self.error = error

    def _send(self, session: libiscsi.Session, cell: int, data: bytes) -> None:
        """Send a write, and again after a unit attention, and while the node is not ready."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = session.command(self.lun, _write(cell * (CELL // 512)), out=data)
            if answer.status == 0:
                return
            if answer.status != 2 or answer.key not in (0x2, 0x6) or time.monotonic() > deadline:
                raise Wrong(f"a write failed: status {answer.status:#x}, sense {answer.sense.hex()}")

    def after(self, writes: int) -> dict[int, int]:
        """Return the number of the last write to each cell after that many writes."""
        last = dict.fromkeys(range(self.first, self.first + self.count), 0)
        for number in range(1, writes + 1):
            last[self.cells[number]] = number
        return last


def ended(writers: Sequence[Writer]) -> tuple[int, ...]:
    """Return how many writes of each writer have ended."""
    return tuple(writer.ended for writer in writers)


def begun(writers: Sequence[Writer]) -> tuple[int, ...]:
    """Return how many writes of each writer have begun."""
    return tuple(writer.begun for writer in writers)


def check(image: bytes, writers: Sequence[Writer], least: Sequence[int], most: Sequence[int]) -> None:
    """Check that `image` shows each writer's first *k* writes, with *k* from `least` to `most`.  Raise Wrong."""
    for writer, low, high in zip(writers, least, most, strict=True):
        shown = {cell: _number(image, cell) for cell in range(writer.first, writer.first + writer.count)}
        reached = max(shown.values())  # the last write is visible in any case
        if not low <= reached <= high:
            raise Wrong(f"it shows write {reached}; {low} had ended before, and {high} had begun after")
        expected = writer.after(reached)
        wrong = {cell: (shown[cell], expected[cell]) for cell in shown if shown[cell] != expected[cell]}
        if wrong:
            cell, (is_, must) = next(iter(wrong.items()))
            raise Wrong(
                f"{len(wrong)} cells of {writer.count} are not those after {reached} writes: cell {cell} has write {is_}, "
                f"not {must}"
            )


def _number(image: bytes, cell: int) -> int:
    """Return which write a cell shows.  Raise Wrong if it shows none as a whole."""
    data = image[cell * CELL : (cell + 1) * CELL]
    magic, at, number = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        number = 0
    if data != content(cell, number) or (number and at != cell):
        raise Wrong(f"cell {cell} is torn, or misplaced")
    return int(number)
