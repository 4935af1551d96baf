# SPDX-License-Identifier: Apache-2.0
"""Answers waiting to be sent on one connection.

Small and medium answers are built where they will be sent from: in an *arena*, header and data side by side, so that
everything a batch of commands has to say is one run of bytes.  `allocate` hands the place of the data to the device
server before it is known whether there will be an answer at all; nothing is taken until `fill` is advanced past it, so
an attempt that fails costs nothing.  Data that already lies elsewhere (read by a worker) is queued as a view of its own.

    arena:  | sent or queued in `_segments` | begin ... fill: written, not queued yet | free |

An arena is used again from its start when everything of it was sent.  Arenas are never zeroed in between: only bytes
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
    """Arenas not in use, shared by the connections of one event loop; keeps at most `keep` of them."""

    def __init__(self, keep: int = 8) -> None:
        self._free: list[memoryview] = []
        self._keep = keep

    def take(self) -> memoryview:
        return self._free.pop() if self._free else memoryview(bytearray(ARENA_LENGTH))

    def give(self, arena: memoryview) -> None:
        if len(self._free) < self._keep and len(arena) == ARENA_LENGTH:
            self._free.append(arena)


class Output:
    """The send queue of one connection; `arena`, `fill` and `room` are open to the connection's fast path."""

    __slots__ = ("_begin", "_pool", "_retired", "_segments", "arena", "fill", "offered", "room", "size", "taken")

    def __init__(self, pool: ArenaPool) -> None:
        self._pool = pool
        self._segments: deque[memoryview] = deque()
        self._retired: list[memoryview] = []  # full arenas that still have bytes to send
        self._begin = 0
        self.size = 0  # bytes in _segments
        self.taken = 0  # bytes that `sent` was told of, since the beginning
        self.arena: memoryview = memoryview(b"")
        self.fill = 0
        self.room = 0  # len(arena), at hand
        self.offered: Sequence[memoryview] = ()  # what `allocate` gave last

    def __len__(self) -> int:
        """Bytes waiting."""
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
        """Room for `length` bytes of data behind a header; stays free until `fill` is advanced."""
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
        """Queue `data` itself; it must not change until it was sent."""
        self._seal()
        self._segments.append(data)
        self.size += len(data)

    def _seal(self) -> None:
        if self.fill > self._begin:
            self._segments.append(self.arena[self._begin : self.fill])
            self.size += self.fill - self._begin
            self._begin = self.fill

    def send(self, sock: socket.socket) -> int:
        """Send what the socket takes; how many bytes wait now.  Raises OSError."""
        if not self.size:  # everything is one run of bytes, as it almost always is
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
        """The next at most `most` views to send, in order."""
        self._seal()
        segments = self._segments
        return list(segments) if len(segments) <= most else [segments[index] for index in range(most)]

    def sent(self, length: int) -> None:
        """`length` bytes of what `gather` gave are gone."""
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
        """Forget what waits, since nobody will take it."""
        self._seal()
        if self.size:
            self.sent(self.size)
        self.release()

    def release(self) -> None:
        """Give the arena back when nothing waits, so that idle connections hold none."""
        if self.room and not len(self):
            self._pool.give(self.arena)
            self.arena = memoryview(b"")
            self._begin = self.fill = self.room = 0
