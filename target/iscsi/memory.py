# SPDX-License-Identifier: Apache-2.0
"""The memory for the data of commands: one amount for all sessions of a portal, shared fairly.

A session takes memory for the data that an initiator sends, and for large data that it asked for.  It also takes memory
for requests ahead of their turn, and for answers that the initiator does not take.  Half of the memory is divided into
equal parts, one for each possible session, and no other session can take such a part.  The other half is lent: a
session may borrow as much as is left at the time.  So one busy session gets half of it, and each of n busy sessions
gets one part in n + 1.

A session that gets no memory must not wait for ever:

* a command waits if the target has not asked for its data yet, because such data takes no memory;
* a command whose data comes unasked ends with TASK SET FULL, and its initiator sends it again (SAM-5 5.3.1);
* a command that has waited for `PATIENCE` seconds goes first: until it has its memory, no other session may borrow;
* if memory has been short for `SHORT_SECONDS`, the portal drops the session whose data has been on its way longest.
"""

from __future__ import annotations

from typing import Final

DEFAULT_BYTES: Final = 256 << 20
LARGE: Final = 1 << 20
"""Bytes of data-in from which on a command takes memory before it runs.  `Limits.output_bytes` bounds smaller ones."""
PATIENCE: Final = 2
SHORT_SECONDS: Final = 10


class Memory:
    """The memory of one portal, for at most `sessions` sessions.

    Belongs to the thread of the portal's loop, but any thread may read `total`, `used` and `refusals`.
    """

    def __init__(self, total: int = DEFAULT_BYTES, sessions: int = 256) -> None:
        self.total = total
        self.used = 0
        self.own = total // 2 // sessions
        """The bytes that each session may hold in any case."""
        self.loans = total - self.own * sessions
        self.unlent = self.loans  # may fall below 0, because answers are counted only after they were made
        self.refusals = 0
        """The number of commands that ended with TASK SET FULL since the start."""
        self.released = False
        """Whether memory became free while an account waits.  The portal resets it, and lets the waiting ones try again."""
        self.waiting: dict[Account, None] = {}  # longest first
        self.first: Account | None = None  # it has waited for PATIENCE
        self._missed = False  # since the last second
        self._seconds_short = 0
        self._seconds_waited: tuple[Account | None, int] = (None, 0)

    def missed(self) -> None:
        """Note that a session did not get memory."""
        self._missed = True

    def second(self) -> bool:
        """Let a second pass; return whether memory has been short for SHORT_SECONDS."""
        longest = next(iter(self.waiting), None)
        before, seconds = self._seconds_waited
        seconds = seconds + 1 if longest is not None and longest is before else 0
        self._seconds_waited = longest, seconds
        self.first = longest if seconds >= PATIENCE else None
        self._seconds_short = self._seconds_short + 1 if self._missed or longest is not None else 0
        self._missed = False
        return self._seconds_short >= SHORT_SECONDS


class Account:
    """The memory that one session holds."""

    __slots__ = ("answers", "held", "memory")

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.held = 0  # bytes, those of `answers` included
        self.answers = 0  # bytes of answers that the peer did not take yet

    @property
    def room(self) -> int:
        """The most bytes that the session may hold now."""
        memory = self.memory
        if memory.first is not None and memory.first is not self:
            return memory.own
        return memory.own + max(0, memory.unlent)

    def take(self, length: int) -> bool:
        """Take `length` bytes, or return False if they are more than the session may hold.

        A command gets its memory in any case if no session has borrowed any.
        """
        memory = self.memory
        wanted = self.held + length
        if wanted > memory.own and wanted > self.room and memory.unlent < memory.loans:
            memory.missed()
            return False
        self._change(length)
        return True

    def give(self, length: int) -> None:
        """Give `length` bytes back."""
        if length:
            self._change(-length)

    def count_answers(self, waiting: int) -> None:
        """Note that answers of `waiting` bytes wait for the peer."""
        before, self.answers = self.answers, waiting
        self._change(waiting - before)

    def _change(self, more: int) -> None:
        memory = self.memory
        own = memory.own
        before = self.held
        self.held = after = before + more
        memory.used += more
        if after > own or before > own:  # only a part of the change is lent, if one of the two is less
            memory.unlent += max(before, own) - max(after, own)
        if more < 0 and memory.waiting:
            memory.released = True

    def wait(self) -> None:
        """Note that a command of the session waits for memory."""
        self.memory.waiting.setdefault(self)

    def stop_waiting(self) -> None:
        """Note that no command of the session waits for memory."""
        memory = self.memory
        memory.waiting.pop(self, None)
        if memory.first is self:
            memory.first = None
            memory.released = bool(memory.waiting)

    def close(self) -> None:
        """Forget the answers, because the peer is gone.  Each command gives its memory back when it ends."""
        self.stop_waiting()
        self.count_answers(0)
