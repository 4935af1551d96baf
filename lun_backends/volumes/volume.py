# SPDX-License-Identifier: Apache-2.0
"""A volume: a primary with its ordered snapshots, and the changes that can be made to it.

    <directory>/volume.json             the manifest
    <directory>/snapshots/<uuid>.map    a snapshot's write-once device: its chunk map
    <directory>/snapshots/<uuid>.chunks and its chunks
    <directory>/snapshots/<uuid>.outside which of them an initiator wrote to, if any (stores/outside.py)

The manifest says where the primary is.  A crash at any point leaves the volume as it was before or after a change,
because the manifest is the change:

| change          | before the manifest is replaced                  | after                                                |
| --------------- | ------------------------------------------------ | ---------------------------------------------------- |
| create snapshot | make the files; hold writes; flush the primary   | extend the chain, arm copy-on-write; release         |
| delete, oldest  | -                                                | shorten the chain, wait for readers, remove files    |
| delete, another | complete grains written in part; if it is the    | move its chunks to the next older snapshot, replace  |
|                 | newest, hold writes and arm the next older one   | the manifest again, then as with the oldest          |
| roll back       | note which grains changed; hold writes           | cover the primary with the snapshot, release; then   |
|                 |                                                  | bring its content to the primary (`rollback_overlay`) |
| resize          | make the primary larger                          | hold writes, use it                                  |

`taking`, `deleting` and `rollback` carry them out on the `State` that `opening` made.

Files that no manifest names are leftovers of such a crash.  The next open removes them if their names are those of a
snapshot's files.  A snapshot whose files cannot be opened stays in the list, invalid, and every view that would need it
fails.

Each method that changes snapshots runs on its caller's thread and waits for disks.  Changes wait for each other.  The
long part of a deletion or a rollback holds up other deletions and rollbacks, but no new snapshot.  A caller that serves
a snapshot's devices withdraws them before it deletes the snapshot.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import stat
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from lun_backends import block_device, preserving, tracking, write_once
from lun_backends.damage import OnDamage
from lun_backends.durability import Durability
from lun_backends.files import backing_file, os_error, storage_io
from lun_backends.stores import settings
from lun_backends.volumes import (
    clones,
    converting,
    deleting,
    errors,
    keeping,
    manifest,
    opening,
    outside,
    policy,
    rollback,
    taking,
)
from lun_backends.volumes.clone import Clone
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State


class Volume:
    """An open volume, made by `create` and `open`.  It has one owner: the primary and the maps are locked."""

    def __init__(self, state: State) -> None:
        """Wrap an open state.  Callers use `create` or `open`."""
        self.state = state
        self.directory = state.directory
        self.name = state.name
        self.uuid = state.uuid
        self.chunk_size = state.chunk_size
        self.durability = state.durability
        self.primary = state.primary
        self.device = state.device
        self.space = state.space

    @classmethod
    def create(
        cls,
        directory: Path,
        name: str,
        primary: Path,
        *,
        size: int | None = None,
        block_size: int = 512,
        chunk_size: int = opening.DEFAULT_CHUNK_SIZE,
        direct: bool = False,
        durability: Durability = Durability.POWER_LOSS,
        rules: policy.Policy = policy.DEFAULT,
        listener: policy.Listener = policy.ignore,
        io: storage_io.StorageIO = storage_io.SYSTEM,
        store: settings.Settings = settings.DEFAULT,
    ) -> Volume:
        """Make a volume in `directory` (made if missing) and open it.

        With `size` (bytes), this makes a sparse primary, unless there is a file or device of at least that size.
        Without `size`, the primary must exist and is taken as it is.

        `store` says where the snapshots will be kept.

        Raises VolumeError, BadName, backing_file.CannotOpen, ManifestError.
        """
        state = opening.create(
            directory,
            name,
            primary,
            size=size,
            block_size=block_size,
            chunk_size=chunk_size,
            direct=direct,
            durability=durability,
            rules=rules,
            listener=listener,
            io=io,
            store=store,
        )
        return cls(state)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        rules: policy.Policy = policy.DEFAULT,
        listener: policy.Listener = policy.ignore,
        io: storage_io.StorageIO = storage_io.SYSTEM,
        store: settings.Settings | None = None,
    ) -> Volume:
        """Open the volume in `directory`; `store` says where its snapshots are, if the manifest's kind does not suffice.

        Raises ManifestError, backing_file.CannotOpen, PendingDamaged, VolumeError.
        """
        return cls(opening.open_state(directory, rules, listener, io, store))

    def close(self) -> None:
        """Drain, flush and release everything.  Closing twice is allowed."""
        opening.close(self.state)

    # Looking --------------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> preserving.Counters:
        """Return the counts of copy-on-write since the volume was opened."""
        return self.device.counters

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots, oldest first."""
        return self.state.snapshots

    def refresh(self) -> None:
        """Do nothing: no other host changes the snapshots."""

    @property
    def rules(self) -> policy.Policy:
        """Return how the snapshots are kept."""
        return self.state.rules

    @property
    def in_doubt(self) -> str:
        """Return why writes are refused until the manifest can be stored, see `doubt`; empty if they are not."""
        return self.state.doubt.reason

    @property
    def rolling_back_to(self) -> Snapshot | None:
        """Return the snapshot that the volume is being rolled back to, until the primary has caught up."""
        return self.state.rolling_back_to

    @property
    def rollback_stopped(self) -> errors.RollbackStalled | None:
        """Return why the rollback under way makes no progress; None if it does, or if there is none."""
        return self.state.rollback_stopped if self.rolling_back_to is not None else None

    def rollback_may_go_on(self) -> bool:
        """Return whether a rollback that stopped may go on now, without a decision of the administrator.  Raises OSError."""
        stopped = self.rollback_stopped
        return stopped is not None and stopped.retry and (not stopped.needs_space or rollback.has_room(self.state))

    @property
    def unsettled(self) -> tracking.BitMap:
        """Return the grains that a rollback under way has still to bring to the primary."""
        overlay = self.state.overlay
        return tracking.BitMap() if overlay is None else overlay.pending.copy()

    def snapshot(self, name: str, identity: uuid.UUID | None = None) -> Snapshot:
        """Return the snapshot of that name.  With `identity`, a later snapshot of the same name does not count.

        Raises NoSuchSnapshot.
        """
        return self.state.snapshot(name, identity)

    def written_outside(self, name: str) -> list[outside.Written]:
        """Return what initiators wrote of a snapshot's content to write-once LUNs, in order of address.

        Raises NoSuchSnapshot, DeviceClosed.
        """
        snapshot, snapshots = self.snapshot(name), self.snapshots
        if snapshot not in snapshots:
            raise block_device.DeviceClosed
        return outside.found(snapshots[snapshots.index(snapshot) :], self.chunk_size)

    def changed_map(self, name: str, buckets: int) -> list[float]:
        """Divide the volume into `buckets` equal parts, and return the fraction of each that changed since the snapshot.

        Raises NoSuchSnapshot, SnapshotInvalid.
        """
        grains = self.device.grains
        tracker = tracking.Tracker(grains)
        for snapshot in self.snapshots[self.snapshots.index(self.snapshot(name)) :]:
            tracker.add_all(tracking.touched(snapshot.write_once))
        tracker.known |= self.unsettled
        fractions = []
        for bucket in range(buckets):
            first = bucket * grains // buckets
            end = max(first + 1, (bucket + 1) * grains // buckets)
            fractions.append(tracker.count(first, end) / (end - first))
        return fractions

    # Snapshots ------------------------------------------------------------------------------------------------------

    def create_snapshot(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        scheduled: bool = False,
        notes: manifest.Notes = manifest.NOTHING,
        identity: uuid.UUID | None = None,
        taken_at: datetime.datetime | None = None,
    ) -> Snapshot:
        """Take a snapshot (rule 7, lun_backends/README.md).

        `scheduled` records that a schedule took it, and may delete it.  `notes` has a hold, a date of expiry, and who was
        quiet.  A snapshot that came from another host has the moment `taken_at` from there, and an `identity` that the caller
        chose.

        Raises BadName, BadLabel, SnapshotExists, TooManySnapshots, NoSpaceLeft, RollbackUnderWay, SnapshotFailed.
        """
        return taking.take(
            self.state, name, labels, scheduled=scheduled, notes=notes, identity=identity, taken_at=taken_at
        )

    def label_snapshot(self, name: str, changes: Mapping[str, str | None]) -> Snapshot:
        """Set labels of a snapshot, and remove those whose value is None.  Raises NoSuchSnapshot, BadLabel, VolumeError."""
        state = self.state
        with state.changing:
            state.check_open()
            snapshot = state.snapshot(name)
            merged = {**snapshot.labels, **changes}
            labels = {key: value for key, value in merged.items() if value is not None}
            taking.check_labels(state, labels)
            try:
                state.store(state.with_record(dataclasses.replace(state.record_of(snapshot), labels=labels)))
            except OSError as error:
                reason = f"cannot write the manifest: {os_error.reason(error)}"
                raise errors.VolumeError(self.name, reason, "check the file system") from error
            snapshot.labels = labels
            return snapshot

    def hold_snapshot(self, name: str, reason: str) -> Snapshot:
        """Let nobody delete a snapshot, for that reason; an empty reason releases it.  Raises NoSuchSnapshot, VolumeError."""
        return keeping.hold(self.state, name, reason)

    def expire_snapshot(self, name: str, moment: datetime.datetime | None) -> Snapshot:
        """Let a schedule delete a snapshot from a moment on; None means never.  Raises NoSuchSnapshot, VolumeError."""
        return keeping.expire(self.state, name, moment)

    def rename_snapshot(self, name: str, new: str) -> Snapshot:
        """Give a snapshot another name.  Raises NoSuchSnapshot, BadName, SnapshotExists, VolumeError."""
        return keeping.rename(self.state, name, new)

    def delete_snapshot(
        self,
        name: str,
        identity: uuid.UUID | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_damage: OnDamage | None = None,
        accept_loss: bool = False,
    ) -> None:
        """Delete a snapshot.

        The oldest snapshot is removed at once.  The chunks of any other first move to the next older one.  The move
        calls `progress` with (bytes done, bytes in all), and stops when `cancelled` returns True.  Damaged chunks stay
        damaged, and `on_damage` is called for them.  Blocks that cannot be read stop the deletion (DamageFound).  With
        `accept_loss`, they become damaged blocks instead.

        Raises NoSuchSnapshot, DeletionStopped, DamageFound, VolumeError.
        """
        state = self.state
        with state.reshaping:
            state.check_open()
            snapshot = state.snapshot(name, identity)
            # A rollback needs its snapshot and the newer ones.  The oldest goes without moving anything.
            if snapshot is not state.snapshots[0] or snapshot is state.rolling_back_to:
                state.check_not_rolling_back()
            deleting.delete(state, snapshot, progress, cancelled, on_damage, accept_loss=accept_loss)

    def resume_deletions(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_damage: OnDamage | None = None,
    ) -> None:
        """Continue all deletions that a crash or a cancellation stopped, as `delete_snapshot` does."""
        state = self.state
        with state.reshaping:
            state.check_open()
            state.check_not_rolling_back()
            for snapshot in reversed(state.snapshots):
                if snapshot.deleting:
                    deleting.delete(state, snapshot, progress, cancelled, on_damage, accept_loss=False)

    # Clones ---------------------------------------------------------------------------------------------------------

    @property
    def clones(self) -> tuple[Clone, ...]:
        """Return the clones of its snapshots, oldest first."""
        return self.state.clones

    def create_clone(self, snapshot: str, name: str, limit: int | None = None) -> Clone:
        """Make a writable clone of a snapshot, with at most `limit` bytes of its own.

        Raises NoSuchSnapshot, BadName, CloneExists, CloneRefused, SnapshotDoubtful, VolumeError.
        """
        return clones.create(self.state, snapshot, name, limit)

    def delete_clone(self, name: str, identity: uuid.UUID | None = None) -> None:
        """Delete a clone with its data.  With `identity`, a later clone of the same name does not count.

        Raises NoSuchClone, VolumeError.
        """
        clones.delete(self.state, name, identity)

    @property
    def doubt(self) -> str:
        """Return why its snapshots may not be true, see `identity`; empty if nothing speaks against them."""
        return next((snapshot.doubt for snapshot in self.snapshots if snapshot.doubt), "")

    def accept_primary(self) -> list[str]:
        """Take doubtful snapshots for true from now on.  Return their names.  Raises VolumeError."""
        state = self.state
        with state.changing:
            state.check_open()
            try:
                state.store(dataclasses.replace(state.manifest, doubtful={}))
            except OSError as error:
                reason = f"cannot write the manifest: {os_error.reason(error)}"
                raise errors.VolumeError(self.name, reason, "check the file system") from error
            accepted = [snapshot for snapshot in state.snapshots if snapshot.doubt]
            for snapshot in accepted:
                snapshot.doubt = ""
            return [snapshot.name for snapshot in accepted]

    def relocate_primary(self, path: Path) -> None:
        """Note that the primary has another name, `path`, while the volume is used.  Raises VolumeError if that is another file."""
        state = self.state
        with state.changing:
            state.check_open()
            try:
                if not os.path.samestat(path.stat(), os.fstat(state.primary.descriptor.fd)) and not _same_disk(
                    path, state.primary.descriptor.fd
                ):
                    reason = f"it is served from {state.manifest.primary.path}, and {path} is another file or disk"
                    remedy = "stop the daemon before you copy the primary to another place"
                    raise errors.VolumeError(self.name, reason, remedy)
                moved = dataclasses.replace(state.manifest.primary, path=path)
                state.store(dataclasses.replace(state.manifest, primary=moved))
            except OSError as error:
                raise errors.VolumeError(self.name, os_error.reason(error), "check the path") from error

    def keep_by(self, rules: policy.Policy) -> None:
        """Keep snapshots by these rules from now on; the volume may be in use.  `copy_timeout` stays as it is."""
        state = self.state
        with state.changing:
            state.rules = dataclasses.replace(rules, copy_timeout=state.rules.copy_timeout)
            state.space.allow(rules.limit, rules.warn_percent)
            state.enforcer.rules = state.rules
            for snapshot in state.snapshots:
                if isinstance(snapshot.write_once, write_once.WriteOnce):
                    snapshot.write_once.verify_reads = rules.verify_reads

    # Stores ---------------------------------------------------------------------------------------------------------

    def store_of(self, snapshot: Snapshot) -> settings.Kind:
        """Return the kind of the store of a snapshot."""
        return converting.kind_of(self.state, snapshot)

    def set_store(self, kind: settings.Kind) -> None:
        """Let later snapshots have a store of that kind, MAP or LOG.  Raises StoreRefused, VolumeError."""
        converting.set_kind(self.state, kind)

    def convert_stores(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_damage: OnDamage | None = None,
    ) -> list[converting.Result]:
        """Convert the stores of existing snapshots to the kind that later ones get, see `converting`.

        Return the outcome for each snapshot.  Raises StoreRefused, RollbackUnderWay, VolumeError.
        """
        return converting.convert(self.state, progress, cancelled, on_damage)

    # Rollback and size ----------------------------------------------------------------------------------------------

    def begin_rollback(
        self,
        name: str,
        identity: uuid.UUID | None = None,
        *,
        cancelled: Callable[[], bool] | None = None,
        on_damage: OnDamage | None = None,
        accept_outside: bool = False,
    ) -> None:
        """Roll the volume back to a snapshot.

        First this reads the content of the snapshot that the volume no longer has, and compares it with its checksums.
        When it returns, the volume has the snapshot's content, for good, and `continue_rollback` has to bring that
        content to the primary.  Blocks by which the volume has grown since the snapshot read as zeroes.

        Damaged blocks are refused (DamageFound).  With `on_damage`, damaged blocks are taken as they are, unreadable
        ones as zeroes, and `on_damage` is called for them.  Blocks that an initiator wrote to a write-once LUN refuse
        it, too (WrittenOutside), unless `accept_outside`.

        Raises NoSuchSnapshot, RollbackRefused, SnapshotDoubtful, DamageFound, WrittenOutside, RollbackUnderWay, and
        RollbackStopped when `cancelled` returns True.
        """
        rollback.begin(self.state, name, identity, cancelled, on_damage, accept_outside=accept_outside)

    def accept_damage(self) -> None:
        """Let the rollback under way take damaged blocks of the snapshot as they are, also after a restart.

        Raises VolumeError.
        """
        rollback.accept_damage(self.state)

    def continue_rollback(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> bool:
        """Bring the primary to the content of the snapshot that the volume was rolled back to.

        Call `progress` with (bytes done, bytes in all).  Return False if `cancelled` stopped it; the volume has the
        snapshot's content all the same.

        Raise VolumeError, DamageFound, SnapshotDoubtful, PreserveFailed, and the errors of reading and writing.  It may be called
        again.
        """
        return rollback.go_on(self.state, progress, cancelled)

    def resize(self, size: int) -> None:
        """Make the volume `size` bytes large.  It can only grow.  Snapshots keep the size they were taken with.

        Raises ResizeRefused, RollbackUnderWay.
        """
        state = self.state
        with state.reshaping, state.changing:
            state.check_open()
            state.check_not_rolling_back()
            before = self.device.size
            if size < before:
                reason = f"it has {before} bytes, and cannot shrink to {size}: data beyond would be lost"
                raise errors.ResizeRefused(self.name, reason, "give a larger size, or copy it to a smaller volume")
            if size % self.device.block_size:
                reason = f"{size} bytes are no whole number of blocks of {self.device.block_size} bytes"
                raise errors.ResizeRefused(self.name, reason, "give a multiple of the block size")
            if size == before:
                return
            try:
                self.primary.make_room(size)
                state.store_or_not(dataclasses.replace(state.manifest, size=size))
            except backing_file.CannotOpen as error:
                raise errors.ResizeRefused(self.name, error.reason, error.remedy) from error
            except (OSError, block_device.BlockDeviceError) as error:
                raise errors.ResizeRefused(self.name, errors.why(error), "check the disk") from error
            with self.device.hold():
                self.primary.size = size
                self.device.resized()


def _same_disk(path: Path, fd: int) -> bool:
    """Return whether `path` names the block device that is open as `fd`; a device may have several nodes."""
    named, opened = path.stat(), os.fstat(fd)
    return stat.S_ISBLK(named.st_mode) and stat.S_ISBLK(opened.st_mode) and named.st_rdev == opened.st_rdev
