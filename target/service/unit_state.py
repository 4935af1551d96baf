# SPDX-License-Identifier: Apache-2.0
"""The state that logical units keep over restarts, in their volume's directory.

<directory>/reservations/<unit>.json    persistent reservations (target/scsi/reservations/reservation_file.py)
<directory>/atomic.journal              an atomic write under way (lun_backends/atomic_journal.py)
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from lun_backends import atomic_journal, block_device
from lun_backends.files import format as format_
from lun_backends.initiator.part import Part, Role
from lun_backends.volumes import interface
from target.scsi import logical_unit
from target.scsi.commands import table
from target.scsi.reservations import persistent_reservation, reservation_file
from target.service import problems

_ROLES = {
    logical_unit.UnitKind.PRIMARY: Role.PRIMARY,
    logical_unit.UnitKind.WRITE_ONCE: Role.SNAPSHOT,
    logical_unit.UnitKind.SNAPSHOT_VIEW: Role.VIEW,
}


class UnitState:
    """A maker of units that keep their state in their volume's directory."""

    def _reservations(self, owner: interface.Volume, unit: uuid.UUID) -> Path:
        return owner.directory / "reservations" / f"{unit}.json"

    def unit(
        self,
        owner: interface.Volume,
        device: block_device.BlockDevice,
        identity: uuid.UUID,
        kind: logical_unit.UnitKind,
        name: str,
        journal: atomic_journal.AtomicJournal | None = None,
        physical_block_size: int | None = None,
        *,
        write_protected: bool = False,
        role: Role | None = None,
    ) -> logical_unit.LogicalUnit:
        """Return a unit of the volume, in the role that is usual for its kind unless `role` says another.  Raise Problem, OSError."""
        try:
            return logical_unit.LogicalUnit(
                device,
                uuid=identity,
                kind=kind,
                name=name,
                commands=table.for_unit,
                reservation_file=self._reservations(owner, identity),
                journal=journal,
                physical_block_size=physical_block_size,
                write_protected=write_protected,
                part=Part(
                    owner.uuid,
                    owner.name,
                    role or _ROLES[kind],
                    identity,
                    device.block_size,
                    owner.chunk_size,
                    write_once=device.write_once,
                    power_loss=device.write_once and not device.commits_in_memory,
                ),
            )
        except reservation_file.ReservationFileNewer as error:
            raise problems.refused(f"{name} is not served", str(error), format_.REMEDY) from error
        except reservation_file.ReservationFileDamaged as error:
            raise problems.refused(
                f"{name} is not served",
                str(error),
                "prefer the backup: without the file, initiators that a reservation keeps out can write",
            ) from error

    def journal(self, owner: interface.Volume) -> atomic_journal.AtomicJournal:
        """Finish an atomic write that a crash interrupted, and return the journal of the volume's primary.

        Call it before the first read and the first snapshot.  Raise BlockDeviceError, OSError.
        """
        return atomic_journal.AtomicJournal(owner.directory / "atomic.journal", owner.device)

    def forget(self, owner: interface.Volume, units: Iterable[uuid.UUID]) -> None:
        """Delete the state of units that are deleted.  Raise OSError."""
        for identity in units:
            reservation_file.store(self._reservations(owner, identity), persistent_reservation.ReservationState())
