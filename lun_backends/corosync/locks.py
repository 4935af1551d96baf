# SPDX-License-Identifier: Apache-2.0
"""Who does which job: a small lock manager on messages that reach all nodes in one order.  It does no I/O.

A lock is a hint.  If messages are lost, or a cluster is split, two nodes hold the same lock: they do the same job, and the
log says which of them counts.

Every member keeps a queue for each lock, in the order of the messages; its first is the holder.  A member that left is
out of all queues.  When members join, all queues are made anew: the new ones have heard nothing yet, and the two parts of
a cluster that was split have heard different things.  Everybody says again what it holds or wants; those who hold come first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

from lun_backends.corosync.cpg import Member

_HEAD = struct.Struct("<4sBH")
_MAGIC = b"WLCK"


class Kind(IntEnum):
    """The kind of a message."""

    TRACKER = 0  # nothing about locks
    WANT = 1
    HOLD = 2  # said again, when members joined
    RELEASE = 3


def frame(kind: Kind, lock: str, rider: bytes) -> bytes:
    """Return a message about a lock, with `rider`: what rides on it."""
    name = lock.encode()
    return _HEAD.pack(_MAGIC, kind, len(name)) + name + rider


def unframe(data: bytes) -> tuple[Kind, str, bytes]:
    """Return kind, lock and rider of a message.  Raise ValueError for what is none."""
    if len(data) < _HEAD.size:
        raise ValueError("too short")
    magic, kind, length = _HEAD.unpack_from(data)
    end = _HEAD.size + length
    if magic != _MAGIC or end > len(data):
        raise ValueError("no message of wolun")
    return Kind(kind), data[_HEAD.size : end].decode(), data[end:]


class Locks:
    """The locks of a group, as this member knows them."""

    def __init__(self) -> None:
        """Begin with no member."""
        self._holding: dict[str, list[Member]] = {}  # by HOLD, before those by WANT
        self._waiting: dict[str, list[Member]] = {}
        self._wanted: set[str] = set()

    def want(self, lock: str) -> tuple[Kind, str]:
        """Want a lock.  Return the message to send."""
        self._wanted.add(lock)
        return Kind.WANT, lock

    def release(self, lock: str) -> tuple[Kind, str]:
        """Want it no longer.  Return the message to send."""
        self._wanted.discard(lock)
        return Kind.RELEASE, lock

    def holder(self, lock: str) -> Member | None:
        """Return who holds a lock."""
        queue = [*self._holding.get(lock, ()), *self._waiting.get(lock, ())]
        return queue[0] if queue else None

    def take(self, sender: Member, kind: Kind, lock: str) -> None:
        """Take a message, of this member, too."""
        if kind is Kind.WANT and sender in self._holding.get(lock, ()):
            return
        if kind is not Kind.WANT:
            self._remove(lock, {sender})
        if kind is not Kind.RELEASE:
            queue = (self._holding if kind is Kind.HOLD else self._waiting).setdefault(lock, [])
            if sender not in queue:
                queue.append(sender)

    def members(self, own: Member, left: Iterable[Member], joined: Iterable[Member]) -> list[tuple[Kind, str]]:
        """Follow a change of the members.  Return the messages to send."""
        gone = set(left)
        for lock in {*self._holding, *self._waiting}:
            self._remove(lock, gone)
        if not set(joined):
            return []
        again = [(Kind.HOLD if self.holder(lock) == own else Kind.WANT, lock) for lock in sorted(self._wanted)]
        self.reset()
        return again

    def reset(self) -> None:
        """Forget the group, and keep what this member wants."""
        self._holding.clear()
        self._waiting.clear()

    def _remove(self, lock: str, members: set[Member]) -> None:
        for queues in (self._holding, self._waiting):
            if lock in queues:
                queues[lock] = [member for member in queues[lock] if member not in members]
                if not queues[lock]:
                    del queues[lock]
