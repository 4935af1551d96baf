# SPDX-License-Identifier: Apache-2.0
"""The latency of a first write, here and where nodes share a map of copied chunks below a cluster-wide lock.

Both ways have the same simulated network and devices.  Each node makes one first write after the other, to places that
it draws at random.  Here, a first write is read, put and write, as `access.write` asks for them.  With the shared map, a
node takes the lock of the chunk's page of the map over corosync, reads that page anew, because another node may have
changed it, copies, makes the page durable, releases the lock, and writes.  The lock costs one message in agreed order if it
is free, and the message of its release if it is not.  The other costs of a lock manager are left out.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

MESSAGE = 0.0008  # seconds for a message in agreed order: measured for corosync with three members
READ = 0.0003  # seconds, of the primary or of a page of the map
PUT = 0.0005  # to the write-once LUN, durable; also of a page of the map
WRITE = 0.0003  # to the primary
PAGES = 64  # of the map, or of its part that is in use


@dataclass
class _Lock:
    held: bool = False
    waiting: collections.deque[Callable[[], None]] = field(default_factory=collections.deque)


class _Nodes:
    def __init__(self, nodes: int, writes: int, locked: bool, seed: int) -> None:
        self._random = random.Random(seed)
        self._locked = locked
        self._now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._locks = [_Lock() for _ in range(PAGES)]
        self.latencies: list[float] = []
        for _ in range(nodes):
            self._next(writes)

    def run(self) -> list[float]:
        while self._events:
            self._now, _, call = heapq.heappop(self._events)
            call()
        return self.latencies

    def _after(self, delay: float, call: Callable[[], None]) -> None:
        # A device or message takes its time, give or take a fifth.
        heapq.heappush(self._events, (self._now + delay * self._random.uniform(0.8, 1.2), next(self._order), call))

    def _next(self, left: int) -> None:
        if not left:
            return
        began = self._now

        def done() -> None:
            self.latencies.append(self._now - began)
            self._next(left - 1)

        if not self._locked:
            self._after(READ, lambda: self._after(PUT, lambda: self._after(WRITE, done)))
            return
        lock = self._locks[self._random.randrange(PAGES)]

        def granted() -> None:
            # The page of the map, the copy, the page again; then the lock goes, and the write need not wait for that.
            self._after(READ, lambda: self._after(READ, lambda: self._after(PUT, lambda: self._after(PUT, release))))

        def release() -> None:
            self._after(WRITE, done)
            self._after(MESSAGE, lambda: self._released(lock))

        self._after(MESSAGE, lambda: self._asked(lock, granted))

    def _asked(self, lock: _Lock, granted: Callable[[], None]) -> None:
        if lock.held:
            lock.waiting.append(granted)
        else:
            lock.held = True
            granted()

    def _released(self, lock: _Lock) -> None:
        if lock.waiting:
            lock.waiting.popleft()()
        else:
            lock.held = False


def first_writes(nodes: int, *, locked: bool, writes: int = 500, seed: int = 7) -> list[float]:
    """Return the latencies in seconds of that many first writes on each node, sorted."""
    return sorted(_Nodes(nodes, writes, locked, seed).run())
