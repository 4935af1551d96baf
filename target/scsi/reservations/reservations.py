# SPDX-License-Identifier: Apache-2.0
"""The reservations of one unit: they keep the state, admit or refuse commands, and make each change a barrier.

A change takes these steps, in this order:

1. store the new state, if it persists;
2. put it in force for every I_T nexus at once, and raise the unit attentions;
3. for PREEMPT AND ABORT, and for an administrator (`remove`): clear the running tasks of the preempted ports, and wait
   until they have ended.

A task enters `running` before it looks at `unusual` (logical_unit.py).  So from the moment the change is in force, a
task is either refused or among those that step 3 waits for.  When PREEMPT AND ABORT returns, no task writes any longer
under an old key, and a refused task has changed nothing.

Changes are made one after the other, but wait for tasks outside the lock.  Two ports that preempt each other do not
wait for each other for ever, because a change is not made if its own task was cleared meanwhile (`transfer.go_on`).  So
each change waits only for tasks that began before it, and there is no circle.

The reservation of SPC-2 (RESERVE, RELEASE) is here, too.  It belongs to the session, excludes the persistent kind, and
ends with the session or with a reset.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lun_backends import block_device
from target.scsi import sense, transfer
from target.scsi.reservations import persistent_reservation, reservation_file
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
    """An I_T nexus; only its port and its identity matter here (`nexus.Nexus`)."""

    @property
    def port(self) -> InitiatorPort: ...


class ItlNexus(Protocol):
    """One nexus's relation to the unit (`logical_unit.ItlNexus`)."""

    @property
    def nexus(self) -> Nexus: ...

    def add_attention(self, asc: int) -> None:
        """Raise a unit attention, once."""

    def update(self) -> None:
        """Note that the rights of the nexus may have changed.  The caller holds the unit's lock."""


class Unit(Protocol):
    """The unit that has the reservations (`logical_unit.LogicalUnit`)."""

    @property
    def name(self) -> str: ...
    @property
    def lock(self) -> AbstractContextManager[object]: ...
    @property
    def itls(self) -> Sequence[ItlNexus]: ...

    def clear(self, whose: Callable[[ItlNexus], bool]) -> Sequence[ItlNexus]:
        """Clear the running tasks of the nexuses that `whose` selects; return these nexuses when the tasks have ended."""


_START_STOP_UNIT, _PREVENT_ALLOW = 0x1B, 0x1E


def harmless(cdb: bytes | memoryview) -> bool:
    """Return whether a START STOP UNIT starts or a PREVENT ALLOW allows; reservations permit these (SBC-3 table 13)."""
    return (cdb[0] == _START_STOP_UNIT and cdb[4] & 0xF1 == 0x01) or (cdb[0] == _PREVENT_ALLOW and not cdb[4] & 0x03)


