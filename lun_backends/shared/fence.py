# SPDX-License-Identifier: Apache-2.0
"""The reservation of a primary through its SCSI unit."""

from __future__ import annotations

from collections.abc import Sequence

from lun_backends.cluster.actions import Reservation
from lun_backends.initiator import reservation
from lun_backends.initiator.reservation import Type
from lun_backends.initiator.unit import Unit
from lun_backends.shared.devices import Registration


class UnitFence:
    """The reservation of the unit, for the nexus of `unit`, which must be that of the reads and writes, too."""

    def __init__(self, unit: Unit) -> None:
        """Use `unit`; its owner closes it."""
        self._unit = unit

    def exclusive(self) -> bool:
        """Return True for the type 8h, False if the device has 7h only.  Raise reservation.Unsuitable."""
        return reservation.fence_type(self._unit) is Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS

    def own_key(self) -> int | None:
        """Return the key of this nexus; None if it is not registered."""
        return reservation.own_key(self._unit)

    def register(self, new: int, old: int | None) -> None:
        """REGISTER with APTPL; REGISTER AND IGNORE EXISTING KEY if `old` is None."""
        if old is None:
            reservation.register_and_ignore(self._unit, new)
        else:
            reservation.register(self._unit, old, new)

    def reservation(self, *, exclusive: bool) -> Reservation:
        """READ RESERVATION and READ KEYS.  Raise Unsuitable if something else reserved the unit with another type."""
        held = reservation.read_reservation(self._unit)
        if held is not None and held.type is not _type(exclusive):
            raise reservation.Unsuitable(
                f"{self._unit.address} has a reservation of type {held.type:X}h, which is not this cluster's: end it, and keep"
                " fence_scsi and the like away from this device"
            )
        read = reservation.read_keys(self._unit)
        return Reservation(held is not None, frozenset(read.keys), read.generation)

    def reserve(self, own: int, *, exclusive: bool) -> None:
        """RESERVE for all registrants."""
        reservation.reserve(self._unit, own, _type(exclusive))

    def preempt(self, own: int, *, exclusive: bool) -> None:
        """PREEMPT with service key 0."""
        reservation.preempt(self._unit, own, 0, _type(exclusive))

    def reset_logical_unit(self) -> None:
        """LOGICAL UNIT RESET."""
        self._unit.reset_logical_unit()

    def registrations(self) -> Sequence[Registration]:
        """READ FULL STATUS."""
        return [Registration(found.initiator, found.key) for found in reservation.read_full_status(self._unit)]


def _type(exclusive: bool) -> Type:
    return Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS if exclusive else Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS
