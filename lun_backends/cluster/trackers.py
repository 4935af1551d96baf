# SPDX-License-Identifier: Apache-2.0
"""Tracker exchange: nodes tell each other which grains are preserved, so that fewer copies are futile.  It does no I/O.

Nothing depends on it.  A grain in a message *is* committed in the write-once LUN that the message names, and stays so for
ever.  So loss, repetition and disorder are harmless, and a node without messages is right, too.  A message is taken only by
a node that is ARMED in the epoch of that LUN, for a volume with the same size of grains.

`Exchange.attach` makes a message of at most so many bytes, for any message between nodes that is sent anyway.
`Exchange.absorb` takes one.  It does not send on what it took of others.

The layout of a message, little-endian, without padding:

| bytes | field |
| --- | --- |
| 4 | magic `WTRK` |
| 2 | version, 1 |
| 2 | length of the node's name |
| 4 | size of a grain in bytes |
| 16 | UUID of the volume |
| 16 | the epoch: UUID of its write-once LUN |
| 8 | sequence: counts the messages of that node about that epoch |
| 4 | length of the grains |
| | name of the node, UTF-8 |
| | grains: a 64-bit roaring bitmap in its portable form |
| 4 | CRC32C of all before |
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import crc32c
import pyroaring

_HEAD = struct.Struct("<4sHHI16s16sQI")
_MAGIC = b"WTRK"
_VERSION = 1
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Known:
    """The tracker of a node that is ARMED: grains that are committed in LUN(e)."""

    lun: uuid.UUID
    grains: pyroaring.BitMap64  # the tracker itself, not a copy
    end: int  # grains of the volume


@dataclass(slots=True)
class Counters:
    """The counts of an exchange."""

    sent_messages: int = 0
    sent_bytes: int = 0
    sent_grains: int = 0
    taken_messages: int = 0
    taken_bytes: int = 0
    taken_grains: int = 0  # that this node did not know
    ignored: int = 0  # of another epoch or volume, or while this node was not ARMED
    damaged: int = 0
    missed: int = 0  # by the gaps in the sequences of others


class Exchange:
    """The tracker exchange of one volume on one node.  One thread at a time may use it."""

    def __init__(self, volume: uuid.UUID, node: str, grain: int, known: Callable[[], Known | None]) -> None:
        """`grain`: bytes.  `known` returns the tracker of the epoch in which the node is ARMED; None if there is none."""
        self.counters = Counters()
        self.peers: dict[str, int] = {}  # nodes heard of in this epoch, and the sequence of their last message
        self._volume = volume
        self._node = node.encode()
        self._grain = grain
        self._known = known
        self._lun: uuid.UUID | None = None
        self._told = pyroaring.BitMap64()  # grains that were sent, or came from others
        self._sequence = 0

    def attach(self, limit: int) -> bytes:
        """Return a message of at most `limit` bytes about grains that were committed since the last; empty if there is none."""
        known = self._follow()
        room = limit - _HEAD.size - len(self._node) - _CRC.size
        if known is None or room <= 0:
            return b""
        grains = known.grains - self._told  # committed: only a commit adds to a tracker
        packed = _pack(grains, room)
        if not grains:
            return b""
        self._told |= grains
        self._sequence += 1
        head = _HEAD.pack(
            _MAGIC, _VERSION, len(self._node), self._grain, self._volume.bytes, known.lun.bytes, self._sequence, len(packed)
        )  # fmt: skip
        body = head + self._node + packed
        message = body + _CRC.pack(crc32c.crc32c(body))
        self.counters.sent_messages += 1
        self.counters.sent_bytes += len(message)
        self.counters.sent_grains += len(grains)
        return message

    def absorb(self, message: bytes) -> int:
        """Take the message of another node.  Return how many grains were new; 0 for a message that is not for this node now."""
        known = self._follow()
        try:
            node, grain, volume, lun, sequence, grains = _unpack(message)
        except ValueError:
            self.counters.damaged += 1
            return 0
        if node == self._node:
            return 0
        if known is None or (volume, lun, grain) != (self._volume.bytes, known.lun.bytes, self._grain):
            self.counters.ignored += 1
            return 0
        if grains and grains.max() >= known.end:
            self.counters.damaged += 1
            return 0
        name = node.decode(errors="replace")
        last = self.peers.get(name, sequence - 1)
        self.counters.missed += max(0, sequence - last - 1)
        self.peers[name] = max(last, sequence)
        new = grains - known.grains
        known.grains.update(new)
        self._told |= grains
        self.counters.taken_messages += 1
        self.counters.taken_bytes += len(message)
        self.counters.taken_grains += len(new)
        return len(new)

    def _follow(self) -> Known | None:
        """Return the tracker of now; forget what was said of another epoch."""
        known = self._known()
        if known is not None and known.lun != self._lun:
            self._lun = known.lun
            self._told.clear()
            self._sequence = 0
            self.peers.clear()
        return known


def _pack(grains: pyroaring.BitMap64, room: int) -> bytes:
    """Return the bytes of the grains; take the last ones out of `grains` until they fit into `room` bytes."""
    while grains:
        grains.run_optimize()
        packed: bytes = grains.serialize()
        if len(packed) <= room:
            return packed
        kept = len(grains) * room // (2 * len(packed)) or min(1, len(grains) - 1)
        grains.remove_range(grains[kept], grains.max() + 1)
    return b""


def _unpack(message: bytes) -> tuple[bytes, int, bytes, bytes, int, pyroaring.BitMap64]:
    """Return node, size of a grain, volume, epoch, sequence and grains.  Raise ValueError for what is no such message."""
    if len(message) < _HEAD.size + _CRC.size or _CRC.unpack(message[-_CRC.size :])[0] != crc32c.crc32c(
        message[: -_CRC.size]
    ):
        raise ValueError("torn")
    magic, version, name, grain, volume, lun, sequence, length = _HEAD.unpack_from(message)
    if magic != _MAGIC or version != _VERSION or _HEAD.size + name + length + _CRC.size != len(message):
        raise ValueError("foreign")
    at = _HEAD.size + name
    grains = pyroaring.BitMap64.deserialize(message[at : at + length])
    return message[_HEAD.size : at], grain, volume, lun, sequence, grains
