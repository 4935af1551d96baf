# SPDX-License-Identifier: Apache-2.0
"""A volume: a primary with its ordered snapshots, and what happens to them.

    <directory>/volume.json             the manifest
    <directory>/snapshots/<uuid>.map    a snapshot's write-once device: its chunk map
    <directory>/snapshots/<uuid>.chunks and its chunks

The primary lies wherever the manifest says.  A crash at any point leaves the volume as it was before or after a
change, because the manifest is the change:

| change          | before the manifest is replaced                  | after                                                |
| --------------- | ------------------------------------------------ | ---------------------------------------------------- |
| create snapshot | make the files; hold writes; flush the primary   | extend the chain, arm copy-on-write; release         |
| delete, oldest  | -                                                | shorten the chain, wait for its readers, drop files  |
| delete, another | complete chunks written in part; if it is the    | move its chunks to the next older snapshot, replace  |
|                 | newest, hold writes and arm the next older one   | the manifest again, then as with the oldest          |
| restore         | note which chunks changed; hold writes           | cover the primary with the moment, release; then     |
|                 |                                                  | bring the moment to the primary (see `restoring`)    |
| resize          | make the primary larger                          | hold writes, use it                                  |

Above 400 lines, for taking, deleting and finding snapshots share one table of crashes, which is best read in one place.

Files that no manifest names are leftovers of such a crash and are removed at open, when their names say that they are
ours.  A snapshot whose files cannot be opened stays in the list, invalid, and every view that would need it fails.

Each snapshot method runs on its caller's thread and waits for disks; changes queue behind each other.  What takes long in
a deletion or a rollback holds up others of the two, but no snapshot that is to be taken.  Whoever serves a
snapshot's devices withdraws them before deleting it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lun_backends import (
    block_device,
    copy_on_write,
    flat,
    lost_device,
    names,
    preserving,
    snapshot_view,
    tracking,
    write_once,
)
from lun_backends.durability import Durability
from lun_backends.files import backing_file, storage_io
from lun_backends.stores import space, store_file, thin
from lun_backends.stores.superblock import Superblock
from lun_backends.volumes import (
    boot,
    doubt,
    errors,
    invalidation,
    manifest,
    move_down,
    pending_chunks,
    policy,
    rollback_overlay,
)
from lun_backends.volumes.manifest import SnapshotState
from lun_backends.volumes.snapshot import Snapshot

DEFAULT_CHUNK_SIZE = 65536
_FLUSHES_AHEAD = 16
_SHORT_FLUSH = 0.005  # seconds; what a barrier may well take
_PENDING = ".pending"
_FILES = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(?:map|chunks|invalid|invalid\.new|pending)")


@dataclasses.dataclass
class Taking:
    """A snapshot on its way."""

    record: manifest.SnapshotRecord
    device: write_once.WriteOnce
    recorded: bool = False  # it may be: its manifest was about to be put in force
    abandoned: bool = False


class Volume:
    """An open volume; made by `create` and `open`.  One owner: primary and maps are locked."""

    def __init__(
        self,
        directory: Path,
        record: manifest.Manifest,
        io: storage_io.StorageIO,
        rules: policy.Policy,
        listener: policy.Listener,
    ) -> None:
        """Not to be called: use `create` or `open`."""
        self.directory = directory
        self.name = record.name
        self.uuid = record.uuid
        self.chunk_size = record.chunk_size
        self.durability = record.durability
        self.primary = flat.Flat(
            record.primary.path, block_size=record.block_size, direct=record.primary.direct, size=record.size, io=io
        )
        self.snapshots: tuple[Snapshot, ...] = ()
        self.rules = rules
        self.space = space.Space(
            rules.limit, rules.warn_percent, lambda used, limit: listener(policy.SpaceLow(used, limit))
        )
        self._enforcer = invalidation.Enforcer(rules, listener, lambda: self.snapshots, self._path, io)
        self.device = copy_on_write.CopyOnWrite(self.primary, record.chunk_size, self._copy_failed, rules.copy_timeout)
        self.leftovers_removed: tuple[Path, ...] = ()
        self._manifest = record
        self._listener = listener
        self._io = io
        self._chain = snapshot_view.Chain()
        self._restoring: rollback_overlay.RollbackOverlay | None = None
        # Both for what changes the volume: `_reshaping`, taken first, for as long as chunks are moved; `_changing` briefly.
        self._reshaping = threading.Lock()
        self._changing = threading.Lock()
        self._doubt = doubt.Doubt(self.device, self._changing, self._put_back, self._restored_nothing, listener)
        self._deciding = threading.Lock()  # whether a snapshot is given up, or becomes what the volume is made of
        self._preparing: Path | None = None  # what a rollback will have to settle, no manifest says so yet
        self._opened = self._closed = False

    @classmethod
    def create(
        cls,
        directory: Path,
        name: str,
        primary: Path,
        *,
        size: int | None = None,
        block_size: int = 512,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        direct: bool = False,
        durability: Durability = Durability.POWER_LOSS,
        rules: policy.Policy = policy.DEFAULT,
        listener: policy.Listener = policy.nobody,
        io: storage_io.StorageIO = storage_io.SYSTEM,
    ) -> Volume:
        """Make a volume in `directory` (made if missing) and open it.  With `size` (bytes) the primary is made, sparse,
        unless there is a file or device of at least that size; without, the primary is taken as it is.

        Raises VolumeError, BadName, backing_file.CannotOpen, ManifestError.
        """
        if not names.valid(name):
            raise errors.BadName(name, "this is no name for a volume", f"a name is {names.RULE}")
        if manifest.exists(directory):
            raise errors.VolumeError(
                name, f"there is a volume in {directory} already", "open it, or give another directory"
            )
        try:
            (directory / "snapshots").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.VolumeError(
                name, f"cannot make {directory}: {error.strerror}", "check path and permissions"
            ) from error
        if size is not None and not primary.exists():
            backing_file.create(primary, size)
        with contextlib.closing(flat.Flat(primary, block_size=block_size, direct=direct)) as device:
            actual = device.size
        if size is not None and actual < size:
            raise errors.VolumeError(name, f"{primary} has {actual} bytes, fewer than {size}", "give the size it has")
        try:
            record = manifest.Manifest(
                name=name,
                uuid=uuid.uuid4(),
                created_at=manifest.now(),
                primary=manifest.PrimaryRecord(path=primary.absolute(), direct=direct),
                size=actual if size is None else size,
                block_size=block_size,
                chunk_size=chunk_size,
                durability=durability,
                in_use=None if durability is Durability.POWER_LOSS else boot.current(),
            )
        except ValueError as error:  # pydantic's ValidationError is one
            raise errors.VolumeError(
                name, manifest.first_problem(error), "correct it and create the volume again"
            ) from error
        volume = cls(directory, record, io, rules, listener)
        try:
            volume._store(record)
        except OSError as error:
            volume.close()
            raise errors.VolumeError(
                name, f"cannot write the manifest: {error.strerror}", "check the file system"
            ) from error
        volume._opened = True
        return volume

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        rules: policy.Policy = policy.DEFAULT,
        listener: policy.Listener = policy.nobody,
        io: storage_io.StorageIO = storage_io.SYSTEM,
    ) -> Volume:
        """Open the volume in `directory`.  Raises ManifestError, backing_file.CannotOpen, PendingDamaged, VolumeError."""
        recorded = manifest.load(directory)
        record = manifest.without_groups(directory, recorded)
        if record != recorded:
            with contextlib.suppress(OSError):  # the next open finds the same
                manifest.store(directory, record, io)
        volume = cls(directory, record, io, rules, listener)
        try:
            volume._open_snapshots()
            volume._note_boot()
            volume._opened = True
        except BaseException:
            volume.close()
            raise
        return volume

    def close(self) -> None:
        """Drain, flush and release everything.  Closing twice is allowed."""
        with self._reshaping, self._changing:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):  # no write is let through any more, so either may come up
                self._doubt.resolve()
            try:
                self.device.close()
                self._chain.replace(())
                self.primary.close()
            finally:
                if self._restoring is not None:
                    self._restoring.record.close()
                devices = [snapshot.write_once for snapshot in self.snapshots]
                broken = any(isinstance(device, write_once.WriteOnce) and device.store.broken for device in devices)
                for device in devices:
                    device.close()
            if self._opened and self._manifest.in_use == boot.current() and not broken:
                with contextlib.suppress(OSError):  # it is taken for unclean then, which is safe
                    manifest.store(self.directory, dataclasses.replace(self._manifest, in_use=None), self._io)

    # Snapshots ------------------------------------------------------------------------------------------------------

    def snapshot(self, name: str, identity: uuid.UUID | None = None) -> Snapshot:
        """The snapshot of that name; with `identity` no later one that was given the name.  Raises NoSuchSnapshot."""
        for snapshot in self.snapshots:
            if snapshot.name == name and identity in (None, snapshot.uuid):
                return snapshot
        known = ", ".join(snapshot.name for snapshot in self.snapshots) or "none"
        raise errors.NoSuchSnapshot(self.name, f"there is no snapshot {name!r}", f"there are: {known}")

    def create_snapshot(
        self, name: str, labels: Mapping[str, str] | None = None, *, scheduled: bool = False
    ) -> Snapshot:
        """Take a snapshot (rule 7, lun_backends/README.md); `scheduled` remembers that a schedule did, and may delete it.

        Raises BadName, BadLabel, SnapshotExists, SnapshotFailed.
        """
        with self._changing:
            taking = self.begin_taking(name, labels, scheduled=scheduled)
            try:
                self.prepare_taking(taking)
                began = time.perf_counter()
                with self.device.hold():
                    try:
                        self.commit_taking(taking)
                    except BaseException:
                        self.abandon_taking(taking)  # before any write goes on
                        raise
                    snapshot = self.end_taking(taking)
            except (OSError, block_device.BlockDeviceError) as error:
                self.abandon_taking(taking)
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise errors.SnapshotFailed(self.name, f"no snapshot was taken: {reason}", "check the disk") from error
            snapshot.held_seconds = time.perf_counter() - began
            return snapshot

    def label_snapshot(self, name: str, changes: Mapping[str, str | None]) -> Snapshot:
        """Give a snapshot labels, or take away those whose value is None.  Raises NoSuchSnapshot, BadLabel, VolumeError."""
        with self._changing:
            self._check_open()
            snapshot = self.snapshot(name)
            labels = {**snapshot.labels, **{key: value for key, value in changes.items() if value is not None}}
            labels = {key: value for key, value in labels.items() if changes.get(key, value) is not None}
            self._check_labels(labels)
            records = tuple(
                dataclasses.replace(record, labels=labels) if record.uuid == snapshot.uuid else record
                for record in self._manifest.snapshots
            )
            try:
                self._store(dataclasses.replace(self._manifest, snapshots=records))
            except OSError as error:
                reason = f"cannot write the manifest: {error.strerror}"
                raise errors.VolumeError(self.name, reason, "check the file system") from error
            snapshot.labels = labels
            return snapshot

    def _check_labels(self, labels: Mapping[str, str]) -> None:
        problems = (manifest.bad_label(key, value) for key, value in labels.items())
        if problem := next(filter(None, problems), None):
            raise errors.BadLabel(self.name, problem, "correct the label")
        if len(labels) > manifest.LABELS_MAX:
            raise errors.BadLabel(self.name, f"there are more than {manifest.LABELS_MAX} labels", "take some away")

    def keep_by(self, rules: policy.Policy) -> None:
        """Keep snapshots by these rules from now on, while the volume is used; `copy_timeout` stays what it is."""
        with self._changing:
            self.rules = dataclasses.replace(rules, copy_timeout=self.rules.copy_timeout)
            self.space.allow(rules.limit, rules.warn_percent)
            self._enforcer.rules = self.rules

    # The steps of taking a snapshot, for `create_snapshot` and, several volumes side by side, for `group`.

    def changing(self) -> contextlib.AbstractContextManager[object]:
        """For `group`: nothing else changes the volume while the context is open."""
        return self._changing

    def begin_taking(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        scheduled: bool = False,
        group: uuid.UUID | None = None,
    ) -> Taking:
        """Make the files.  Raises as `create_snapshot`."""
        self._check_open()
        self._check_labels(labels or {})
        if not names.valid(name):
            raise errors.BadName(self.name, f"{name!r} is no name for a snapshot", f"a name is {names.RULE}")
        self._check_not_restoring()
        self._check_recorded()
        if any(snapshot.name == name for snapshot in self.snapshots):
            raise errors.SnapshotExists(
                self.name, f"there is a snapshot {name!r} already", "use another name, or delete it"
            )
        if self.rules.max_snapshots is not None and len(self.snapshots) >= self.rules.max_snapshots:
            raise errors.TooManySnapshots(
                self.name, f"there are {len(self.snapshots)} snapshots, as many as are allowed", "delete one first"
            )
        if self.space.full:
            raise errors.NoSpaceLeft(
                self.name,
                f"the snapshots take {self.space.used} of {self.space.limit} bytes allowed",
                "delete snapshots, or raise the limit",
            )
        record = manifest.SnapshotRecord(
            name=name,
            uuid=uuid.uuid4(),
            taken_at=manifest.now(),
            labels=dict(labels or {}),
            scheduled=scheduled,
            group=group,
        )
        try:
            superblock = Superblock(record.uuid, self.uuid, self.device.size, self.device.block_size, self.chunk_size)
            path = self._path(record.uuid)
            store = thin.ThinStore.create(path, superblock, durability=self.durability, io=self._io, space=self.space)
            device = write_once.WriteOnce(store)
        except block_device.BlockDeviceError as error:
            raise errors.SnapshotFailed(
                self.name, f"no snapshot was taken: {error}", "free space and try again"
            ) from error
        return Taking(record, device)

    def prepare_taking(self, taking: Taking) -> None:
        """All that can be done before the barrier.  Raises OSError, MediumError."""
        taking.record = dataclasses.replace(taking.record, taken_at=manifest.now())
        manifest.prepare(self.directory, self._with(taking), self._io)
        if self._synced:
            self._flush_ahead()

    def commit_taking(self, taking: Taking) -> None:
        """While writes are held: record the snapshot.  Raises OSError, MediumError; `abandon_taking` then, before the writes
        are let go.
        """
        if self._synced:
            self.primary.flush()
        taking.recorded = True
        manifest.commit(self.directory, self._io)

    def end_taking(self, taking: Taking) -> Snapshot:
        """While writes are held: preserve into it from now on."""
        self._manifest = self._with(taking)
        self._chain.append(taking.device)
        snapshot = self._snapshot(taking.record, taking.device)
        self.snapshots = (*self.snapshots, snapshot)  # before any copy can fail and ask whose it was
        self.device.arm(taking.device)
        return snapshot

    def end_group(self) -> None:
        """The group that the newest snapshot is of was taken.  Raises OSError."""
        self._store(manifest.without_groups(self.directory, self._manifest))

    def _with(self, taking: Taking) -> manifest.Manifest:
        records = (*self._manifest.snapshots, taking.record)
        return dataclasses.replace(self._manifest, snapshots=records, epoch=self._manifest.epoch + 1)

    def _flush_ahead(self) -> None:
        """Flush until little is left for the flush that writes are held for.  Under load each turn finds what was written
        during the one before, so turns get shorter as long as the disk is faster than the writers.
        """
        for _ in range(_FLUSHES_AHEAD):
            began = time.perf_counter()
            self.primary.flush()
            if time.perf_counter() - began < _SHORT_FLUSH:
                return

    def abandon_taking(self, taking: Taking) -> None:
        """Make sure that a snapshot that was not taken cannot come up at the next open: its manifest may be durable
        although storing it failed.  Without files it would be listed as invalid, never as good.  Without either made sure,
        no writes are let through any more; see `doubt`.  Abandoning it twice is allowed.
        """
        if taking.abandoned:
            return
        taking.abandoned = True
        sure = not taking.recorded
        with contextlib.suppress(block_device.BlockDeviceError):
            taking.device.close()
        self.space.add(-taking.device.store.allocated_bytes)
        with contextlib.suppress(block_device.BlockDeviceError, OSError):
            thin.ThinStore.remove(self._path(taking.record.uuid), self._io)
            sure = True
        try:
            self._put_back()
        except OSError as error:
            if not sure:
                name = taking.record.name
                self._doubt.begin(f"taking {name!r} could neither be recorded nor taken back: {error.strerror}")

    def delete_snapshot(
        self,
        name: str,
        identity: uuid.UUID | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Delete a snapshot.  The oldest goes at once; any other first moves its chunks to the next older one, which
        calls `progress` with (bytes done, bytes in all) and stops when `cancelled` says so.

        Raises NoSuchSnapshot, DeletionStopped, VolumeError.
        """
        with self._reshaping:
            self._check_open()
            self._check_not_restoring()
            self._delete(self.snapshot(name, identity), progress, cancelled)

    def resume_deletions(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Go on with what a crash or a cancellation left `deleting`; as `delete_snapshot`."""
        with self._reshaping:
            self._check_open()
            self._check_not_restoring()
            for snapshot in reversed(self.snapshots):
                if snapshot.deleting:
                    self._delete(snapshot, progress, cancelled)

    def _delete(
        self,
        snapshot: Snapshot,
        progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        index = self.snapshots.index(snapshot)
        try:
            if index and snapshot.invalid_reason:
                reason = f"{snapshot.name!r} is invalid, and older snapshots must not be read around it"
                raise errors.VolumeError(self.name, reason, "delete the older ones first")
            if index:
                older = self.snapshots[index - 1]
                if not snapshot.deleting:
                    self._mark_deleting(snapshot)
                # Nothing can be read past an invalid snapshot, so nobody would miss what does not go down to it; but it must
                # stay invalid.
                if older.invalid_reason and not older.invalid_on_disk:
                    self._enforcer.invalidate(older, older.invalid_reason)
                if not older.invalid_reason and not self._move_down(snapshot, older, progress, cancelled):
                    reason = f"deleting {snapshot.name!r} was stopped"
                    raise errors.DeletionStopped(self.name, reason, "delete it again to go on")
            with self._changing:
                self._forget(snapshot)
        except OSError as error:
            reason = f"cannot delete {snapshot.name!r}: {error.strerror}"
            raise errors.VolumeError(self.name, reason, "check the disk and delete it again") from error

    def _move_down(
        self,
        snapshot: Snapshot,
        older: Snapshot,
        progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> bool:
        """Gives False if it was cancelled.  Raises VolumeError."""
        try:
            with self.space.unlimited():
                return move_down.move_down(snapshot.write_once, older.write_once, self.chunk_size, progress, cancelled)
        except block_device.SpaceExhausted as error:
            reason = f"there is no room to move what {snapshot.name!r} has to {older.name!r}"
            raise errors.VolumeError(self.name, reason, "free space, or delete the oldest snapshot first") from error
        except block_device.SnapshotInvalid:
            if not older.invalid_on_disk:
                raise
            return True  # it was given up meanwhile

    def _mark_deleting(self, snapshot: Snapshot) -> None:
        """Let nothing go into `snapshot` any more, durably.

        From here on it is read-only: if it was the newest, copies go to the next older active one, which must get no
        chunk from the primary that `snapshot` has - those have changed since.  So all of them are in its tracker, and
        a chunk that `snapshot` has in part is completed first.  The same goes for what is in deletion between the two.
        """
        tracker = self._known_below(snapshot) if snapshot is self._newest_active() else None
        with self._changing:
            if tracker is None or snapshot is not self._newest_active():
                self._begin_deleting(snapshot)
                return
            with self.device.hold():
                if self.device.tracker is not None:
                    tracker.known |= self.device.tracker.known
                self._begin_deleting(snapshot)
                self._arm(tracker)

    def _known_below(self, snapshot: Snapshot) -> tracking.Tracker:
        """What the next older active one must not get from the primary when the newest one, `snapshot`, goes.  This takes
        long, and another snapshot may be taken meanwhile.  Raises VolumeError, and what preserving raises.
        """
        older = self.snapshots[: self.snapshots.index(snapshot)]
        between = list(itertools.takewhile(lambda each: each.deleting, reversed(older)))
        if lost := next((each for each in between if each.invalid_reason), None):
            reason = f"{lost.name!r} was on its way down to an older one and cannot be read: {lost.invalid_reason}"
            raise errors.VolumeError(self.name, reason, "delete the older ones first")
        for each in (snapshot, *between):
            self._complete_partial(each)
        tracker = self._moving_tracker(between)
        # What is visible and not durable yet must not count: its writer has not gone on, and another would.
        own = self._moving_tracker([snapshot])
        if isinstance(snapshot.write_once, write_once.WriteOnce):
            on_their_way = snapshot.write_once.chunks_on_their_way()
            if snapshot.write_once.store.broken:  # and took back what it could not make durable
                own = self._moving_tracker([snapshot])
            own.known.difference_update(tracking.BitMap(on_their_way))
        tracker.known |= own.known
        return tracker

    def _begin_deleting(self, snapshot: Snapshot) -> None:
        """Raises OSError; then nothing has changed."""
        self._store_or_not(self._with_state(snapshot, SnapshotState.DELETING))
        snapshot.deleting = True
        snapshot.view.close()  # while writes are held: what changes from here on is not preserved for it

    def _forget(self, snapshot: Snapshot) -> None:
        """Take it off the list, durably; then off the chain, when its last reader has ended; then its files."""
        left = tuple(other for other in self.snapshots if other is not snapshot)
        # Snapshots in deletion that are the oldest now have nobody to move their chunks to.
        while left and left[0].deleting:
            left = left[1:]
        gone = [other for other in self.snapshots if other not in left]
        kept = {other.uuid for other in left}
        record = dataclasses.replace(
            self._manifest, snapshots=tuple(each for each in self._manifest.snapshots if each.uuid in kept)
        )
        newest = self._newest_active()
        if newest in left or (newest is None and self.device.write_once_side is None):
            self._store_or_not(record)
            self.snapshots = left
        else:
            with self.device.hold():
                self._store_or_not(record)
                self.snapshots = left
                self._arm(tracking.Tracker(self.device.chunks))
        self._chain.replace([other.write_once for other in left])
        for other in gone:
            other.view.close()
            other.write_once.close()
            if isinstance(other.write_once, write_once.WriteOnce):
                self.space.add(-other.write_once.store.allocated_bytes)
            thin.ThinStore.remove(self._path(other.uuid), self._io)
            invalidation.unmark(self._path(other.uuid), self._io)

    def _complete_partial(self, snapshot: Snapshot) -> None:
        """Preserve, in the newest one, all of every chunk that a snapshot has in part (someone wrote to its LUN directly)."""
        for chunk, written in move_down.chunks(snapshot.write_once, self.chunk_size):
            length = min(self.chunk_size, snapshot.write_once.size - chunk * self.chunk_size)
            if written < length:
                self.device.preserve(chunk * self.chunk_size, length)

    def _tracker_of(self, snapshots: Sequence[Snapshot]) -> tracking.Tracker:
        tracker = tracking.Tracker(self.device.chunks)
        for snapshot in snapshots:
            tracker.add_many(chunk for chunk, _ in move_down.chunks(snapshot.write_once, self.chunk_size))
        return tracker

    def _moving_tracker(self, snapshots: Sequence[Snapshot]) -> tracking.Tracker:
        """The chunks of snapshots in deletion that an older one must not get from the primary any more.  One that they have
        only in part did not change since they were taken, or all of it would have been preserved: it is still to be copied.
        """
        tracker = tracking.Tracker(self.device.chunks)
        for snapshot in snapshots:
            size = snapshot.write_once.size
            tracker.add_many(
                chunk
                for chunk, written in move_down.chunks(snapshot.write_once, self.chunk_size)
                if written == min(self.chunk_size, size - chunk * self.chunk_size)
            )
        return tracker

    def _newest_active(self) -> Snapshot | None:
        """The snapshot that pre-images go to, or would have to go to if it could be reached."""
        for snapshot in reversed(self.snapshots):
            if not snapshot.deleting:
                return None if snapshot.invalid_on_disk else snapshot
        return None

    def _arm(self, tracker: tracking.Tracker) -> None:
        """Point copy-on-write at the newest active snapshot; only while no write runs."""
        newest = self._newest_active()
        if newest is None:
            self.device.disarm()
        elif newest.invalid_reason:
            self.device.arm(newest.write_once)  # it refuses every copy, and the policy says what then
        else:
            self.device.arm(newest.write_once, tracker)

    # Rolling back and resizing --------------------------------------------------------------------------------------

    @property
    def rolling_back_to(self) -> Snapshot | None:
        """The snapshot that the volume is being rolled back to, until the primary has caught up."""
        if self._manifest.restoring is None:
            return None
        return next(snapshot for snapshot in self.snapshots if snapshot.uuid == self._manifest.restoring)

    @property
    def unsettled(self) -> tracking.BitMap:
        """The chunks of a rollback under way that differ from what the primary and the newest snapshot know."""
        return tracking.BitMap() if self._restoring is None else self._restoring.pending.copy()

    def begin_rollback(
        self, name: str, identity: uuid.UUID | None = None, *, cancelled: Callable[[], bool] | None = None
    ) -> None:
        """Roll the volume back to a snapshot: when this returns it is at that moment, for good, and `continue_rollback` has
        to bring the primary there.  What it has grown by since is zeroes.

        Raises NoSuchSnapshot, RollbackRefused, RollbackUnderWay; RollbackStopped when `cancelled` says so.
        """
        with self._reshaping:
            with self._changing:
                snapshot, needed = self._restorable(name, identity)
            changed = tracking.BitMap()
            looked: tuple[Snapshot, ...] = ()
            record: pending_chunks.PendingChunks | None = None
            try:
                while True:
                    # All that takes long; snapshots may be taken meanwhile, and then the last one may have got more, too.
                    for each in needed[max(0, len(looked) - 1) :]:
                        for chunk, _ in move_down.chunks(each.write_once, self.chunk_size):
                            changed.add(chunk)
                            if cancelled is not None and cancelled():
                                reason = f"restoring {name!r} was stopped"
                                raise errors.RollbackStopped(self.name, reason, "the volume is as before")
                    looked = needed
                    self._check_room(name, len(changed))
                    record = self._prepare_restoring(snapshot, changed, record)
                    with self._changing:
                        snapshot, needed = self._restorable(name, identity)
                        if needed == looked:
                            self._mark_restoring(snapshot, needed, record)
                            return
            except BaseException as error:
                if record is not None:
                    record.close()
                with self._changing:
                    self._preparing = None
                    if not self._doubt.reason:
                        self._restored_nothing()
                if not isinstance(error, OSError | block_device.MediumError):
                    raise
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise errors.RollbackRefused(
                    self.name, f"{name!r} was not restored: {why}", "check the disk"
                ) from error

    def _restorable(self, name: str, identity: uuid.UUID | None) -> tuple[Snapshot, tuple[Snapshot, ...]]:
        """A snapshot that the volume may be rolled back to, and those that this needs.  Raises as `begin_rollback`."""
        self._check_open()
        self._check_not_restoring()
        self._check_recorded()
        snapshot = self.snapshot(name, identity)
        needed = self.snapshots[self.snapshots.index(snapshot) :]
        self._check_readable(name, needed)
        if snapshot.deleting:
            raise errors.RollbackRefused(self.name, f"{name!r} is being deleted", "restore another snapshot")
        return snapshot, needed

    def _check_readable(self, name: str, needed: Sequence[Snapshot]) -> None:
        for each in needed:
            if each.invalid_reason:
                raise errors.RollbackRefused(
                    self.name,
                    f"{name!r} cannot be read: {each.name!r} is invalid: {each.invalid_reason}",
                    "restore another snapshot",
                )

    def continue_rollback(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> bool:
        """Bring the primary to the moment that the volume was rolled back to; gives False if `cancelled` stopped it (the
        volume is at that moment all the same).  Calls `progress` with (bytes done, bytes in all).

        Raises VolumeError, PreserveFailed, and what reading and writing raise; it may be called again.
        """
        with self._reshaping:
            self._check_open()
            if self._restoring is None:
                return True
            if not self._restoring.settle_all(progress, cancelled):
                return False
            with self._changing:
                done = self._restoring
                in_use = None if self.durability is Durability.POWER_LOSS else boot.current()
                try:
                    self._store(dataclasses.replace(self._manifest, restoring=None, in_use=in_use))
                except OSError as error:
                    raise errors.VolumeError(
                        self.name, f"cannot write the manifest: {error.strerror}", "check the disk and go on"
                    ) from error
                with self.device.hold():
                    self.device.uncover()
                self._restoring = None
                self._set_durability(self.durability)
            done.record.close()
            with contextlib.suppress(OSError):  # it costs space, nothing else, and the next open tries again
                self._io.unlink(done.record.path)
            return True

    def _check_room(self, name: str, changed: int) -> None:
        """Refuse a rollback that is sure to fill the disk: what changed is copied unless the newest snapshot has it."""
        newest = self._newest_active()
        have = 0 if newest is None else newest.preserved_bytes
        needed = changed * self.chunk_size - have
        disk = os.statvfs(self.directory)
        room = disk.f_bavail * disk.f_frsize
        limit = self.space.limit
        if limit is not None:
            room = min(room, limit - self.space.used)
        if needed > max(0, room):
            raise errors.RollbackRefused(
                self.name, f"restoring {name!r} needs up to {needed} bytes for newer snapshots", "free space first"
            )

    def _prepare_restoring(
        self, snapshot: Snapshot, changed: tracking.BitMap, record: pending_chunks.PendingChunks | None
    ) -> pending_chunks.PendingChunks:
        """All that can be done before the barrier of a rollback; with `record`, once more.  Raises OSError, MediumError."""
        self._set_durability(Durability.POWER_LOSS)
        pending = self._to_settle(snapshot, changed)
        if record is None:
            path = self._preparing = self._pending_path(snapshot.uuid)
            record = pending_chunks.PendingChunks.create(path, pending, self.device.chunks, self._io)
            self._io.fsync_directory(path.parent)
        else:
            record.add(pending)
        if self.device.tracker is not None:  # writes went on while we looked
            record.add(self._to_settle(snapshot, self.device.tracker.known))
        self._flush_ahead()
        return record

    def _to_settle(self, snapshot: Snapshot, changed: tracking.BitMap) -> tracking.BitMap:
        newest = self._newest_active() or snapshot
        return rollback_overlay.to_settle(changed, snapshot.view, newest.write_once, self.primary, self.chunk_size)

    def _mark_restoring(
        self, snapshot: Snapshot, needed: Sequence[Snapshot], record: pending_chunks.PendingChunks
    ) -> None:
        """The barrier of a rollback.  Raises OSError, MediumError, RollbackRefused."""
        with self.device.hold(), self._deciding:
            self._check_readable(snapshot.name, needed)
            self.primary.flush()  # a chunk that equals the snapshot's only in memory would be left out
            known = tracking.BitMap() if self.device.tracker is None else self.device.tracker.known
            record.add(self._to_settle(snapshot, known))
            try:
                self._store(dataclasses.replace(self._manifest, restoring=snapshot.uuid, in_use=None))
            except BaseException:
                self._unmark_restoring(snapshot)  # before any write goes on
                raise
            self._cover(snapshot, record)
            self._preparing = None

    def _unmark_restoring(self, snapshot: Snapshot) -> None:
        """Make sure that a rollback that failed cannot come up at the next open: its manifest may be durable although
        storing it failed.  If that fails, too, no writes are let through any more; see `doubt`.
        """
        try:
            self._put_back()
        except OSError as error:
            reason = f"rolling back to {snapshot.name!r} could neither be recorded nor taken back: {error.strerror}"
            self._doubt.begin(reason)

    def _restored_nothing(self) -> None:
        """Clean up behind a rollback that will not come up at the next open."""
        self._remove_leftovers()
        with contextlib.suppress(block_device.BlockDeviceError):
            self._set_durability(self.durability)

    def _put_back(self) -> None:
        """Store the manifest in force once more.  Raises OSError."""
        manifest.store(self.directory, self._manifest, self._io)

    def _check_recorded(self) -> None:
        """Raises VolumeError as long as nobody knows what is recorded."""
        try:
            self._doubt.resolve()
        except OSError as error:
            raise errors.VolumeError(self.name, self._doubt.reason, "see to the disk, then try again") from error

    @property
    def in_doubt(self) -> str:
        """Why writes are refused until the manifest can be stored, see `doubt`; empty if they are not."""
        return self._doubt.reason

    def _set_durability(self, durability: Durability) -> None:
        """Whatever the volume's own durability is, a rollback survives a power cut: the volume is made of its snapshots while
        it goes on.  Raises MediumError.
        """
        for snapshot in self.snapshots:
            if isinstance(snapshot.write_once, write_once.WriteOnce) and not snapshot.invalid_reason:
                snapshot.write_once.set_durability(durability)

    def _cover(self, snapshot: Snapshot, record: pending_chunks.PendingChunks) -> None:
        self._restoring = rollback_overlay.RollbackOverlay(
            self.primary, snapshot.view, record, self.chunk_size, self._preserve
        )
        self.device.cover(self._restoring)

    def _preserve(self, chunks: Sequence[int]) -> None:
        self.device.preserve_many(
            (chunk * self.chunk_size, min(self.chunk_size, self.device.size - chunk * self.chunk_size))
            for chunk in chunks
        )

    @property
    def _synced(self) -> bool:
        return self.durability is Durability.POWER_LOSS or self._manifest.restoring is not None

    def resize(self, size: int) -> None:
        """Make the volume `size` bytes large; it can only grow.  Snapshots keep the size they were taken with.

        Raises ResizeRefused, RollbackUnderWay.
        """
        with self._reshaping, self._changing:
            self._check_open()
            self._check_not_restoring()
            before = self.device.size
            if size < before:
                reason = f"it has {before} bytes, and cannot shrink to {size}: what lies beyond would be lost"
                raise errors.ResizeRefused(self.name, reason, "give a larger size, or copy it to a smaller volume")
            if size % self.device.block_size:
                reason = f"{size} bytes are no whole number of blocks of {self.device.block_size} bytes"
                raise errors.ResizeRefused(self.name, reason, "give a multiple of the block size")
            if size == before:
                return
            try:
                self.primary.make_room(size)
                self._store_or_not(dataclasses.replace(self._manifest, size=size))
            except backing_file.CannotOpen as error:
                raise errors.ResizeRefused(self.name, error.reason, error.remedy) from error
            except (OSError, block_device.BlockDeviceError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise errors.ResizeRefused(self.name, why or "the disk fails", "check the disk") from error
            with self.device.hold():
                self.primary.size = size
                self.device.resized()

    def _copy_failed(
        self, side: preserving.WriteOnceSide, error: block_device.BlockDeviceError, began: float
    ) -> preserving.Decision:
        """The policy, except that nothing is given up that the volume itself is made of."""
        with self._deciding:
            if self._restoring is None and not self._doubt.reason:
                return self._enforcer.copy_failed(side, error, began)
        self._listener(policy.WriteRefused(error))
        return preserving.Decision.REFUSE

    def _check_not_restoring(self) -> None:
        if self._manifest.restoring is not None:
            name = self.rolling_back_to.name if self.rolling_back_to else ""
            raise errors.RollbackUnderWay(
                self.name, f"it is being rolled back to {name!r}", "wait until that has ended"
            )

    # Looking --------------------------------------------------------------------------------------------------------

    def changed_map(self, name: str, buckets: int) -> list[float]:
        """Which parts of the volume changed since the snapshot: of `buckets` equal parts, the changed fraction of each.

        Raises NoSuchSnapshot, SnapshotInvalid.
        """
        index = self.snapshots.index(self.snapshot(name))
        tracker = self._tracker_of(self.snapshots[index:])
        tracker.add_many(self.unsettled)
        chunks = self.device.chunks
        fractions = []
        for bucket in range(buckets):
            first = bucket * chunks // buckets
            end = max(first + 1, (bucket + 1) * chunks // buckets)
            fractions.append(tracker.count(first, end) / (end - first))
        return fractions

    # Opening and the manifest -----------------------------------------------------------------------------------------

    def _open_snapshots(self) -> None:
        self._remove_leftovers()
        snapshots: list[Snapshot] = []
        for record in self._manifest.snapshots:
            device = self._open_device(record.uuid)
            self._chain.append(device)
            snapshot = self._snapshot(record, device)
            snapshot.deleting = record.state is SnapshotState.DELETING
            if snapshot.deleting:
                snapshot.view.close()
            snapshots.append(snapshot)
            self.snapshots = tuple(snapshots)
        # What moves down from newer snapshots is as good as in the armed one already; see `_mark_deleting`.
        moving: list[Snapshot] = []
        for snapshot in reversed(snapshots):
            if not snapshot.deleting:
                break
            moving.append(snapshot)
        if any(each.invalid_reason for each in moving):
            self._arm_past_lost(moving)
        else:
            self._arm(self._moving_tracker(moving))
        if self.rolling_back_to is not None:
            path = self._pending_path(self.rolling_back_to.uuid)
            self._cover(self.rolling_back_to, pending_chunks.PendingChunks.open(path, self.device.chunks, self._io))

    def _arm_past_lost(self, moving: Sequence[Snapshot]) -> None:
        """Some of those that were moving down to the newest active one cannot be read, so nobody knows which chunks it must
        not get from the primary any more.  Lost for good, they take it with them; else no copy is made for now.
        """
        newest = self._newest_active()
        lost = [each for each in moving if each.invalid_reason]
        back = next((each for each in lost if not each.invalid_on_disk), None)
        if newest is not None and back is None:
            try:
                self._enforcer.invalidate(newest, f"what {lost[0].name!r} had was lost before it was moved down to it")
            except (OSError, block_device.BlockDeviceError):
                back = lost[0]
        if back is not None and self._newest_active() is not None:
            self.device.arm(back.write_once)  # it refuses every copy, and the policy says what then
        else:
            self.device.disarm()

    def _open_device(self, identity: uuid.UUID) -> write_once.WriteOnce | lost_device.LostDevice:
        path = self._path(identity)
        size, block_size = self.device.size, self.device.block_size
        try:
            if reason := invalidation.marked(path):
                return lost_device.LostDevice(size, block_size, reason, recorded=True)
            if self._manifest.in_use not in (None, boot.current()):
                recorded = invalidation.mark(path, boot.LOST, self._io)
                return lost_device.LostDevice(size, block_size, boot.LOST, recorded=recorded)
            durability = Durability.POWER_LOSS if self._synced else self.durability
            store = thin.ThinStore.open(path, durability=durability, io=self._io, space=self.space)
            device = write_once.WriteOnce(store)
        except (store_file.StoreDamaged, store_file.StoreMissing) as error:
            recorded = invalidation.mark(path, str(error), self._io)
            return lost_device.LostDevice(size, block_size, str(error), recorded=recorded)
        except (block_device.BlockDeviceError, OSError) as error:
            return lost_device.LostDevice(size, block_size, str(error), recorded=False)
        if device.reason:
            with contextlib.suppress(block_device.BlockDeviceError):  # it costs space, nothing else
                device.discard(0)
        return device

    def _note_boot(self) -> None:
        """Say durably, before the first write, whether pre-images will be lost with this boot; see `boot`.  Raises VolumeError."""
        now = boot.current()
        before, after = self._manifest.in_use, None if self._synced else now
        if before == after:
            return
        devices = [snapshot.write_once for snapshot in self.snapshots]
        if before not in (None, now) and any(
            isinstance(device, lost_device.LostDevice) and not device.recorded for device in devices
        ):
            return  # they are to be marked at the next open
        try:
            if before == now:  # what was not synced by then will never be
                self.primary.flush()
                for path in [path for snapshot in self.snapshots for path in thin.files(self._path(snapshot.uuid))]:
                    with contextlib.suppress(FileNotFoundError):
                        fd = self._io.open(path, os.O_RDWR)
                        try:
                            self._io.fdatasync(fd)
                        finally:
                            self._io.close(fd)
            self._store(dataclasses.replace(self._manifest, in_use=after))
        except (OSError, block_device.MediumError) as error:
            reason = f"cannot note that it is in use: {error}"
            raise errors.VolumeError(self.name, reason, "check the disk, or set durability to power-loss") from error

    def _remove_leftovers(self) -> None:
        """Files with the name of a snapshot's that no manifest names: a crash came before it or after its end."""
        named = {str(record.uuid) for record in self._manifest.snapshots}
        removed = []
        for path in sorted((self.directory / "snapshots").glob("*")):
            match = _FILES.fullmatch(path.name)
            if match is None or path == self._preparing:
                continue
            rollback_ended = path.suffix == _PENDING and str(self._manifest.restoring) != match[1]
            if match[1] not in named or rollback_ended:
                with contextlib.suppress(OSError):  # it costs space, nothing else, and the next open tries again
                    self._io.unlink(path)
                    removed.append(path)
        self.leftovers_removed = tuple(removed)

    def _snapshot(
        self, record: manifest.SnapshotRecord, device: write_once.WriteOnce | lost_device.LostDevice
    ) -> Snapshot:
        view = snapshot_view.SnapshotView(self.primary, self._chain, device)
        return Snapshot(
            record.name, record.uuid, record.taken_at, device, view, labels=record.labels, scheduled=record.scheduled
        )

    def _path(self, identity: uuid.UUID) -> Path:
        return self.directory / "snapshots" / str(identity)

    def _pending_path(self, identity: uuid.UUID) -> Path:
        return self._path(identity).with_suffix(_PENDING)

    def _with_state(self, snapshot: Snapshot, state: SnapshotState) -> manifest.Manifest:
        records = tuple(
            dataclasses.replace(record, state=state) if record.uuid == snapshot.uuid else record
            for record in self._manifest.snapshots
        )
        return dataclasses.replace(self._manifest, snapshots=records)

    def _store(self, record: manifest.Manifest) -> None:
        manifest.store(self.directory, record, self._io)
        self._manifest = record
        self._doubt.end()

    def _store_or_not(self, record: manifest.Manifest) -> None:
        """`_store`; if it fails the old manifest is put in force again, for the new one may be durable all the same."""
        try:
            self._store(record)
        except OSError:
            with contextlib.suppress(OSError):
                self._put_back()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise block_device.DeviceClosed
