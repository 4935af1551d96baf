# SPDX-License-Identifier: Apache-2.0
"""One unit's reservations at work: keeps the state, lets commands in or not, and makes changes of it barriers.

A change is made in this order: stored if it is to persist, then put in force for every I_T nexus at once, then unit
attentions; PREEMPT AND ABORT last clears the running tasks of those it preempted and waits until they have ended.  A task
enters `running` before it looks at `unusual` (logical_unit.py), so from the moment the change is in force a task is
either refused, or among those waited for: when PREEMPT AND ABORT returns, nothing is written any more in the name of an
old key, and what was refused has changed nothing.

Changes follow each other; who waits for tasks to end does so outside of the lock.  Two that preempt each other do not wait
for each other for ever: a change whose own task was cleared meanwhile is not made (`transfer.go_on`), so whoever
waits does so for tasks begun before its own change, and there is no circle.

The reservation of SPC-2 (RESERVE, RELEASE) is here, too.  It belongs to the session, excludes the persistent kind,
and ends with the session, and with a reset.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lun_backends import block_device
from target.scsi import sense, transfer
from target.scsi.reservations import reservation_file
from target.scsi.reservations.persistent_reservation import (
    Conflict,
    InitiatorPort,
    Outcome,
    Permission,
    ReservationState,
)
from target.scsi.sense import Asc
from target.scsi.task import Task

log = logging.getLogger(__name__)


class Nexus(Protocol):
    """An I_T nexus: its port, and that it is the same."""

    @property
    def port(self) -> InitiatorPort: ...


class ItlNexus(Protocol):
    """One nexus's relation to the unit (`logical_unit.ItlNexus`)."""

    @property
    def nexus(self) -> Nexus: ...

    def add_attention(self, asc: int) -> None:
        """Raise a unit attention, once."""

    def update(self) -> None:
        """Take a change of what the nexus may do into account.  The caller holds the unit's lock."""


class Unit(Protocol):
    """The unit whose reservations these are (`logical_unit.LogicalUnit`)."""

    @property
    def name(self) -> str: ...
    @property
    def lock(self) -> AbstractContextManager[object]: ...
    @property
    def itls(self) -> Sequence[ItlNexus]: ...

    def clear(self, whose: Callable[[ItlNexus], bool]) -> Sequence[ItlNexus]:
        """Clear the running tasks that are `whose`; return their owners when these tasks have ended."""


_START_STOP_UNIT, _PREVENT_ALLOW = 0x1B, 0x1E


def _harmless(cdb: bytes | memoryview) -> bool:
    """The forms of two commands that reservations do not forbid (SBC-3 table 13): starting, and allowing removal."""
    return (cdb[0] == _START_STOP_UNIT and cdb[4] & 0xF1 == 0x01) or (cdb[0] == _PREVENT_ALLOW and not cdb[4] & 0x03)


