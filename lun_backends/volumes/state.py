# SPDX-License-Identifier: Apache-2.0
"""The state of an open volume that all changes share: manifest, chain of snapshots, locks.

`opening` makes it, `taking`, `deleting` and `rollback` change it, and `volume.Volume` is its public face.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from lun_backends import (
    block_device,
    copy_on_write,
    flat,
    lost_device,
    preserving,
    snapshot_view,
    tracking,
    view_chain,
    write_once,
)
from lun_backends.durability import Durability
from lun_backends.files import os_error, storage_io
from lun_backends.stores import contract, space
from lun_backends.volumes import doubt, errors, invalidation, manifest, pending_grains, policy, rollback_overlay
from lun_backends.volumes.clone import Clone
from lun_backends.volumes.snapshot import Snapshot

_FLUSHES_AHEAD = 16
_SHORT_FLUSH = 0.005  # seconds that a barrier may take
_PENDING = ".unsettled"
_PENDING_CHUNKS = ".pending"  # made by older versions, see `pending_grains.take_over`
_FILES = re.compile(
    r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(?:invalid|invalid\.new|pending|unsettled|unsettled\.new)"
)


class State:
    """An open volume, for the modules that change it.

    Three locks keep changes apart.  A thread takes them in this order, and may leave out any:

    | lock        | held                                                        | by                                      |
    | ----------- | ----------------------------------------------------------- | --------------------------------------- |
    | `reshaping` | as long as chunks are moved, which may be hours             | deletion, rollback, resize, close       |
    | `changing`  | for a moment, to replace the manifest and what goes with it | every change; taking needs nothing else |
    | `deciding`  | while a snapshot is invalidated, or becomes what the volume | a write whose copy failed; the barrier  |
    |             | itself is made of                                           | of a rollback                           |

    The barrier (`device.hold()`) comes between the last two: its holder has `changing`, and may take `deciding`.
    """

    def __init__(
        self,
        directory: Path,
        record: manifest.Manifest,
        io: storage_io.StorageIO,
        rules: policy.Policy,
        listener: policy.Listener,
        stores: contract.Stores,
    ) -> None:
        """Open the primary.  Raises CannotOpen.  Only `opening` calls this."""
        self.directory = directory
        self.name = record.name
        self.uuid = record.uuid
        self.chunk_size = record.chunk_size
        self.durability = record.durability
        self.primary = flat.Flat(
            record.primary.path, block_size=record.block_size, direct=record.primary.direct, size=record.size, io=io
        )
        self.snapshots: tuple[Snapshot, ...] = ()
        self.clones: tuple[Clone, ...] = ()
        self.rules = rules
        self.space = space.Space(
            rules.limit, rules.warn_percent, lambda used, limit: listener(policy.SpaceLow(used, limit))
        )
        self.stores = stores
        self.enforcer = invalidation.Enforcer(rules, listener, lambda: self.snapshots, self.path, io)
        self.device = copy_on_write.CopyOnWrite(self.primary, record.chunk_size, self._copy_failed, rules.copy_timeout)
        self.manifest = record
        self.io = io
        self.chain = view_chain.Chain()
        self.overlay: rollback_overlay.RollbackOverlay | None = None  # of the rollback under way
        self.rollback_stopped: errors.RollbackStalled | None = None  # why the rollback under way makes no progress
        self.reshaping = threading.Lock()
        self.changing = threading.Lock()
        self.deciding = threading.Lock()
        self.doubt = doubt.Doubt(self.device, self.changing, self.put_back, self.forget_rollback, listener)
        self.preparing: Path | None = None  # the file of a rollback that no manifest names yet
        self.opened = self.closed = False
        self.listener = listener

    # The manifest ---------------------------------------------------------------------------------------------------

    def store(self, record: manifest.Manifest) -> None:
        """Put a manifest in force.  Raises OSError."""
        manifest.store(self.directory, record, self.io)
        self.manifest = record
        self.doubt.end()

    def store_or_not(self, record: manifest.Manifest) -> None:
        """Put a manifest in force.  If that fails, put the old one back, because the new one may still be durable.

        Raises OSError.
        """
        try:
            self.store(record)
        except OSError:
            with contextlib.suppress(OSError):
                self.put_back()
            raise

    def put_back(self) -> None:
        """Store the manifest in force once more.  Raises OSError."""
        manifest.store(self.directory, self.manifest, self.io)

    def record_of(self, snapshot: Snapshot) -> manifest.SnapshotRecord:
        """Return the manifest's record of a snapshot."""
        return next(record for record in self.manifest.snapshots if record.uuid == snapshot.uuid)

    def with_record(self, changed: manifest.SnapshotRecord) -> manifest.Manifest:
        """Return the manifest with `changed` in place of the record of the same snapshot."""
        records = tuple(changed if record.uuid == changed.uuid else record for record in self.manifest.snapshots)
        return dataclasses.replace(self.manifest, snapshots=records)

    # Refusals -------------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise DeviceClosed if the volume is closed."""
        if self.closed:
            raise block_device.DeviceClosed

    def check_recorded(self) -> None:
        """Raise VolumeError if the volume does not know which manifest is on the disk, and cannot store it now."""
        try:
            self.doubt.resolve()
        except OSError as error:
            raise errors.VolumeError(self.name, self.doubt.reason, "check the disk, then try again") from error

    def check_not_rolling_back(self) -> None:
        """Raise RollbackUnderWay during a rollback."""
        if self.manifest.restoring is not None:
            target = self.rolling_back_to
            name = target.name if target else ""
            reason = f"it is being rolled back to {name!r}"
            if (stopped := self.rollback_stopped) is not None:
                raise errors.RollbackUnderWay(
                    self.name, f"{reason}, which has stopped: {stopped.reason}", stopped.remedy
                )
            raise errors.RollbackUnderWay(self.name, reason, "wait until that has ended: `wolun status` shows it")

    # Snapshots ------------------------------------------------------------------------------------------------------

    def snapshot(self, name: str, identity: uuid.UUID | None = None) -> Snapshot:
        """Return the snapshot of that name.  With `identity`, a later snapshot of the same name does not count.

        Raises NoSuchSnapshot.
        """
        for snapshot in self.snapshots:
            if snapshot.name == name and identity in (None, snapshot.uuid):
                return snapshot
        known = ", ".join(snapshot.name for snapshot in self.snapshots) or "none"
        raise errors.NoSuchSnapshot(self.name, f"there is no snapshot {name!r}", f"there are: {known}")

    def make_snapshot(
        self, record: manifest.SnapshotRecord, device: write_once.WriteOnce | lost_device.LostDevice
    ) -> Snapshot:
        """Return the snapshot of a record, with its view."""
        if isinstance(device, write_once.WriteOnce):
            device.verify_reads = self.rules.verify_reads
        view = snapshot_view.SnapshotView(self.primary, self.chain, device)
        return Snapshot(
            record.name,
            record.uuid,
            record.taken_at,
            device,
            view,
            labels=record.labels,
            scheduled=record.scheduled,
            doubt=self.manifest.doubtful.get(record.uuid, ""),
            notes=self.manifest.notes.get(record.uuid, manifest.NOTHING),
        )

    def newest_active(self) -> Snapshot | None:
        """Return the snapshot that gets pre-images, or would get them if it could be reached."""
        for snapshot in reversed(self.snapshots):
            if not snapshot.deleting:
                return None if snapshot.invalid_on_disk else snapshot
        return None

    def arm(self, tracker: tracking.Tracker) -> None:
        """Point copy-on-write at the newest active snapshot.  Call it only while no write runs."""
        newest = self.newest_active()
        if newest is not None:
            self.chain.arm(newest.write_once)
        if newest is None:
            self.device.disarm()
        elif newest.is_invalid:
            self.device.arm(newest.write_once)  # this device refuses every copy, and then the policy decides
        else:
            self.device.arm(newest.write_once, tracker)

    def moving_tracker(self, snapshots: Sequence[Snapshot]) -> tracking.Tracker:
        """Return the grains of snapshots in deletion that an older one must no longer copy from the primary.

        They do not include a grain that those snapshots have only in part.  Such a grain has not changed since they
        were taken, because a change would have preserved all of it.  So the older snapshot still has to copy it.
        """
        tracker = tracking.Tracker(self.device.grains)
        for snapshot in snapshots:
            tracker.add_all(tracking.whole(snapshot.write_once))
        return tracker

    def _copy_failed(
        self, side: preserving.WriteOnceSide, error: block_device.BlockDeviceError, began: float
    ) -> preserving.Decision:
        """Apply the policy, but never invalidate a snapshot during a rollback, because the volume is made of it."""
        with self.deciding:
            if self.overlay is None and not self.doubt.reason:
                return self.enforcer.copy_failed(side, error, began)
        self.listener(policy.WriteRefused(error))
        return preserving.Decision.REFUSE

    # Rollback -------------------------------------------------------------------------------------------------------

    @property
    def rolling_back_to(self) -> Snapshot | None:
        """Return the snapshot that the volume is being rolled back to, until the primary has caught up."""
        if self.manifest.restoring is None:
            return None
        return next(snapshot for snapshot in self.snapshots if snapshot.uuid == self.manifest.restoring)

    def forget_rollback(self) -> None:
        """Remove what is left of a rollback that the next open will not continue."""
        self._remove_files()
        with contextlib.suppress(block_device.BlockDeviceError):
            self.set_durability(self.durability)

    # Durability -----------------------------------------------------------------------------------------------------

    @property
    def synced(self) -> bool:
        """Return whether pre-images survive a power cut at present."""
        return self.durability is Durability.POWER_LOSS or self.manifest.restoring is not None

    def set_durability(self, durability: Durability) -> None:
        """Set the durability of all snapshots.  Raises MediumError.

        During a rollback, snapshots survive a power cut whatever the volume's own durability is, because the volume is
        made of them.
        """
        for snapshot in self.snapshots:
            if isinstance(snapshot.write_once, write_once.WriteOnce) and not snapshot.is_invalid:
                snapshot.write_once.set_durability(durability)

    def flush_ahead(self) -> None:
        """Flush the primary until little is left for the flush that holds writes.  Raises MediumError.

        Under load each flush handles the data that was written during the flush before.  So the flushes get shorter as
        long as the disk is faster than the writers.
        """
        for _ in range(_FLUSHES_AHEAD):
            began = time.perf_counter()
            self.primary.flush()
            if time.perf_counter() - began < _SHORT_FLUSH:
                return

    # Files ----------------------------------------------------------------------------------------------------------

    def path(self, identity: uuid.UUID) -> Path:
        """Return the path of the files that a snapshot has beside its store, without suffix."""
        return self.directory / "snapshots" / str(identity)

    def pending_path(self, identity: uuid.UUID) -> Path:
        """Return the path of the file that records the progress of a rollback to a snapshot."""
        return self.path(identity).with_suffix(_PENDING)

    def open_pending(self, identity: uuid.UUID) -> pending_grains.PendingGrains:
        """Open the file of a rollback that a crash or a stop interrupted.  Raises PendingDamaged."""
        path, old = self.pending_path(identity), self.path(identity).with_suffix(_PENDING_CHUNKS)
        if old.exists():
            try:
                pending_grains.take_over(old, path, self.device.grains, self.chunk_size >> tracking.SHIFT, self.io)
            except OSError as error:
                raise pending_grains.PendingDamaged(old, os_error.reason(error)) from error
        return pending_grains.PendingGrains.open(path, self.device.grains, self.io)

    def remove_leftovers(self) -> None:
        """Remove the stores and files of snapshots that the manifest does not name.

        A crash came before the manifest named them, or after it stopped to name them.
        """
        self.stores.remove_leftovers({record.uuid for record in self.manifest.snapshots})
        self._remove_files()

    def _remove_files(self) -> None:
        named = {str(record.uuid) for record in self.manifest.snapshots}
        for path in sorted((self.directory / "snapshots").glob("*")):
            match = _FILES.fullmatch(path.name)
            if match is None or path == self.preparing:
                continue
            rollback_ended = (
                path.suffix in (_PENDING, _PENDING_CHUNKS) and str(self.manifest.restoring) != match[1]
            ) or path.name.endswith(f"{_PENDING}.new")
            if match[1] not in named or rollback_ended:
                with contextlib.suppress(OSError):  # the file only costs space, and the next open tries again
                    self.io.unlink(path)
