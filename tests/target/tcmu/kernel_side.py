# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of a TCMU command ring, in a file in memory (Linux: drivers/target/target_core_user.c).

| offset    | content                                       |
| --------- | --------------------------------------------- |
| 0         | the mailbox                                   |
| `RING_AT` | the ring, `ring_size` bytes                   |
| then      | the data area, `DATA_SIZE` bytes              |

The kernel side adds entries at the head, and reads the responses between its own tail and the one in the mailbox.  A `Ring`
kicks with a write of four bytes to the descriptor.  On a file that write would land in the mailbox, so the offset of the
descriptor is behind the region from the start, and the length of the file tells the number of kicks.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

VERSION = 2
OUT_OF_ORDER, READ_LEN, TMR = 0x1, 0x2, 0x4
PAD, COMMAND, MANAGEMENT = 0, 1, 2
UNKNOWN_OP_FLAG, READ_LEN_FLAG = 0x1, 0x2

RING_AT = 128
DATA_SIZE = 64 << 10
ENTRY_SIZE = 112  # sizeof(struct tcmu_cmd_entry)
IOVS_AT = 48

_MAILBOX = struct.Struct("=HHIII")
_TAIL = struct.Struct("=I")
_TAIL_AT = 64
_HEAD_AT = 12
_HEADER = struct.Struct("=IHBB")  # length and operation, command id, flags of the kernel, flags of the user
_RESPONSE = struct.Struct("=IHBBBxxxI96s")
_KICK_LENGTH = 4
_CHECK_CONDITION = 2


@dataclass(frozen=True, slots=True)
class Response:
    """The response that a slot of the ring holds; like the kernel, it has sense data only with CHECK CONDITION."""

    command_id: int
    status: int
    flags: int
    read_len: int
    sense: bytes


class KernelSide:
    """A region with an empty ring whose first entry comes at offset `start` of the ring."""

    def __init__(
        self,
        ring_size: int = 1024,
        *,
        start: int = 0,
        version: int = VERSION,
        flags: int = OUT_OF_ORDER | READ_LEN | TMR,
    ) -> None:
        self.ring_size = ring_size
        self.data_at = RING_AT + ring_size
        self.length = self.data_at + DATA_SIZE
        self.descriptor = os.memfd_create("ring")
        os.ftruncate(self.descriptor, self.length)
        os.lseek(self.descriptor, self.length, os.SEEK_SET)
        self._map = mmap.mmap(self.descriptor, self.length, mmap.MAP_SHARED)
        self._head = self._cleaned = start
        _MAILBOX.pack_into(self._map, 0, version, flags, RING_AT, ring_size, start)
        _TAIL.pack_into(self._map, _TAIL_AT, start)

    def close(self) -> None:
        """Give the region back."""
        self._map.close()
        os.close(self.descriptor)

    @property
    def kicks(self) -> int:
        """The number of kicks since the start."""
        return (os.fstat(self.descriptor).st_size - self.length) // _KICK_LENGTH

    @property
    def tail(self) -> int:
        """The tail in the mailbox."""
        return int(_TAIL.unpack_from(self._map, _TAIL_AT)[0])

    def data(self, offset: int, length: int) -> bytes:
        """Return bytes of the data area."""
        return self._map[self.data_at + offset : self.data_at + offset + length]

    def fill(self, offset: int, data: bytes) -> None:
        """Put bytes into the data area."""
        self._map[self.data_at + offset : self.data_at + offset + len(data)] = data

    def fits(self, cdb: bytes = bytes(16), buffers: int = 1) -> bool:
        """Return whether a command and the PAD before it fit into the free part of the ring."""
        needed = _command_size(cdb, buffers)
        to_the_end = self.ring_size - self._head
        if needed > to_the_end:
            needed += to_the_end
        return needed < self.ring_size - (self._head - self._cleaned) % self.ring_size

    def put(self, command_id: int, cdb: bytes, *buffers: tuple[int, int]) -> None:
        """Add a command with these (offset, length) of the data area, after a PAD if the end of the ring is too near."""
        length = _command_size(cdb, len(buffers))
        if length > self.ring_size - self._head:
            self.pad(self.ring_size - self._head)
        at = RING_AT + self._head
        self._map[at : at + length] = bytes(length)
        cdb_at = at + max(ENTRY_SIZE, IOVS_AT + 16 * len(buffers))
        _HEADER.pack_into(self._map, at, length | COMMAND, command_id, 0, 0)
        struct.pack_into("=IIII", self._map, at + 8, len(buffers), 0, 0, 0)
        struct.pack_into("=Q", self._map, at + 24, cdb_at)
        for index, (offset, size) in enumerate(buffers):
            struct.pack_into("=QQ", self._map, at + IOVS_AT + 16 * index, self.data_at + offset, size)
        self._map[cdb_at : cdb_at + len(cdb)] = cdb
        self._publish(length)

    def pad(self, length: int) -> None:
        """Add a PAD."""
        self.put_header(PAD, length)

    def put_header(self, operation: int, length: int, claimed: int | None = None) -> None:
        """Add an entry that is only a header, which may claim another length than it has."""
        _HEADER.pack_into(
            self._map, RING_AT + self._head, (length if claimed is None else claimed) | operation, 0, 0, 0
        )
        self._publish(length)

    def manage(self, *ids: int) -> None:
        """Add a note that these commands are aborted."""
        at = RING_AT + self._head
        length = max(ENTRY_SIZE, -(-(32 + 2 * len(ids)) // 8) * 8)
        self._map[at : at + length] = bytes(length)
        _HEADER.pack_into(self._map, at, length | MANAGEMENT, 0, 0, 0)
        struct.pack_into("=B3xI", self._map, at + 8, 1, len(ids))
        struct.pack_into(f"={len(ids)}H", self._map, at + 32, *ids)
        self._publish(length)

    def flags_at(self, offset: int) -> int:
        """Return the user's flags of the entry at that offset of the ring."""
        return self._map[RING_AT + offset + 7]

    def responses(self) -> list[Response]:
        """Return the responses since the last call, in the order of their slots."""
        answers = []
        while self._cleaned != self.tail:
            at = RING_AT + self._cleaned
            word, command_id, _, flags, status, read_len, sense = _RESPONSE.unpack_from(self._map, at)
            if word & 7 == COMMAND:
                answers.append(
                    Response(command_id, status, flags, read_len, sense if status == _CHECK_CONDITION else b"")
                )
            self._cleaned = (self._cleaned + (word & ~7)) % self.ring_size
        return answers

    def _publish(self, length: int) -> None:
        self._head = (self._head + length) % self.ring_size
        struct.pack_into("=I", self._map, _HEAD_AT, self._head)


def _command_size(cdb: bytes, buffers: int) -> int:
    return max(ENTRY_SIZE, IOVS_AT + 16 * buffers) + -(-len(cdb) // 8) * 8
