# SPDX-License-Identifier: Apache-2.0
"""Signs of life: the daemon's loops give them, and a thread watches them.

The end of a loop ends the process (`ending.py`).  A loop that stands still does not end, so each loop beats its `Pulse`
once in a while, even if it has nothing to do.  The `Watchdog` reports to systemd that the process is alive for as long
as all loops beat.  If one stands still, systemd ends the process and starts it again (`WatchdogSec`).  Without systemd,
the log names the loop that stands still, and its place.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from target import systemd

log = logging.getLogger(__name__)

UNWATCHED_SECONDS: Final = 60.0
"""The limit if systemd does not watch."""

_FRAMES: Final = 8
"""The number of calls, the innermost first, that the log shows of a loop that stands still."""


class Pulse:
    """The sign of life of the loop on the thread `name`, which beats at least every `period` seconds."""

    __slots__ = ("_last", "name", "period")

    def __init__(self, name: str, period: float = 1.0) -> None:
        self.name = name
        self.period = period
        self._last = time.monotonic()

    def beat(self) -> None:
        """Note that the loop moves; only its own thread calls this."""
        self._last = time.monotonic()

    def overdue(self, now: float) -> float:
        """Return by how many seconds a beat is late; not above 0 if none is."""
        return now - self._last - self.period


class Watchdog:
    """A thread that watches `pulses`, from `start` to `close`.

    A loop stands still if its beat is late by half of `seconds`, the time after which systemd ends a process that sent
    no sign of life.
    """

    def __init__(
        self, pulses: Iterable[Pulse], seconds: float | None, notify: Callable[[str], None] = systemd.notify
    ) -> None:
        self._pulses = tuple(pulses)
        self._seconds = UNWATCHED_SECONDS if seconds is None else seconds
        self._notify = notify
        self._standing: set[Pulse] = set()
        self._stopping = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stopping(self) -> None:
        """Note that the loops end, because the daemon stops: how long that takes is limited elsewhere (`ending.py`)."""
        self._stopping = True

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self, now: float) -> bool:
        """Return whether all loops move at `now` (time.monotonic), and report to systemd if they do."""
        standing = {pulse for pulse in self._pulses if pulse.overdue(now) > self._seconds / 2}
        if self._stopping:
            standing = set()
        for pulse in standing - self._standing:
            log.error("the loop of %s stands still: %s", pulse.name, _place(pulse.name))
        for pulse in self._standing - standing:
            log.warning("the loop of %s moves again", pulse.name)
        self._standing = standing
        if not standing:
            self._notify(systemd.ALIVE)
        return not standing

    def _run(self) -> None:
        while not self._closed.is_set():
            self.look(time.monotonic())
            self._closed.wait(self._seconds / 4)


def _place(name: str) -> str:
    """Return the innermost calls of the thread of that name, on one line."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0) if thread.name == name else None
        calls: list[str] = []
        while frame is not None and len(calls) < _FRAMES:
            calls.append(f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})")
            frame = frame.f_back
        if calls:
            return " < ".join(calls)
    return "there is no such thread"
