# SPDX-License-Identifier: Apache-2.0
"""Limits of commands and bytes per second: token buckets, and the gate in front of a unit's handlers.

A bucket fills with time, up to its burst.  A command may start while the bucket is not empty, and then takes what it costs: the
level may fall below zero, so a command larger than the burst passes, too, and the next one waits for longer.  A gate has the
buckets that a command needs: those of its unit and of its initiator.

Only handlers of limited units stand behind a gate, so commands to other units cost nothing.  A command that finds no tokens raises
WouldBlock, and the fabric keeps it until its turn comes (`target.portal.turns`).  While commands wait, later ones queue up behind
them.  A thread that may wait for a disk never waits here: it takes the tokens in advance.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from target.scsi.task import Task

CHARGED: Final = frozenset(
    {
        *(0x08, 0x28, 0x88, 0xA8),  # READ
        *(0x0A, 0x2A, 0x8A, 0xAA, 0x2E, 0x8E, 0xAE),  # WRITE, WRITE AND VERIFY
        *(0x2F, 0x8F, 0xAF),  # VERIFY
        *(0x41, 0x93, 0x42, 0x89, 0x9C, 0x83),  # WRITE SAME, UNMAP, COMPARE AND WRITE, WRITE ATOMIC, EXTENDED COPY
    }
)
"""The opcodes that count: those that read or change blocks."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Commands and bytes per second, each None for any number, and the seconds of them that may come at once."""

    iops: int | None
    bandwidth: int | None
    burst: float


class Bucket:
    """The tokens of one limit.  Thread-safe.  It counts the commands that had to wait for it, and for how many seconds."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.clock = clock
        self.waiting = 0
        self.limited = 0
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._filled = clock()
        self._commands = self._most(rate.iops)
        self._bytes = self._most(rate.bandwidth)

    def _most(self, rate: int | None) -> float:
        return 0.0 if rate is None else max(1.0, rate * self.rate.burst)

    def wait(self, now: float) -> float:
        """Return the seconds until a command may start: 0 or less if it may now."""
        with self._lock:
            self._fill(now)
            waits = [0.0]
            for rate, level in ((self.rate.iops, self._commands), (self.rate.bandwidth, self._bytes)):
                if rate is not None and level < 1.0:
                    waits.append((1.0 - level) / rate)
            return max(waits)

    def take(self, length: int, now: float) -> None:
        """Take the tokens of a command that moves `length` bytes."""
        with self._lock:
            self._fill(now)
            self._commands -= 1
            self._bytes -= length

    def waited(self, seconds: float) -> None:
        """Count a command that had to wait."""
        with self._lock:
            self.limited += 1
            self.seconds += seconds

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._filled)
        self._filled = max(now, self._filled)
        rate = self.rate
        if rate.iops is not None:
            self._commands = min(self._most(rate.iops), self._commands + passed * rate.iops)
        if rate.bandwidth is not None:
            self._bytes = min(self._most(rate.bandwidth), self._bytes + passed * rate.bandwidth)


class Gate:
    """The buckets in front of a unit's handlers, for one initiator."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = tuple(buckets)
        self.clock = self.buckets[0].clock

    def wait(self, now: float) -> float:
        """Return the seconds until a command may start: 0 or less if it may now."""
        return max(bucket.wait(now) for bucket in self.buckets)

    def passes(self, task: Task) -> bool:
        """Take the tokens of a command and return True, unless it or one before it must wait."""
        now = self.clock()
        if any(bucket.waiting for bucket in self.buckets) or self.wait(now) > 0:
            return False
        self.charge(task, now)
        return True

    def charge(self, task: Task, now: float) -> None:
        """Take the tokens of a command, whether or not there are enough."""
        length = sum(map(len, task.data_out)) or task.expected_in
        for bucket in self.buckets:
            bucket.take(length, now)

    def queue(self, change: int) -> None:
        """Note that a command waits (1), or no longer does (-1)."""
        for bucket in self.buckets:
            bucket.waiting += change

    def waited(self, seconds: float) -> None:
        """Count a command that had to wait."""
        for bucket in self.buckets:
            bucket.waited(seconds)
