# SPDX-License-Identifier: Apache-2.0
"""A shared volume as the service sees every volume (`lun_backends.volumes.interface`).

The log of the volume has the snapshots, so this object only keeps what initiators of this node use: a view for each
snapshot.  A request that a shared volume cannot carry out is refused with the reason and another way.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyroaring

from lun_backends import block_device, damage, preserving, tracking
from lun_backends.block_device import BlockDevice, ExtentKind
from lun_backends.cluster.records import HOLD
from lun_backends.shared import snapshot as log_snapshot
from lun_backends.shared import volume
from lun_backends.stores import contract
from lun_backends.volumes import errors, keeping, manifest, outside, policy
from lun_backends.write_once import WriteOnce

log = logging.getLogger(__name__)

SCHEDULED = "_schedule"
"""The label that a record bears if a schedule took the snapshot.  No label of an administrator can have that key."""
EXPIRES = "_expires"
"""The label with the moment from which on a schedule may delete the snapshot, ISO 8601."""
CONSISTENCY = "_consistency"
"""The label that says who was quiet when the snapshot was taken."""
_OWN = frozenset((SCHEDULED, EXPIRES, CONSISTENCY, HOLD))

_PATIENCE = 2.0
"""Seconds that a list of snapshots waits for the log."""


class _Space:
    """The space of pre-images: all of it is on the storage host, which knows the limit."""

    limit: int | None = None
    low = False

    def __init__(self, snapshots: Callable[[], Sequence[SharedSnapshot]]) -> None:
        self._snapshots = snapshots

    @property
    def used(self) -> int:
        return sum(snapshot.preserved_bytes for snapshot in self._snapshots())


class SharedSnapshot:
    """A snapshot in the log, with its devices on this node.  It lives as long as the log lists it."""

    held_seconds: float | None = None
    doubt = ""
    damaged_chunks = 0

    def __init__(self, owner: SharedOwner, listed: log_snapshot.Snapshot) -> None:
        self._owner = owner
        self.listed = listed
        self._view: BlockDevice | None = None
        self._preserved = 0
        self._version = -1  # of the log, when the bytes were counted
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.listed.name

    @property
    def uuid(self) -> uuid.UUID:
        return self.listed.uuid

    @property
    def taken_at(self) -> datetime.datetime:
        return self.listed.taken_at

    @property
    def labels(self) -> Mapping[str, str]:
        return {key: value for key, value in self.listed.labels.items() if key not in _OWN}

    @property
    def scheduled(self) -> bool:
        return SCHEDULED in self.listed.labels

    @property
    def hold(self) -> str:
        return self.listed.labels.get(HOLD, "")

    @property
    def expires(self) -> datetime.datetime | None:
        text = self.listed.labels.get(EXPIRES)
        return None if text is None else datetime.datetime.fromisoformat(text)

    @property
    def consistency(self) -> manifest.Consistency:
        return manifest.Consistency(self.listed.labels.get(CONSISTENCY, manifest.Consistency.CRASH.value))

    @property
    def deleting(self) -> bool:
        return self.listed.state is log_snapshot.SnapshotState.DELETING

    @property
    def pending(self) -> bool:
        """Whether its fence is not complete, so that nobody can read it yet."""
        return self.listed.state is log_snapshot.SnapshotState.PENDING

    @property
    def state(self) -> enum.Enum:
        return self.listed.state

    @property
    def is_invalid(self) -> bool:
        return self.listed.state is log_snapshot.SnapshotState.INVALID

    @property
    def invalid_reason(self) -> str:
        return (self.listed.reason or "it was invalidated") if self.is_invalid else ""

    @property
    def invalid_on_disk(self) -> bool:
        return self.is_invalid

    @property
    def reason(self) -> str:
        if self.deleting:
            return "its old data moves to an older snapshot, once a newer one has been taken"
        return self.invalid_reason

    @property
    def unreadable(self) -> str:
        if self.deleting:
            return "it is being deleted"
        return "its fence is not complete" if self.pending else self.invalid_reason

    @property
    def size(self) -> int:
        return self._owner.device.size

    @property
    def view(self) -> BlockDevice:
        with self._lock:
            if self._view is None:
                self._view = self._owner.shared.view(str(self.uuid))
            return self._view

    @property
    def write_once(self) -> BlockDevice:
        return self._owner.shared.write_once(str(self.uuid))

    @property
    def used_bytes(self) -> int:
        """Return the preserved bytes: only the storage host knows the space on its disk."""
        return self.preserved_bytes

    @property
    def preserved_bytes(self) -> int:
        """Return how many bytes are preserved, as counted last.  Nothing is asked: the storage host may not answer."""
        return self._preserved

    def count(self, version: int, *, again: bool) -> None:
        """Count the preserved bytes, unless that was done for this `version` of the log.  Raise BlockDeviceError, VolumeError."""
        if again or self._version != version:
            device = self.write_once
            if isinstance(device, WriteOnce):
                self._preserved = device.written_bytes()
            else:
                kinds = device.extents(0, device.size)
                self._preserved = sum(extent.length for extent in kinds if extent.kind is not ExtentKind.BLANK)
            self._version = version

    def verify(self, passed_over: pyroaring.BitMap) -> Iterator[contract.ChunkReport]:
        """Read all its pre-images, except the chunks `passed_over`: the storage host compares them with their checksums."""
        chunk_size, device = self._owner.chunk_size, self.write_once
        buffer = memoryview(bytearray(chunk_size))
        for extent in device.extents(0, device.size):
            if extent.kind is ExtentKind.BLANK:
                continue
            offset, end = extent.offset, extent.offset + extent.length
            while offset < end:
                stop = min(end, (offset // chunk_size + 1) * chunk_size)
                if offset // chunk_size not in passed_over:
                    yield self._report(device, offset, buffer[: stop - offset])
                offset = stop

    @staticmethod
    def _report(device: BlockDevice, offset: int, piece: memoryview) -> contract.ChunkReport:
        try:
            device.read_checked(offset, [piece])
        except block_device.MediumError as error:
            return contract.ChunkReport(offset, len(piece), contract.Verdict.DAMAGED, error.reason)
        return contract.ChunkReport(offset, len(piece), contract.Verdict.GOOD)

    def check_headers(self) -> list[str]:
        """Return none: the storage host has the files."""
        return []

    def close(self) -> None:
        """Close its view."""
        with self._lock:
            if self._view is not None:
                self._view.close()


class SharedOwner:
    """A shared volume that is open on this node; it owns `shared`."""

    doubt = ""
    in_doubt = ""
    rollback_stopped: errors.RollbackStalled | None = None

    def __init__(self, shared: volume.SharedVolume, directory: Path) -> None:
        """Take `shared` over; `directory` is for what this host keeps of it."""
        self.shared = shared
        self.name = shared.name
        self.uuid = shared.uuid
        self.chunk_size = shared.settings.chunk_size
        self.directory = directory
        self.device: BlockDevice = shared.device
        self.space = _Space(lambda: self.snapshots)
        self._known: dict[uuid.UUID, SharedSnapshot] = {}
        self._lock = threading.Lock()
        self._rolling_back_to: SharedSnapshot | None = None

    @property
    def counters(self) -> preserving.Counters:
        return self.shared.counters

    @property
    def unsettled(self) -> tracking.BitMap:
        """Return none: while a rollback runs, no node uses the volume."""
        return tracking.BitMap()

    # -- looking -----------------------------------------------------------------------------------------------------

    @property
    def snapshots(self) -> Sequence[SharedSnapshot]:
        """The snapshots in the log, oldest first, those included whose deletion has begun."""
        with self._lock:
            listed = self.shared.snapshots
            known = {found.uuid: self._known.get(found.uuid) or SharedSnapshot(self, found) for found in listed}
            for found in listed:
                known[found.uuid].listed = found
            gone = [snapshot for identity, snapshot in self._known.items() if identity not in known]
            self._known = known
            for snapshot in gone:
                snapshot.close()
            return tuple(known.values())

    def refresh(self) -> None:
        """Read the log now.  If it does not answer soon, what was read a moment ago has to do."""
        if self.shared.status.state == "armed" and self.shared.refresh(_PATIENCE):
            self.count()

    def count(self) -> None:
        """Count what the snapshots preserve: copies go to the newest, and only a deletion changes others."""
        snapshots, version = self.snapshots, self.shared.status.log_used
        with contextlib.suppress(block_device.BlockDeviceError, errors.VolumeError):
            for snapshot in snapshots:
                snapshot.count(version, again=snapshot is snapshots[-1])

    def _check_not_expelled(self) -> None:
        if self.shared.expelled:
            reason = "this node is expelled, and changes nothing of it any longer"
            raise errors.VolumeError(self.name, reason, "run the command on another node")

    def snapshot(self, name: str, identity: uuid.UUID | None = None) -> SharedSnapshot:
        """Return the snapshot of that name.  Raise NoSuchSnapshot."""
        for snapshot in reversed(self.snapshots):
            if snapshot.name == name and identity in (None, snapshot.uuid):
                return snapshot
        raise errors.NoSuchSnapshot(
            self.name, f"there is no snapshot {name!r}", "list the snapshots for those that exist"
        )

    def written_outside(self, name: str) -> list[outside.Written]:
        """Return none: every node may write to the write-once LUNs, and only copy-on-write does."""
        return []

    def changed_map(self, name: str, buckets: int) -> list[float]:
        """Divide the volume into `buckets` equal parts, and return the fraction of each that changed since the snapshot."""
        grains = tracking.count(self.device.size)
        changed = self._changed(self.snapshot(name), tracking.GRAIN)
        fractions = []
        for bucket in range(buckets):
            first = bucket * grains // buckets
            end = max(first + 1, (bucket + 1) * grains // buckets)
            fractions.append(changed.range_cardinality(first, end) / (end - first))
        return fractions

    def _changed(self, since: SharedSnapshot, unit: int) -> pyroaring.BitMap:
        """Return the pieces of `unit` bytes that the write-once LUNs of a snapshot and of all newer ones have."""
        changed = pyroaring.BitMap()
        snapshots = self.snapshots
        for snapshot in snapshots[snapshots.index(since) :]:
            device = snapshot.write_once
            for extent in device.extents(0, device.size):
                if extent.kind is not ExtentKind.BLANK:
                    end = extent.offset + extent.length
                    changed.add_range(extent.offset // unit, -(-end // unit))
        return changed

    # -- changing ----------------------------------------------------------------------------------------------------

    def create_snapshot(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        scheduled: bool = False,
        notes: manifest.Notes = manifest.NOTHING,
    ) -> SharedSnapshot:
        """Take a snapshot of the volume, for all nodes at one moment.  Raise VolumeError."""
        labels = dict(labels or {})
        self._check_not_expelled()
        self._check_labels(labels)
        own = {
            SCHEDULED: "1" if scheduled else None,
            HOLD: notes.hold or None,
            EXPIRES: None if notes.expires is None else notes.expires.isoformat(),
            CONSISTENCY: None if notes.consistency is manifest.Consistency.CRASH else notes.consistency.value,
        }
        taken = self.shared.create_snapshot(name, labels | {key: value for key, value in own.items() if value})
        snapshot = self.snapshot(name, taken.uuid)
        snapshot.held_seconds = taken.held_seconds
        return snapshot

    def label_snapshot(self, name: str, changes: Mapping[str, str | None]) -> SharedSnapshot:
        """Set labels of a snapshot, and remove those whose value is None.  Raise NoSuchSnapshot, BadLabel, VolumeError."""
        snapshot = self.snapshot(name)
        self._check_labels({key: value for key, value in {**snapshot.labels, **changes}.items() if value is not None})
        return self._note(snapshot, None, changes)

    def hold_snapshot(self, name: str, reason: str) -> SharedSnapshot:
        """Let no node delete a snapshot, for that reason; an empty reason releases it.  Raise VolumeError."""
        if fault := keeping.bad_reason(reason):
            raise errors.VolumeError(self.name, fault, "give a shorter reason, on one line")
        return self._note(self.snapshot(name), None, {HOLD: reason or None})

    def expire_snapshot(self, name: str, moment: datetime.datetime | None) -> SharedSnapshot:
        """Let a schedule delete a snapshot from a moment on; None means never.  Raise VolumeError."""
        return self._note(self.snapshot(name), None, {EXPIRES: None if moment is None else moment.isoformat()})

    def rename_snapshot(self, name: str, new: str) -> SharedSnapshot:
        """Give a snapshot another name, on all nodes.  Raise VolumeError."""
        return self._note(self.snapshot(name), new, {})

    def _note(self, snapshot: SharedSnapshot, new: str | None, labels: Mapping[str, str | None]) -> SharedSnapshot:
        self._check_not_expelled()
        self.shared.note(str(snapshot.uuid), new, labels)
        return self.snapshot(new or snapshot.name, snapshot.uuid)

    def _check_labels(self, labels: Mapping[str, str]) -> None:
        """Raise BadLabel if a snapshot may not have these labels."""
        if problem := next(filter(None, (manifest.bad_label(key, value) for key, value in labels.items())), None):
            raise errors.BadLabel(self.name, problem, "correct the label")
        if len(labels) > manifest.LABELS_MAX:
            raise errors.BadLabel(self.name, f"there are more than {manifest.LABELS_MAX} labels", "take some away")

    def delete_snapshot(
        self,
        name: str,
        identity: uuid.UUID | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_damage: damage.OnDamage | None = None,
        accept_loss: bool = False,
    ) -> None:
        """Delete a snapshot.  The newest one is only hidden, until a newer one has been taken.  Raise VolumeError."""
        self._check_not_expelled()
        snapshot = self.snapshot(name, identity)
        if accept_loss:
            raise errors.VolumeError(
                self.name,
                "blocks of a shared volume's snapshots cannot be given up one by one",
                "verify it on the storage host; delete it without --damaged",
            )
        self.shared.delete_snapshot(str(snapshot.uuid), progress=progress, cancelled=cancelled)

    def resume_deletions(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_damage: damage.OnDamage | None = None,
    ) -> None:
        """Do nothing: the volume goes on by itself, on whichever node runs."""

    @property
    def rolling_back_to(self) -> SharedSnapshot | None:
        """The snapshot that this node rolls the volume back to."""
        return self._rolling_back_to

    def rollback_may_go_on(self) -> bool:
        """Return False: the volume goes on by itself."""
        return False

    def begin_rollback(
        self,
        name: str,
        identity: uuid.UUID | None = None,
        *,
        cancelled: Callable[[], bool] | None = None,
        on_damage: damage.OnDamage | None = None,
        accept_outside: bool = False,
    ) -> None:
        """Read what the snapshot needs; `continue_rollback` then rolls back.  Raise VolumeError, BlockDeviceError."""
        self._check_not_expelled()
        snapshot = self.snapshot(name, identity)
        if snapshot.unreadable:
            raise errors.RollbackRefused(
                self.name, f"{name!r} cannot be read: {snapshot.unreadable}", "use another one"
            )
        found = damage.Found()
        view, buffer = snapshot.view, memoryview(bytearray(self.chunk_size))
        for chunk in self._changed(snapshot, self.chunk_size):
            if cancelled is not None and cancelled():
                raise errors.RollbackStopped(self.name, "it was cancelled", "begin again")
            offset = chunk * self.chunk_size
            view.read_checked(offset, [buffer[: min(self.chunk_size, view.size - offset)]], found)
        if found:
            raise errors.damage_in(self.name, name, found, self.device.block_size, "restore another snapshot")
        self._rolling_back_to = snapshot

    def accept_damage(self) -> None:
        """Refuse: a rollback of a shared volume never begins with damage."""
        raise errors.VolumeError(self.name, "damaged blocks cannot be accepted", "restore another snapshot")

    def continue_rollback(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> bool:
        """Roll back; every node waits meanwhile.  Raise VolumeError, BlockDeviceError."""
        snapshot = self._rolling_back_to
        assert snapshot is not None
        try:
            self.shared.rollback(str(snapshot.uuid), progress=progress)
        finally:
            self._rolling_back_to = None
        return True

    def resize(self, size: int) -> None:
        """Refuse: every node and every write-once LUN has the size of the primary."""
        raise errors.ResizeRefused(
            self.name,
            "it is shared, and each of its snapshots and nodes has the size of its primary",
            "make a larger volume on the storage host, and copy the data",
        )

    def accept_primary(self) -> list[str]:
        """Return none: the fence keeps everybody else from writing to the primary."""
        return []

    def keep_by(self, rules: policy.Policy) -> None:
        """Refuse: the rules are those that the node was started with."""
        raise errors.VolumeError(self.name, "it is shared", "change the configuration file, and start the daemon again")

    def close(self) -> None:
        """End the node's part in order; it stays registered."""
        for snapshot in list(self._known.values()):
            snapshot.close()
        self.shared.close()
