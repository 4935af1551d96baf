# SPDX-License-Identifier: Apache-2.0
"""How many copies are futile: nodes that all write to the same grains, with the product's tracker exchange between them.

Every node writes at random times to grains that it draws from one Zipf distribution, so the nodes share as much as they
can.  A first write on a node copies, and the copy is committed a while later.  The copy is futile if another node's was
committed, or under way, before.

Messages ride on those of a lock manager: a node takes the lock of a range before it writes there, and the node that held
it sends the message that gives it up.  All nodes get that message, as corosync's CPG does it.  Asynchronous messages go
out at a steady pace.  Neither makes a write wait for a tracker.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pyroaring

from lun_backends.cluster.trackers import Exchange, Known

GRAIN = 4096  # bytes
MESSAGE = 0.0008  # seconds on the way: measured for corosync with three members
COMMIT = 0.002  # seconds from the begin of a copy to its commit
RIDING = 1000  # bytes that a lock message has room for
DATAGRAM = 60000  # bytes of an asynchronous message
RANGE = 256  # grains of one lock

_LUN, _VOLUME = uuid.UUID(int=2), uuid.UUID(int=1)


@dataclass(frozen=True)
class Load:
    """A load, and the ways in which trackers travel."""

    nodes: int = 16
    grains: int = 100_000
    skew: float = 0.99  # the exponent of Zipf's law
    writes_per_second: float = 500.0  # of each node
    seconds: float = 60.0
    riding: bool = False
    every: float = 0.0  # seconds between asynchronous messages; 0: none


@dataclass
class Result:
    """The counts of a run."""

    writes: int = 0
    first_writes: int = 0  # on their node, in this epoch: each copies
    futile: int = 0
    messages: int = 0  # that bore a tracker
    message_bytes: int = 0

    @property
    def share(self) -> float:
        """The share of futile copies among the first writes."""
        return self.futile / self.first_writes


class _Cluster:
    def __init__(self, load: Load, seed: int) -> None:
        self._load = load
        self._random = random.Random(seed)
        self._result = Result()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._claimed: set[int] = set()  # grains whose copy is under way or committed
        self._trackers = [pyroaring.BitMap64() for _ in range(load.nodes)]
        self._exchanges = [
            Exchange(_VOLUME, f"node{n}", GRAIN, lambda n=n: Known(_LUN, self._trackers[n], load.grains))  # type: ignore[misc]
            for n in range(load.nodes)
        ]
        self._holders: dict[int, int] = {}  # of the locks of ranges
        weights = itertools.accumulate((rank + 1) ** -load.skew for rank in range(load.grains))
        self._weights = list(weights)
        self._places = list(range(load.grains))
        self._random.shuffle(self._places)

    def run(self) -> Result:
        for node in range(self._load.nodes):
            self._write_later(node)
            if self._load.every:
                self._at(self._random.random() * self._load.every, lambda node=node: self._tell(node))  # type: ignore[misc]
        while self._events and self._now < self._load.seconds:
            self._now, _, call = heapq.heappop(self._events)
            call()
        counters = [exchange.counters for exchange in self._exchanges]
        self._result.messages = sum(counter.sent_messages for counter in counters)
        self._result.message_bytes = sum(counter.sent_bytes for counter in counters)
        return self._result

    def _at(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + delay, next(self._order), call))

    def _write_later(self, node: int) -> None:
        self._at(self._random.expovariate(self._load.writes_per_second), lambda: self._begin_write(node))

    def _begin_write(self, node: int) -> None:
        rank = bisect.bisect(self._weights, self._random.random() * self._weights[-1])
        grain = self._places[min(rank, len(self._places) - 1)]
        self._write_later(node)
        self._result.writes += 1
        holder = self._holders.get(grain // RANGE)
        if not self._load.riding or holder in (None, node):
            self._holders.setdefault(grain // RANGE, node)
            self._write(node, grain)
            return
        # The holder gives the lock up when what it writes is committed, and its message bears its tracker.
        assert holder is not None
        self._holders[grain // RANGE] = node

        def give_up() -> None:
            self._send(self._exchanges[holder].attach(RIDING))
            self._at(MESSAGE, lambda: self._write(node, grain))

        self._at(MESSAGE + COMMIT, give_up)

    def _write(self, node: int, grain: int) -> None:
        if grain in self._trackers[node]:
            return
        self._result.first_writes += 1
        self._result.futile += grain in self._claimed
        self._claimed.add(grain)
        self._at(COMMIT, lambda: self._trackers[node].add(grain))

    def _tell(self, node: int) -> None:
        self._send(self._exchanges[node].attach(DATAGRAM))
        self._at(self._load.every, lambda: self._tell(node))

    def _send(self, message: bytes) -> None:
        def arrive() -> None:
            for exchange in self._exchanges:
                exchange.absorb(message)

        if message:
            self._at(MESSAGE, arrive)


def run(load: Load, seed: int = 7) -> Result:
    """Run a load, the same way for the same seed."""
    return _Cluster(load, seed).run()
