# SPDX-License-Identifier: Apache-2.0
"""Makes logical units with what they remember from one start of the daemon to the next, in their volume's directory.

<state directory>/volumes/<name>/reservations/<unit>.json    persistent reservations (target/scsi/reservations/reservation_file.py)
<state directory>/volumes/<name>/atomic.journal              an atomic write under way (lun_backends/atomic_journal.py)
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from lun_backends import atomic_journal, block_device
from lun_backends.volumes import volume
from target.scsi import logical_unit
from target.scsi.reservations import persistent_reservation, reservation_file
from target.service import problems, volumes


class UnitState:
    """What units remember under one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def _directory(self, owner: volume.Volume) -> Path:
        return volumes.volume_directory(owner.name, self._state_dir)

    def _reservations(self, owner: volume.Volume, unit: uuid.UUID) -> Path:
        return self._directory(owner) / "reservations" / f"{unit}.json"

    def unit(
        self,
        owner: volume.Volume,
        device: block_device.BlockDevice,
        identity: uuid.UUID,
        kind: logical_unit.UnitKind,
        name: str,
        journal: atomic_journal.AtomicJournal | None = None,
        physical_block_size: int | None = None,
    ) -> logical_unit.LogicalUnit:
        """A unit of the volume.  Raises Problem, OSError."""
        try:
            return logical_unit.LogicalUnit(
                device,
                uuid=identity,
                kind=kind,
                name=name,
                reservation_file=self._reservations(owner, identity),
                journal=journal,
                physical_block_size=physical_block_size,
            )
        except reservation_file.Damaged as error:
            raise problems.refused(
                f"{name} is not served", str(error), "a reservation forgotten would let in whom it keeps out"
            ) from error

    def journal(self, owner: volume.Volume) -> atomic_journal.AtomicJournal:
        """The journal of the volume's primary; finishes what a crash interrupted, so nobody must read or snapshot before.

        Raises BlockDeviceError, OSError.
        """
        return atomic_journal.AtomicJournal(self._directory(owner) / "atomic.journal", owner.device)

    def forget(self, owner: volume.Volume, units: Iterable[uuid.UUID]) -> None:
        """Units are gone for good.  Raises OSError."""
        for identity in units:
            reservation_file.store(self._reservations(owner, identity), persistent_reservation.State())
