# SPDX-License-Identifier: Apache-2.0
"""The answers that wait to be sent on one connection.

Small and medium answers are built in the memory from which they are sent, an *arena*.  There header and data are side
by side, so the answers to a batch of commands are one run of bytes.  `allocate` hands the place of the data to the
device server before it is known whether there will be an answer at all.  The place stays free until `fill` is advanced
past it, so a failed attempt costs nothing.  Data that is already elsewhere (read by a worker) is queued as a view of
its own.

    arena:  | sent or queued in `_segments` | begin ... fill: written, not queued yet | free |

An arena is used again from its start once all of it was sent.  Arenas are never zeroed in between, because only bytes
that were written are ever sent.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

from target.iscsi import pdu

ARENA_LENGTH: Final = 1 << 20
"""Bytes: 32 answers of 4 KiB stay in the processor's cache, three of 256 KiB still fit."""

IOV_MAX: Final = 1024
"""Pieces that the kernel takes at once."""


class ArenaPool:
    """The unused arenas that the connections of one event loop share; it keeps at most `keep` of them."""

    def __init__(self, keep: int = 8) -> None:
        self._free: list[memoryview] = []
        self._keep = keep

    def take(self) -> memoryview:
        """Return an arena; make a new one if none is left."""
        return self._free.pop() if self._free else memoryview(bytearray(ARENA_LENGTH))

    def give(self, arena: memoryview) -> None:
        """Take an arena back."""
        if len(self._free) < self._keep and len(arena) == ARENA_LENGTH:
            self._free.append(arena)


class Output:
    """The send queue of one connection; `arena`, `fill` and `room` are public for the fast path of the commands."""

    __slots__ = ("_begin", "_pool", "_retired", "_segments", "arena", "fill", "offered", "room", "size", "taken")

    def __init__(self, pool: ArenaPool) -> None:
        self._pool = pool
        self._segments: deque[memoryview] = deque()
        self._retired: list[memoryview] = []  # full arenas that still have bytes to send
        self._begin = 0
        self.size = 0  # bytes in _segments
        self.taken = 0  # bytes that the peer took since the beginning
        self.arena: memoryview = memoryview(b"")
        self.fill = 0
        self.room = 0  # len(arena)
        self.offered: Sequence[memoryview] = ()  # the last result of `allocate`

    def __len__(self) -> int:
        """Return how many bytes wait."""
        return self.size + self.fill - self._begin

    def reserve(self, length: int) -> None:
        """Make `arena[fill : fill + length]` writable."""
        if self.fill + length <= self.room:
            return
        self._seal()
        if self.room:
            self._retired.append(self.arena)
        self.arena = self._pool.take() if length <= ARENA_LENGTH else memoryview(bytearray(length))
        self.room = len(self.arena)
        self._begin = self.fill = 0

    def allocate(self, length: int) -> Sequence[memoryview]:
        """Return room for `length` bytes of data behind a header; it stays free until `fill` is advanced."""
        start = self.fill + pdu.BHS_LENGTH
        end = start + length
        if end + 3 > self.room:  # 3: the padding
            self.reserve(pdu.BHS_LENGTH + length + 3)
            start = self.fill + pdu.BHS_LENGTH
            end = start + length
        self.offered = offered = (self.arena[start:end],)
        return offered

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Queue a copy of `data`."""
        length = len(data)
        self.reserve(length)
        self.arena[self.fill : self.fill + length] = data
        self.fill += length

    def append_view(self, data: memoryview) -> None:
        """Queue `data` itself, uncopied; it must not change until it was sent."""
        self._seal()
        self._segments.append(data)
        self.size += len(data)

    def _seal(self) -> None:
        if self.fill > self._begin:
            self._segments.append(self.arena[self._begin : self.fill])
            self.size += self.fill - self._begin
            self._begin = self.fill

    def send(self, sock: socket.socket) -> int:
        """Send as much as the socket takes, and return how many bytes still wait.  Raises OSError."""
        if not self.size:  # almost always all answers are one run of bytes
            begin, fill = self._begin, self.fill
            if begin == fill:
                return 0
            try:
                sent = sock.send(self.arena[begin:fill])
            except BlockingIOError:
                return fill - begin
            self.taken += sent
            self._begin = begin + sent
            self._recycle()
            return fill - begin - sent
        while self.size:
            try:
                sent = sock.sendmsg(self.gather(IOV_MAX))
            except BlockingIOError:
                break
            self.sent(sent)
        return len(self)

    def gather(self, most: int) -> list[memoryview]:
        """Return the next views to send, in order and at most `most`."""
        self._seal()
        segments = self._segments
        return list(segments) if len(segments) <= most else [segments[index] for index in range(most)]

    def sent(self, length: int) -> None:
        """Remove `length` bytes from the front: they were sent."""
        self.size -= length
        self.taken += length
        segments = self._segments
        if not self.size:
            segments.clear()
            self._recycle()
            return
        while length:
            first = segments.popleft()
            if len(first) > length:
                segments.appendleft(first[length:])
                break
            length -= len(first)

    def _recycle(self) -> None:
        if self._retired:
            for arena in self._retired:
                self._pool.give(arena)
            self._retired.clear()
        if self.fill == self._begin:
            self._begin = self.fill = 0

    def discard(self) -> None:
        """Forget the waiting bytes, because the peer will not take them."""
        self._seal()
        if self.size:
            self.sent(self.size)
        self.release()

    def release(self) -> None:
        """Give the arena back if no bytes wait, so that idle connections hold none."""
        if self.room and not len(self):
            self._pool.give(self.arena)
            self.arena = memoryview(b"")
            self._begin = self.fill = self.room = 0
