# SPDX-License-Identifier: Apache-2.0
"""A snapshot of an open volume as its users see it: name, time, state and devices.

The manifest checks names.  `volume` changes snapshots.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyroaring

from lun_backends import block_device, lost_device, snapshot_view
from lun_backends.stores import contract
from lun_backends.volumes import manifest
from lun_backends.volumes.manifest import SnapshotState
from lun_backends.write_once import WriteOnce


@dataclass(eq=False)
class Snapshot:
    """One snapshot of an open volume.  It lives until it is deleted or the volume is closed."""

    name: str
    uuid: uuid.UUID
    taken_at: datetime.datetime
    write_once: WriteOnce | lost_device.LostDevice
    view: snapshot_view.SnapshotView
    deleting: bool = False
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scheduled: bool = False  # a schedule made it, and may delete it
    doubt: str = ""  # why it may not be true, see `identity`; empty if nothing speaks against it
    notes: manifest.Notes = manifest.NOTHING
    held_seconds: float | None = None  # how long writes were held to take it, if this process took it

    @property
    def size(self) -> int:
        """Return how many bytes the volume had at that moment."""
        return self.view.size

    @property
    def hold(self) -> str:
        """Return why nobody may delete it; an empty text if it is not held."""
        return self.notes.hold

    @property
    def expires(self) -> datetime.datetime | None:
        """Return the moment from which on a schedule may delete it; None means never."""
        return self.notes.expires

    @property
    def consistency(self) -> manifest.Consistency:
        """Return who was quiet when it was taken."""
        return self.notes.consistency

    @property
    def state(self) -> SnapshotState:
        """Return the state: active, doubtful, deleting or invalid."""
        if self.deleting:
            return SnapshotState.DELETING
        if self.is_invalid:
            return SnapshotState.INVALID
        return SnapshotState.DOUBTFUL if self.doubt else SnapshotState.ACTIVE

    @property
    def is_invalid(self) -> bool:
        """Return whether the snapshot is lost, or cannot be reached at present."""
        return bool(self.write_once.reason)

    @property
    def invalid_reason(self) -> str:
        """Return why it is invalid; an empty text if it is not."""
        return self.write_once.reason or ""

    @property
    def reason(self) -> str:
        """Return the reason of the state: why it is invalid, or else why it is doubtful."""
        return self.invalid_reason or self.doubt

    @property
    def unreadable(self) -> str:
        """Return why its view cannot be read; an empty text if it can."""
        return "it is being deleted" if self.deleting else self.invalid_reason

    @property
    def invalid_on_disk(self) -> bool:
        """Return whether it is invalid for good, because that is recorded on disk."""
        return self.write_once.recorded

    @property
    def damaged_chunks(self) -> int:
        """Return how many of its chunks were found damaged since it was opened."""
        return self.write_once.damaged_chunks if isinstance(self.write_once, WriteOnce) else 0

    @property
    def used_bytes(self) -> int:
        """Return how many bytes it takes on disk."""
        return self.write_once.used_bytes()

    @property
    def preserved_bytes(self) -> int:
        """Return how many bytes of the volume are preserved in it."""
        return self.write_once.written_bytes()

    def verify(self, passed_over: pyroaring.BitMap) -> Iterator[contract.ChunkReport]:
        """Read all its pre-images, except the chunks `passed_over`, and compare them with their checksums.

        Raises SnapshotInvalid, DeviceClosed.
        """
        yield from self._kept().verify(passed_over)

    def check_headers(self) -> list[str]:
        """Return the faults of the headers of its files, a phrase each.  Raises SnapshotInvalid, DeviceClosed."""
        return self._kept().check_headers()

    def _kept(self) -> WriteOnce:
        if isinstance(self.write_once, lost_device.LostDevice):
            raise block_device.SnapshotInvalid(self.write_once.reason)
        return self.write_once
