# SPDX-License-Identifier: Apache-2.0
"""The errors of requests to a volume.  Each names the volume, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lun_backends import block_device, damage, refused
from lun_backends.files import os_error


@dataclass(eq=False)
class VolumeError(refused.Refused):
    """A request to volume `volume` cannot be carried out; `reason` says why, `remedy` what to do."""

    volume: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.volume}: {self.reason}; {self.remedy}"


class BadName(VolumeError):
    """The name is not allowed."""


class BadLabel(VolumeError):
    """The labels are not allowed."""


class SnapshotExists(VolumeError):
    """A snapshot of that name exists already."""


class NoSuchSnapshot(VolumeError):
    """There is no snapshot of that name."""


class SnapshotFailed(VolumeError):
    """The snapshot was not taken.  The volume is as before."""


class TooManySnapshots(VolumeError):
    """The volume has as many snapshots as the policy allows."""


class NoSpaceLeft(VolumeError):
    """The snapshot would certainly run out of space."""


class SnapshotHeld(VolumeError):
    """The snapshot is held, so nobody may delete it."""


class SnapshotCloned(VolumeError):
    """The snapshot has a clone, so nobody may delete it."""


def cloned(volume: str, snapshot: str, clones: Sequence[str]) -> SnapshotCloned:
    """Return the refusal that names the clones of a snapshot."""
    remedy = " and ".join(f"`wolun clone delete {name}`" for name in clones)
    return SnapshotCloned(volume, f"{snapshot!r} has the clone {', '.join(clones)}", f"delete it first: {remedy}")


class CloneExists(VolumeError):
    """A clone of that name exists already."""


class NoSuchClone(VolumeError):
    """There is no clone of that name."""


class CloneRefused(VolumeError):
    """The clone was not made."""


class DeletionStopped(VolumeError):
    """A deletion was cancelled.  The snapshot can no longer be read; `resume_deletions` continues the deletion."""


class DamageFound(VolumeError):
    """The request would pass on blocks that are damaged or cannot be read."""


def damage_in(volume: str, snapshot: str, found: damage.Found, block_size: int, remedy: str) -> DamageFound:
    """Return the refusal that names the damaged blocks of a snapshot; `found` must not be empty."""
    reason = f"damage in {found.blocks(block_size)} of {snapshot!r}: {found.extents[0].reason}"
    return DamageFound(volume, reason, remedy)


class StoreRefused(VolumeError):
    """The snapshots of the volume cannot be kept where the settings say."""


class WrittenOutside(VolumeError):
    """The request would pass on blocks that an initiator wrote to a write-once LUN."""


class SnapshotDoubtful(VolumeError):
    """The snapshot may not be true, because its primary may have changed while the volume was closed; see `identity`."""


class RollbackRefused(VolumeError):
    """The volume was not rolled back.  It is as before."""


class RollbackStopped(VolumeError):
    """A rollback was cancelled before it took effect.  The volume is as before."""


@dataclass(eq=False)
class RollbackStalled(VolumeError):
    """A rollback that has taken effect makes no progress.  `retry`: it may go on without a decision of the administrator."""

    retry: bool = True
    needs_space: bool = False


class RollbackUnderWay(VolumeError):
    """The volume is being rolled back.  The request has to wait for the end."""


class ResizeRefused(VolumeError):
    """The volume's size was not changed."""


def accept(volume: str) -> str:
    """Return the remedy for doubtful snapshots of a volume."""
    return f"check the primary, then run `wolun volume accept {volume}`, or delete the doubtful snapshots"


def why(error: OSError | block_device.BlockDeviceError) -> str:
    """Return the reason of an error of the system or of a device, as a phrase for people."""
    return os_error.reason(error) if isinstance(error, OSError) else str(error)
