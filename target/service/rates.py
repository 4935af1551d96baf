# SPDX-License-Identifier: Apache-2.0
"""The throughput of each volume over the last few seconds, from counters that only grow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from target import liveness

Counts = tuple[int, int, int]
"""Bytes read, bytes written, commands."""

PERIOD_SECONDS = 1.0
WINDOW = 5


class Rates:
    """A thread that reads the counters of every volume once a second; `look` returns them."""

    def __init__(self, look: Callable[[], Mapping[str, Counts]], beside: Callable[[], None] = lambda: None) -> None:
        """Take the function that returns the counters, and one to call once a second `beside` it."""
        self._look = look
        self._beside = beside
        self._samples: deque[tuple[float, Mapping[str, Counts]]] = deque(maxlen=WINDOW)
        self._closed = threading.Event()
        self.pulse = liveness.Pulse("rates", PERIOD_SECONDS)
        self._thread = threading.Thread(target=self._run, name="rates", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def of(self, name: str) -> tuple[float, float, float]:
        """Return bytes read, bytes written and commands, each per second; zero before there is a sample to compare with."""
        samples = list(self._samples)
        now, counters = time.monotonic(), self._look()
        if not samples or name not in counters or name not in samples[0][1]:
            return 0.0, 0.0, 0.0
        then, before = samples[0]
        read, written, commands = (
            (after - earlier) / max(now - then, 0.001)
            for after, earlier in zip(counters[name], before[name], strict=True)
        )
        return read, written, commands

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            self.pulse.beat()
            self._samples.append((time.monotonic(), self._look()))
            self._beside()
            self._closed.wait(PERIOD_SECONDS)
