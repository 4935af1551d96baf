# SPDX-License-Identifier: Apache-2.0
"""The gate that every ordinary write passes, so that a barrier or a read-modify-write can have the device to itself.

The barrier is that of rule 7 (lun_backends/README.md).  An ordinary write enters, does its work, and leaves.  A holder
stops new entries and waits until the running writes have left.  The guarantee: from the moment `hold` yields until it
ends, no write is inside the gate.

| gate | enter()          | enter_now()        | hold()                  |
| ---- | ---------------- | ------------------ | ----------------------- |
| open | inside           | inside, True       | held, once drained      |
| held | waits until open | outside, False     | waits until it is open  |

Entering must cost next to nothing, because every write does it.  So there is no lock on that path: an entry is an
element of a deque, whose `append` and `pop` are atomic.  A writer appends and then looks at `held`; a holder sets
`held` and then looks at the deque.  Whatever the order of the four steps, one of the two sees the other (Dekker).  A
thread inside the gate must not enter again, nor hold: if a holder came in between, the two would wait for each other.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Iterator


class WriteGate:
    """A gate that counts the writes inside, and lets one holder at a time keep all writes out."""

    __slots__ = ("_changed", "_holder", "_inside", "held", "held_seconds", "holds")

    def __init__(self) -> None:
        self.held = False
        self.holds = 0  # how often the gate was held, for the metrics
        self.held_seconds = 0.0  # the sum of the times from the stop of new writes to their release
        self._inside: collections.deque[None] = collections.deque()
        self._holder = threading.Lock()
        self._changed = threading.Condition(threading.Lock())

    def enter(self) -> None:
        """Enter the gate.  Block while it is held."""
        self._inside.append(None)
        while self.held:
            self.leave()
            with self._changed:
                while self.held:
                    self._changed.wait()
            self._inside.append(None)

    def enter_now(self) -> bool:
        """Enter the gate without waiting.  Return False, and stay outside, if it is held."""
        self._inside.append(None)
        if self.held:
            self.leave()
            return False
        return True

    def leave(self) -> None:
        """Leave the gate, once per entry."""
        self._inside.pop()
        if self.held:
            with self._changed:
                self._changed.notify_all()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let running writes leave, and keep all writes out while the context is open.  Holders wait for each other."""
        with self._holder:
            began = time.perf_counter()
            self.held = True
            try:
                with self._changed:
                    while self._inside:
                        self._changed.wait()
                yield
            finally:
                with self._changed:
                    self.held = False
                    self._changed.notify_all()
                self.holds += 1
                self.held_seconds += time.perf_counter() - began