class Reservations:
    """See the module's docstring.  `path` is where the state persists; None: it cannot."""

    def __init__(self, unit: Unit, path: Path | None) -> None:
        """Raises reservation_file.ReservationFileDamaged, OSError."""
        self.path = path
        self.state = ReservationState() if path is None else reservation_file.load(path)
        self.reserved_by: Nexus | None = None  # SPC-2's RESERVE; under unit.lock
        self._unit: Unit = weakref.proxy(unit)  # whose we are: no circle is left when it goes
        self._changing = threading.Lock()  # held while a state is stored: never taken on an event loop

    def restricts(self, itl: ItlNexus) -> bool:
        """Whether anything is forbidden to this nexus."""
        if self.reserved_by is not None and self.reserved_by is not itl.nexus:
            return True
        return self.state.reservation is not None and self.state.access(itl.nexus.port) is not Permission.EVERYTHING

    def check(self, itl: ItlNexus, needs: Permission, cdb: bytes | memoryview, *, despite_reserve: bool) -> None:
        """Raise ReservationConflict if a command must not run on this nexus.

        `needs` is what a persistent reservation must leave to the nexus, `despite_reserve` says that SPC-2's RESERVE does
        not matter (`command_set.Command`).
        """
        if self.reserved_by is not None and self.reserved_by is not itl.nexus and not despite_reserve:
            raise block_device.ReservationConflict
        if needs is Permission.NOTHING:
            return
        access = self.state.access(itl.nexus.port)
        if access is not Permission.EVERYTHING and access is not needs and not _harmless(cdb):
            raise block_device.ReservationConflict

    def left_to(self, itl: ItlNexus) -> Permission:
        """What both kinds of reservations leave to a nexus."""
        if self.reserved_by is not None and self.reserved_by is not itl.nexus:
            return Permission.NOTHING
        return self.state.access(itl.nexus.port)

    def change(self, task: Task, change: Callable[[ReservationState], Outcome], *, abort: bool = False) -> None:
        """Put the outcome of `change` in force; with `abort` return when no task of those preempted runs any more.

        Never call it on an event loop.  Raises ReservationConflict, CheckCondition.
        """
        unit = self._unit
        with self._changing:
            transfer.go_on(task)
            if self.reserved_by is not None:  # SPC-2 5.5.1: the two kinds exclude each other
                raise block_device.ReservationConflict
            try:
                outcome = change(self.state)
            except Conflict:
                raise block_device.ReservationConflict from None
            self._store(outcome.state)
            with unit.lock:
                self.state = outcome.state
                for itl in unit.itls:
                    asc = outcome.attentions.get(itl.nexus.port)
                    if asc is not None:
                        itl.add_attention(asc)
                    itl.update()
        if outcome.preempted:
            log.warning(
                "unit %s: %s preempted", unit.name, ", ".join(sorted(port.initiator for port in outcome.preempted))
            )
        if abort and outcome.preempted:
            for itl in unit.clear(lambda itl: itl.nexus.port in outcome.preempted):
                itl.add_attention(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)

    def _store(self, state: ReservationState) -> None:
        """Make the state durable, or what was stored forgotten, before it is in force."""
        if self.path is None or not (state.persists or self.state.persists) or state == self.state:
            return
        try:
            reservation_file.store(self.path, state)
        except OSError as error:
            log.error("unit %s: its reservations could not be stored: %s", self._unit.name, error)
            raise sense.illegal_request(Asc.INSUFFICIENT_REGISTRATION_RESOURCES) from error

    def forget(self) -> None:
        """The unit is gone for good: what is stored about it goes, too.  Raises OSError."""
        if self.path is not None:
            reservation_file.store(self.path, ReservationState())

    def reserve(self, itl: ItlNexus) -> None:
        """RESERVE of SPC-2.  Raises ReservationConflict."""
        with self._changing, self._unit.lock:
            if self._compatible(itl):
                return
            if self.state.keys or self.reserved_by not in (None, itl.nexus):
                raise block_device.ReservationConflict
            self._reserve_for(itl.nexus)

    def release(self, itl: ItlNexus) -> None:
        """RELEASE of SPC-2; nothing, for who has not reserved.  Raises ReservationConflict."""
        with self._changing, self._unit.lock:
            if self._compatible(itl):
                return
            if self.state.keys:
                raise block_device.ReservationConflict
            if self.reserved_by is itl.nexus:
                self._reserve_for(None)

    def nexus_lost(self, nexus: Nexus) -> None:
        """A session does not reach the unit any more.  The caller holds `unit.lock`."""
        if self.reserved_by is nexus and all(itl.nexus is not nexus for itl in self._unit.itls):
            self._reserve_for(None)

    def reset(self) -> None:
        """The unit was reset; persistent reservations stay."""
        with self._unit.lock:
            self._reserve_for(None)

    def _compatible(self, itl: ItlNexus) -> bool:
        """Whether RESERVE and RELEASE change nothing and are GOOD, since a persistent reservation gives as much (CRH)."""
        port = itl.nexus.port
        return (
            self.state.reservation is not None
            and port in self.state.keys
            and self.state.access(port) is Permission.EVERYTHING
        )

    def _reserve_for(self, nexus: Nexus | None) -> None:
        self.reserved_by = nexus
        for itl in self._unit.itls:
            itl.update()