class Reservations:
    """The reservations of one unit; see the module's docstring."""

    def __init__(self, unit: Unit, path: Path | None) -> None:
        """Load the state from `path`; with None, no state can persist.  Raises reservation_file.ReservationFileDamaged, OSError."""
        self.path = path
        self.state = ReservationState() if path is None else reservation_file.load(path)
        self.reserved_by: Nexus | None = None  # SPC-2's RESERVE; under unit.lock
        self._unit: Unit = weakref.proxy(
            unit
        )  # a proxy, so that the unit and its reservations form no reference circle
        self._changing = threading.Lock()  # held while a state is stored: never taken on an event loop

    def restricts(self, itl: ItlNexus) -> bool:
        """Return whether a reservation forbids anything to this nexus."""
        if self.reserved_by is not None and self.reserved_by is not itl.nexus:
            return True
        return self.state.reservation is not None and self.state.access(itl.nexus.port) is not Permission.EVERYTHING

    def check(self, itl: ItlNexus, needs: Permission, cdb: bytes | memoryview, *, despite_reserve: bool) -> None:
        """Raise ReservationConflict if a command must not run on this nexus.

        `needs` is the least that a persistent reservation must permit; with `despite_reserve` SPC-2's RESERVE does not
        matter (`command_set.Command`).
        """
        if self.reserved_by is not None and self.reserved_by is not itl.nexus and not despite_reserve:
            raise block_device.ReservationConflict
        if needs is Permission.NOTHING:
            return
        access = self.state.access(itl.nexus.port)
        if access is not Permission.EVERYTHING and access is not needs and not harmless(cdb):
            raise block_device.ReservationConflict

    def left_to(self, itl: ItlNexus) -> Permission:
        """Return the permission that both kinds of reservations leave to a nexus."""
        if self.reserved_by is not None and self.reserved_by is not itl.nexus:
            return Permission.NOTHING
        return self.state.access(itl.nexus.port)

    def change(self, task: Task, change: Callable[[ReservationState], Outcome], *, abort: bool = False) -> None:
        """Put the outcome of `change` in force; with `abort`, wait until no task of the preempted ports runs any longer.

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
            try:
                self._store(outcome.state)
            except OSError as error:
                log.error("unit %s: its reservations could not be stored: %s", unit.name, error)
                raise sense.illegal_request(Asc.INSUFFICIENT_REGISTRATION_RESOURCES) from error
            self._put(outcome)
        if outcome.preempted:
            log.warning(
                "unit %s: %s preempted", unit.name, ", ".join(sorted(port.initiator for port in outcome.preempted))
            )
        if abort and outcome.preempted:
            self._clear_tasks(outcome.preempted)

    def remove(self, whose: Callable[[InitiatorPort], bool]) -> frozenset[InitiatorPort]:
        """Remove the registrations and reservations of the ports that `whose` selects, as an administrator asks for.

        Return these ports when no task of theirs runs any longer.  Never call it on an event loop.  Raises OSError.
        """
        unit = self._unit
        with self._changing:
            outcome = persistent_reservation.remove(self.state, [port for port in self.state.keys if whose(port)])
            self._store(outcome.state)
            with unit.lock:
                self._put(outcome)
                removed = set(outcome.preempted)
                reserver = self.reserved_by
                if reserver is not None and whose(reserver.port):
                    removed.add(reserver.port)
                    self._reserve_for(None)
                    for itl in unit.itls:
                        if itl.nexus is reserver:
                            itl.add_attention(Asc.RESERVATIONS_PREEMPTED)
        if removed:
            names = ", ".join(sorted({port.initiator for port in removed}))
            log.warning("unit %s: the administrator removed the reservations of %s", unit.name, names)
            self._clear_tasks(removed)
        return frozenset(removed)

    def _put(self, outcome: Outcome) -> None:
        """Put an outcome in force for every I_T nexus at once, and raise its unit attentions."""
        with self._unit.lock:
            self.state = outcome.state
            for itl in self._unit.itls:
                asc = outcome.attentions.get(itl.nexus.port)
                if asc is not None:
                    itl.add_attention(asc)
                itl.update()

    def _clear_tasks(self, ports: Collection[InitiatorPort]) -> None:
        for itl in self._unit.clear(lambda itl: itl.nexus.port in ports):
            itl.add_attention(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)

    def _store(self, state: ReservationState) -> None:
        """Store the state, or remove the stored one, before the state is in force.  Raises OSError."""
        if self.path is not None and (state.persists or self.state.persists) and state != self.state:
            reservation_file.store(self.path, state)

    def forget(self) -> None:
        """Remove the stored state of a unit that is gone for good.  Raises OSError."""
        if self.path is not None:
            reservation_file.store(self.path, ReservationState())

    def reserve(self, itl: ItlNexus) -> None:
        """Do SPC-2's RESERVE.  Raises ReservationConflict."""
        with self._changing, self._unit.lock:
            if self._compatible(itl):
                return
            if self.state.keys or self.reserved_by not in (None, itl.nexus):
                raise block_device.ReservationConflict
            self._reserve_for(itl.nexus)

    def release(self, itl: ItlNexus) -> None:
        """Do SPC-2's RELEASE.  Do nothing unless this session has reserved the unit.  Raises ReservationConflict."""
        with self._changing, self._unit.lock:
            if self._compatible(itl):
                return
            if self.state.keys:
                raise block_device.ReservationConflict
            if self.reserved_by is itl.nexus:
                self._reserve_for(None)

    def nexus_lost(self, nexus: Nexus) -> None:
        """End the SPC-2 reservation of a session that no longer reaches the unit.  The caller holds `unit.lock`."""
        if self.reserved_by is nexus and all(itl.nexus is not nexus for itl in self._unit.itls):
            self._reserve_for(None)

    def reset(self) -> None:
        """End the SPC-2 reservation because the unit was reset; persistent reservations stay."""
        with self._unit.lock:
            self._reserve_for(None)

    def _compatible(self, itl: ItlNexus) -> bool:
        """Return whether RESERVE and RELEASE end with GOOD and change nothing, because of a persistent reservation (CRH)."""
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
