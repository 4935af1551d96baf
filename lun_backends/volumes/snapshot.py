# SPDX-License-Identifier: Apache-2.0
"""A snapshot of an open volume as its users see it: name, time, state, devices; its content piece by piece; and the
errors of what they ask of it.

Names are checked by the manifest; what changes a snapshot is in `volume`.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from lun_backends import block_device, lost_device, snapshot_view, write_once
from lun_backends.volumes.manifest import SnapshotState


@dataclass(eq=False)
class VolumeError(block_device.BlockDeviceError):
    """Something asked of volume `volume` cannot be done; `reason` says why, `remedy` what to do."""

    volume: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.volume}: {self.reason}; {self.remedy}"


class BadName(VolumeError):
    """The name may not be used."""


class BadLabel(VolumeError):
    """The labels may not be given."""


class SnapshotExists(VolumeError):
    """There is a snapshot of that name already."""


class NoSuchSnapshot(VolumeError):
    """There is no snapshot of that name."""


class SnapshotFailed(VolumeError):
    """The snapshot was not taken; the volume is as before."""


class TooManySnapshots(VolumeError):
    """There are as many snapshots as the policy allows."""


class NoSpaceLeft(VolumeError):
    """It would certainly run out of space."""


class DeletionStopped(VolumeError):
    """Deleting was cancelled on the way; the snapshot is gone for readers and `resume_deletions` goes on with it."""


class RestoreRefused(VolumeError):
    """The volume was not rolled back; it is as before."""


class RestoreStopped(VolumeError):
    """Rolling back was cancelled before it took effect; the volume is as before."""


class RestoreUnderWay(VolumeError):
    """The volume is being rolled back; what was asked has to wait for its end."""


class ResizeRefused(VolumeError):
    """The volume's size was not changed."""


@dataclass(eq=False)
class Snapshot:
    """One snapshot of an open volume; lives until it is deleted or the volume is closed."""

    name: str
    uuid: uuid.UUID
    taken_at: datetime.datetime
    write_once: write_once.WriteOnce | lost_device.LostDevice
    view: snapshot_view.SnapshotView
    deleting: bool = False
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scheduled: bool = False  # a schedule made it, and may delete it
    held_seconds: float | None = None  # how long writes were held to take it, if this process did

    @property
    def state(self) -> SnapshotState:
        """`active`, `deleting` or `invalid`."""
        if self.deleting:
            return SnapshotState.DELETING
        return SnapshotState.INVALID if self.reason else SnapshotState.ACTIVE

    @property
    def reason(self) -> str:
        """Why it is invalid; empty if it is not."""
        return self.write_once.reason or ""

    @property
    def unreadable(self) -> str:
        """Why its view cannot be read; empty if it can."""
        return "it is being deleted" if self.deleting else self.reason

    @property
    def gone(self) -> bool:
        """Whether it is invalid for ever: that is on disk."""
        return self.write_once.recorded

    @property
    def used_bytes(self) -> int:
        """What it takes on disk."""
        return self.write_once.used_bytes()

    @property
    def preserved_bytes(self) -> int:
        """How much of the volume is preserved in it."""
        return self.write_once.written_bytes()
