# SPDX-License-Identifier: Apache-2.0
"""The simulated devices: a primary with reservations, the log, and the write-once LUNs of the pool.

`Primary` tags and aborts commands as LIO does, or as SPC-4 says.  See the facts in lun_backends/cluster/README.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from lun_backends.cluster.actions import Conflict, Full, Reservation, Unreachable


@dataclass(eq=False)
class Command:
    """A command that the primary admitted and has not done yet: a read, a write, or one that waits for others."""

    nexus: Hashable
    tag: int
    land: Callable[[], None]
    succeed: Callable[[], None]
    refuse: Callable[[], None]
    lose: Callable[[], None]
    claimed: bool = False  # another command waits for it, and it will be refused
    over: bool = False
    resets: bool = False  # LOGICAL UNIT RESET: no other one ends it
    waits_for: set[Command] = field(default_factory=set)


@dataclass
class Primary:
    """The shared primary: its grains, registrations, reservation, and the commands in flight."""

    lio: bool
    overlap: bool  # LOGICAL UNIT RESET and PREEMPT AND ABORT wait; otherwise each is one step
    exclusive: bool
    coin: Callable[[], bool]  # whether a command that is aborted has landed
    grains: dict[int, bytes] = field(default_factory=dict)
    keys: dict[Hashable, int] = field(default_factory=dict)
    reserved: bool = False
    holder: Hashable = None
    in_flight: list[Command] = field(default_factory=list)  # not claimed
    waiting: list[Command] = field(default_factory=list)
    generation: int = 0

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
        self.generation += 1

    def reserve(self, nexus: Hashable, own: int) -> None:
        """RESERVE for all registrants.  Raise Conflict."""
        if self.keys.get(nexus) != own:
            raise Conflict
        if not self.reserved:
            self.reserved, self.holder = True, nexus

    def preempt(self, nexus: Hashable, own: int) -> None:
        """PREEMPT with service key 0.  Raise Conflict."""
        if self.keys.get(nexus) != own or not self.reserved:
            raise Conflict
        self.keys, self.holder = {nexus: own}, nexus
        self.generation += 1

    def preempt_and_abort(self, command: Command, own: int) -> None:
        """PREEMPT AND ABORT with service key 0.  Raise Conflict."""
        if self.keys.get(command.nexus) != own or not self.reserved:
            raise Conflict
        command.tag = self.tag()
        tags = set(self.keys.values())
        old, self.keys, self.holder = self.keys, {command.nexus: own}, command.nexus
        self.generation += 1
        self._end(
            command,
            lambda other: other.tag in tags if self.lio else other.nexus in old and other.nexus != command.nexus,
        )

    def reset(self, command: Command) -> None:
        """LOGICAL UNIT RESET.  The device does one after the other."""
        command.resets = True
        command.waits_for |= {other for other in self.waiting if other.resets}
        self._end(command, lambda other: not other.resets)

    def _end(self, command: Command, fits: Callable[[Command], bool]) -> None:
        """End the commands that fit, and then succeed with this one."""
        claimed = [other for other in self.in_flight if fits(other)]
        for other in claimed:
            self.in_flight.remove(other)
            other.claimed = True
            command.waits_for.add(other)
        self.in_flight.append(command)
        self.waiting.append(command)
        if not self.overlap:
            for other in claimed:
                self.complete(other, lands=self.coin())
        self._wake()

    def complete(self, command: Command, lands: bool = True) -> None:
        """Let a command come to its end, unless it has."""
        if command.over:
            return
        command.over = True
        if command in self.in_flight:
            self.in_flight.remove(command)
        if lands:
            command.land()
        if command.claimed:
            command.refuse()
        else:
            command.succeed()
        self._wake()

    def _wake(self) -> None:
        for command in list(self.waiting):
            if command in self.waiting and all(other.over for other in command.waits_for):
                self.waiting.remove(command)
                self.complete(command)

    def reservation(self) -> Reservation:
        """READ RESERVATION and READ KEYS."""
        return Reservation(self.reserved, frozenset(self.keys.values()), self.generation)

    def restart(self) -> None:
        """Lose what is in flight; keep registrations and reservation (APTPL)."""
        known = list(self.in_flight)
        for command in self.waiting:
            known += [*command.waits_for, command]
        for command in known:
            if not command.over:
                command.over = True
                if command not in self.waiting and self.coin():
                    command.land()
                command.lose()
        self.in_flight.clear()
        self.waiting.clear()


@dataclass
class WriteOnce:
    """A write-once device of blocks or grains."""

    blocks: dict[int, bytes] = field(default_factory=dict)
    full: bool = False

    def put(self, at: int, data: bytes) -> bool:
        """Write a block.  Return False for BLANK CHECK.  Raise Full."""
        if at in self.blocks:
            return False
        if self.full:
            raise Full
        self.blocks[at] = data
        return True


@dataclass
class Storage:
    """The storage host's write-once side: the log and the pool."""

    log: WriteOnce = field(default_factory=WriteOnce)
    luns: dict[uuid.UUID, WriteOnce] = field(default_factory=dict)

    def lun(self, lun: uuid.UUID) -> WriteOnce:
        """Return a write-once LUN.  Raise Unreachable if the storage host took it away."""
        if lun not in self.luns:
            raise Unreachable("there is no such LUN")
        return self.luns[lun]

    def read_log(self, position: int) -> tuple[bytes, ...]:
        """Return the blocks from that position up to the first blank one."""
        blocks = []
        while (block := self.log.blocks.get(position)) is not None:
            blocks.append(block)
            position += 1
        return tuple(blocks)
