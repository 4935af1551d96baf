# SPDX-License-Identifier: Apache-2.0
"""Calls in place: a loop writes into the page cache on its own thread, and another thread relieves it if that waits.

To hand each write over to a worker costs more than the write itself (measured: a third of the rate with 32 writes in
flight, and more than half of it with one).  But no flag keeps such a write from waiting: ext4 has no RWF_NOWAIT for
buffered writes, and a frozen file system (fsfreeze, the snapshot of an LVM) holds up every write.  The thread then
sleeps in the kernel, uninterruptibly, until the disk answers.

So a loop makes such a call as a *call in place*, and its list `calls` has the call until it returns.  A watcher looks
at the list.  If the call takes too long, the watcher takes it off the list and continues as the loop.  When the call
returns, its thread finds the list empty.  This thread is *relieved*: it no longer belongs to a loop, hands over the
result of the call, and ends.  To take the last element off a list is one atomic step, so either the caller or the
watcher does it.

A device that made a loop wait gets no calls in place until its writes by workers have been quick.
"""

from __future__ import annotations

import threading
from threading import get_ident
from typing import Final, Protocol


class Caller(Protocol):
    """A device or a part of one, while it makes a call in place."""

    began: float
    """The `time.monotonic()` at which the call began."""
    executes: bool
    """Whether the call is the command itself, and not a preparation."""

    def distrust(self) -> None:
        """Make no call in place until calls by workers have been quick."""


class LoopThread:
    """The thread of a loop, for the devices that it calls."""

    __slots__ = ("asleep", "calls", "open", "relieved", "stirred")

    def __init__(self) -> None:
        self.open = False
        """Whether the loop can be relieved now.  Only then may a device make a call in place."""
        self.calls: list[Caller] = []
        self.relieved = False
        self.asleep = False
        """Whether the watcher sleeps until `stirred`, because no call came for a while."""
        self.stirred: Final = threading.Event()

    def enter(self, caller: Caller) -> None:
        """Begin a call in place."""
        self.calls.append(caller)
        if self.asleep:
            self.asleep = False
            self.stirred.set()

    def leave(self) -> None:
        """End the call in place, and note whether the thread was relieved meanwhile."""
        try:
            self.calls.pop()
        except IndexError:
            self.relieved = True

    def take_over(self) -> Caller | None:
        """Relieve the thread, if it is in a call, and return the caller."""
        try:
            return self.calls.pop()
        except IndexError:
            return None


LOOPS: Final[dict[int, LoopThread]] = {}
"""The threads of the loops that can be relieved, by their ident."""


def begin() -> LoopThread:
    """Make the calling thread the thread of a loop."""
    loop = LOOPS[get_ident()] = LoopThread()
    return loop


def current() -> LoopThread:
    """Return the calling thread's LoopThread; if the thread runs no loop, one that is never open and never relieved."""
    return LOOPS.get(get_ident(), _NONE)


def end(ident: int) -> None:
    """Note that the thread of that ident no longer runs a loop."""
    LOOPS.pop(ident, None)


_NONE: Final = LoopThread()
