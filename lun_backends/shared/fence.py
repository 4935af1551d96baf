# SPDX-License-Identifier: Apache-2.0
"""The reservation of a primary through its SCSI unit, over one path or several.

Each path is a nexus, and registers by itself.  The commands of a fence go by one path that is registered, the *fencing
path*; `own_key` looks for it.  PREEMPT by that path removes the other paths' registrations as well, and `register` with an
old key brings them back behind it.  A path that does not answer is left out: it sends no reads and writes either.  When it
comes back, the device refuses it, and the node joins anew with all paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lun_backends import block_device
from lun_backends.cluster.actions import Reservation
from lun_backends.initiator import reservation
from lun_backends.initiator.reservation import Type
from lun_backends.initiator.unit import Unit
from lun_backends.shared.devices import Registration


class UnitFence:
    """The reservation of the unit, for the nexus of `unit`, which must be that of the reads and writes, too.

    With `paths`, which lists the units of all paths at the moment, `unit` is only asked what the device can do.
    """

    def __init__(self, unit: Unit, paths: Callable[[], Sequence[Unit]] | None = None) -> None:
        """Use the units; their owner closes them."""
        self._unit = unit
        self._paths = paths or (lambda: [unit])

    def exclusive(self) -> bool:
        """Return True for the type 8h, False if the device has 7h only.  Raise reservation.Unsuitable."""
        return reservation.fence_type(self._unit) is Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS

    def own_key(self) -> int | None:
        """Return the key of a path that is registered, which becomes the fencing path; None if none is."""
        found: list[tuple[Unit, int]] = []

        def ask(path: Unit) -> None:
            if not found and (key := reservation.own_key(path)) is not None:
                found.append((path, key))

        self._on_each(self._paths(), ask)
        if not found:
            return None
        self._unit, key = found[0]
        return key

    def register(self, new: int, old: int | None) -> None:
        """REGISTER each path with APTPL, the fencing path first.  The others ignore their existing keys, and all do if `old` is None."""
        paths = list(self._paths())
        if old is not None:
            reservation.register(self._unit, old, new)
            paths = [path for path in paths if path is not self._unit]
        registered = self._on_each(paths, lambda path: reservation.register_and_ignore(path, new), at_least=old is None)
        if old is None:
            self._unit = registered[0]

    @staticmethod
    def _on_each(paths: Sequence[Unit], command: Callable[[Unit], None], *, at_least: bool = True) -> list[Unit]:
        """Run a command on each path.  Return those that answered; raise NoAnswer if there must be one, and none is."""
        answered: list[Unit] = []
        silent: block_device.NoAnswer | None = None
        for path in paths:
            try:
                command(path)
            except block_device.NoAnswer as error:
                silent = error
            else:
                answered.append(path)
        if at_least and not answered:
            raise silent or block_device.NoAnswer("the primary has no path")
        return answered

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
