# SPDX-License-Identifier: Apache-2.0
"""A thread that exchanges trackers and locks of one volume over corosync, for as long as corosync is there.

Without corosync everything is right: more copies are futile, and nodes may do the same job twice.  The thread joins when
corosync comes, and again after it went.  Trackers ride on every message about a lock; what is left goes out every
`every` seconds.  No caller ever waits for a message.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from lun_backends.cluster.trackers import Counters, Exchange
from lun_backends.corosync import cpg, locks

_REJOIN = 2.0  # seconds between tries to join
_RIDER = 4096  # bytes of trackers on a message about a lock
_MESSAGE = 60_000  # bytes of trackers on their own


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the exchange."""

    problem: str  # why there is none; empty if there is one
    members: int  # this node among them
    trackers: Counters


class Messenger:
    """The messages of one volume on this node."""

    def __init__(
        self,
        volume: uuid.UUID,
        exchange: Exchange,
        every: float = 0.1,
        listener: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to look for corosync.  From now on only the thread of the messenger uses `exchange`.

        The thread calls `listener` when a lock may have another holder.
        """
        self._group = f"wolun-{volume}"
        self._exchange = exchange
        self._every = every
        self._locks = locks.Locks()
        self._asked: queue.SimpleQueue[tuple[bool, str]] = queue.SimpleQueue()
        self._unsent: list[bytes] = []
        self._own: cpg.Member | None = None
        self._members: frozenset[cpg.Member] = frozenset()
        self._problem = "it has not joined yet"
        self._listener = listener
        self._stopping = False
        self._stops = threading.Lock()
        self._woken, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name=self._group, daemon=True)
        self._thread.start()

    def want(self, lock: str) -> None:
        """Want the lock of a job."""
        self._ask(wants=True, lock=lock)

    def release(self, lock: str) -> None:
        """Want it no longer."""
        self._ask(wants=False, lock=lock)

    def may_do(self, lock: str) -> bool:
        """Return whether this node should do that job: it holds the lock, or there is no corosync to say who does."""
        own = self._own
        return own is None or self._locks.holder(lock) == own

    @property
    def joined(self) -> bool:
        """Whether there is a corosync that says who holds a lock."""
        return self._own is not None

    @property
    def status(self) -> Status:
        """The state of the exchange now."""
        return Status(self._problem, len(self._members), self._exchange.counters)

    def close(self) -> None:
        """Leave the group and end the thread.  Closing twice is allowed."""
        with self._stops:
            if self._stopping:
                return
            self._stopping = True
            os.write(self._wake, b".")
            self._thread.join()
            os.close(self._wake)
            os.close(self._woken)

    def _ask(self, *, wants: bool, lock: str) -> None:
        with self._stops:
            if not self._stopping:
                self._asked.put((wants, lock))
                os.write(self._wake, b".")

    # The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                group = cpg.Group(self._group)
            except cpg.Unavailable as problem:
                self._problem = str(problem)
                self._sleep(_REJOIN)
                continue
            ended = "it has stopped"
            try:
                self._own = cpg.Member(group.node, os.getpid())
                self._problem = ""
                self._serve(group)
            except cpg.Unavailable as problem:
                ended = str(problem)
            finally:
                self._own, self._members = None, frozenset()
                self._locks.reset()
                self._unsent.clear()
                self._problem = ended
                group.close()
                self._listener()

    def _sleep(self, seconds: float) -> None:
        select.select([self._woken], [], [], seconds)
        self._take_wishes()

    def _take_wishes(self) -> list[tuple[locks.Kind, str]]:
        """Return the messages about locks that callers caused."""
        if select.select([self._woken], [], [], 0)[0]:
            os.read(self._woken, 4096)
        found = []
        while not self._asked.empty():
            wants, lock = self._asked.get()
            found.append(self._locks.want(lock) if wants else self._locks.release(lock))
        return found

    def _serve(self, group: cpg.Group) -> None:
        poll = select.poll()
        poll.register(group.descriptor, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        told = time.monotonic()
        while not self._stopping:
            wait = max(0.0, told + self._every - time.monotonic())
            for descriptor, events in poll.poll(wait * 1000):
                if descriptor == group.descriptor:
                    if events & (select.POLLHUP | select.POLLERR):
                        raise cpg.Unavailable("corosync has stopped")
                    for event in group.dispatch():
                        self._take(event)
            for kind, lock in self._take_wishes():
                self._say(kind, lock)
            if time.monotonic() - told >= self._every:
                told = time.monotonic()
                if len(self._members) > 1 and (rider := self._exchange.attach(_MESSAGE)):
                    self._unsent.append(locks.frame(locks.Kind.TRACKER, "", rider))
            while self._unsent and group.send(self._unsent[0]):
                del self._unsent[0]

    def _say(self, kind: locks.Kind, lock: str) -> None:
        self._unsent.append(locks.frame(kind, lock, self._exchange.attach(_RIDER)))

    def _take(self, event: cpg.Event) -> None:
        assert self._own is not None
        if isinstance(event, cpg.Members):
            self._members = event.now
            for kind, lock in self._locks.members(self._own, event.left, event.joined):
                self._say(kind, lock)
            self._listener()
            return
        try:
            kind, lock, rider = locks.unframe(event.data)
        except ValueError:
            self._exchange.counters.damaged += 1
            return
        if kind is not locks.Kind.TRACKER:
            self._locks.take(event.sender, kind, lock)
            self._listener()
        if rider and event.sender != self._own:
            self._exchange.absorb(rider)
