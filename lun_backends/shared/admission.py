# SPDX-License-Identifier: Apache-2.0
"""The commands of this node at the primary: whether they may begin, and how many are under way.

| admission | enter()                     | drain()                             |
| --------- | --------------------------- | ----------------------------------- |
| open      | inside                      | (only the driver calls it, closed)  |
| closed    | raises NotAdmitted          | returns when nobody is inside       |

It is a gate like `write_gate.WriteGate`, and as cheap: an entrant appends to a deque, then looks at `open`; the driver
sets `open`, then looks at the deque.  Whatever the order of the four steps, one of the two sees the other (Dekker).
Here nobody waits at the gate: the command ends, and its caller waits outside and begins anew.  A thread may enter more
than once.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from lun_backends import block_device

_LOOK = 0.5  # seconds between looks for a stop, which needs no wake-up


class NotAdmitted(block_device.ReservationConflict):
    """The node itself held a command back: it is not ARMED, or no longer in the epoch that the command belongs to."""


class Admission:
    """The gate in front of the primary; closed at first."""

    __slots__ = ("_empty", "_inside", "open")

    def __init__(self) -> None:
        self.open = False
        self._inside: collections.deque[None] = collections.deque()
        self._empty = threading.Condition(threading.Lock())

    @property
    def running(self) -> int:
        """How many commands, copies and views are under way."""
        return len(self._inside)

    def enter(self) -> None:
        """Count a command.  Raise NotAdmitted if the node may send none."""
        self._inside.append(None)
        if not self.open:
            self.leave()
            raise NotAdmitted

    def leave(self) -> None:
        """Count the command no longer, once per entry."""
        self._inside.pop()
        if not self.open:
            with self._empty:
                self._empty.notify_all()

    def drain(self, stopped: Callable[[], bool]) -> None:
        """Return when nobody is inside, or `stopped`.  The gate must be closed."""
        with self._empty:
            while self._inside and not stopped():
                self._empty.wait(_LOOK)
