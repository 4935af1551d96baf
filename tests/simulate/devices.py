# SPDX-License-Identifier: Apache-2.0
"""The simulated devices: a primary with reservations, the log, and the write-once LUNs of the pool.

`Primary` tags and aborts commands as LIO does, or as SPC-4 says.  See the facts in lun_backends/cluster/README.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from lun_backends.cluster.actions import Conflict, Reservation


@dataclass(eq=False)
class Command:
    """A read or write that the primary admitted and has not done yet."""

    nexus: Hashable
    tag: int
    land: Callable[[], None]
    refuse: Callable[[], None]
    lose: Callable[[], None]


@dataclass
class Primary:
    """The shared primary: its grains, registrations, reservation, and the commands in flight."""

    lio: bool
    exclusive: bool
    moment: Callable[[], None]  # called at the end of each PREEMPT AND ABORT
    coin: Callable[[], bool]  # whether a command that is aborted has landed
    grains: dict[int, bytes] = field(default_factory=dict)
    keys: dict[Hashable, int] = field(default_factory=dict)
    reserved: bool = False
    holder: Hashable = None
    in_flight: list[Command] = field(default_factory=list)

    def admits(self, nexus: Hashable, writes: bool) -> bool:
        """Return whether a read or write of that nexus passes the reservation."""
        return not self.reserved or nexus in self.keys or not (writes or self.exclusive)

    def tag(self) -> int:
        """Return the tag that LIO puts on a command now."""
        return self.keys.get(self.holder, 0) if self.reserved else 0

    def register(self, nexus: Hashable, new: int, old: int | None) -> None:
        """REGISTER, or REGISTER AND IGNORE EXISTING KEY.  Raise Conflict."""
        if old is not None and self.keys.get(nexus) != old:
            raise Conflict
        self.keys[nexus] = new

    def reserve(self, nexus: Hashable, own: int) -> None:
        """RESERVE for all registrants.  Raise Conflict."""
        if self.keys.get(nexus) != own:
            raise Conflict
        if not self.reserved:
            self.reserved, self.holder = True, nexus

    def preempt_and_abort(self, nexus: Hashable, own: int) -> None:
        """PREEMPT AND ABORT with service key 0.  Raise Conflict."""
        if self.keys.get(nexus) != own or not self.reserved:
            raise Conflict
        tags = set(self.keys.values())
        for command in list(self.in_flight):
            fits = command.tag in tags if self.lio else command.nexus in self.keys and command.nexus != nexus
            if fits:
                self.in_flight.remove(command)
                if self.coin():
                    command.land()
                command.refuse()
        self.keys, self.holder = {nexus: own}, nexus
        self.moment()

    def reservation(self) -> Reservation:
        """READ RESERVATION and READ KEYS."""
        return Reservation(self.reserved, frozenset(self.keys.values()))

    def restart(self) -> None:
        """Lose what is in flight; keep registrations and reservation (APTPL)."""
        for command in self.in_flight:
            if self.coin():
                command.land()
            command.lose()
        self.in_flight.clear()


@dataclass
class WriteOnce:
    """A write-once device of blocks or grains."""

    blocks: dict[int, bytes] = field(default_factory=dict)

    def put(self, at: int, data: bytes) -> bool:
        """Write a block.  Return False for BLANK CHECK."""
        if at in self.blocks:
            return False
        self.blocks[at] = data
        return True


@dataclass
class Storage:
    """The storage host's write-once side: the log and the pool."""

    log: WriteOnce = field(default_factory=WriteOnce)
    luns: dict[uuid.UUID, WriteOnce] = field(default_factory=dict)

    def read_log(self, position: int) -> tuple[bytes, ...]:
        """Return the blocks from that position up to the first blank one."""
        blocks = []
        while (block := self.log.blocks.get(position)) is not None:
            blocks.append(block)
            position += 1
        return tuple(blocks)
