# SPDX-License-Identifier: Apache-2.0
"""The reservations of units, as an administrator sees and clears them.

A host that is gone for good may leave a reservation behind that shuts out the others.  Reservations of logged-in
initiators are not cleared unless forced, because a cluster uses reservations to fence its nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from target import iscsi_name, messages
from target.configuration import settings
from target.fabrics import access
from target.scsi.logical_unit import LogicalUnit
from target.scsi.reservations.persistent_reservation import InitiatorPort
from target.service import problems
from target.service.inventory import Inventory

log = logging.getLogger(__name__)


class ReservationChanges:
    """The reservations of all units.  Every method raises Problem."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def all(self) -> list[messages.UnitReservations]:
        """Return the reservations of each unit, in the order of the LUNs."""
        self._refuse_the_kernels()
        ports = self._logged_in()
        return [_shown(number, unit, ports) for number, unit in sorted(self._inventory.scsi.luns.items())]

    def clear(self, lun: int, initiator: str | None, *, force: bool, dry_run: bool) -> None:
        """Remove the reservations and registrations of a unit, or with `initiator` only those of this initiator."""
        self._refuse_the_kernels()
        unit = self._inventory.scsi.luns.get(lun)
        if unit is None:
            raise problems.no_such_lun(lun, self._inventory.scsi.luns)
        name = None if initiator is None else iscsi_name.comparable(initiator)

        def chosen(port: InitiatorPort) -> bool:
            return name is None or iscsi_name.comparable(port.initiator) == name

        held = unit.reservations
        reserver = held.reserved_by
        ports = {
            port for port in (*held.state.keys, *([reserver.port] if reserver is not None else [])) if chosen(port)
        }
        if name is not None and not ports:
            raise problems.no_such_registration(
                access.unit_name(unit), name, sorted({port.initiator for port in held.state.keys})
            )
        used = sorted({port.initiator for port in ports & self._logged_in()})
        if used and not force:
            raise problems.in_use(f"the reservation of {access.unit_name(unit)}", used, problems.LOG_OUT)
        if not dry_run:
            with problems.translated(f"the reservations of {access.unit_name(unit)} were not cleared"):
                held.remove(chosen)

    def _logged_in(self) -> set[InitiatorPort]:
        return {nexus.port for nexus in self._inventory.scsi.nexuses}

    def _refuse_the_kernels(self) -> None:
        if self._inventory.settings.fabric is settings.Fabric.LIO:
            raise problems.kernels_reservations()


def _shown(number: int, unit: LogicalUnit, logged_in: Collection[InitiatorPort]) -> messages.UnitReservations:
    state, reserver = unit.reservations.state, unit.reservations.reserved_by
    return messages.UnitReservations(
        lun=number,
        unit=access.unit_name(unit),
        type=None if state.reservation is None else state.reservation.type.name.lower().replace("_", "-"),
        registrations=tuple(
            messages.Registration(port.initiator, port.isid, f"{key:#018x}", state.holds(port), port in logged_in)
            for port, key in sorted(state.keys.items())
        ),
        reserved_by=None if reserver is None else reserver.port.initiator,
        persists=state.persists,
        generation=state.generation,
    )
