# SPDX-License-Identifier: Apache-2.0
"""Deleting a snapshot (rule 8, lun_backends/README.md).

The oldest snapshot is removed at once.  Any other is marked `deleting`, its chunks move down to the next older
snapshot, and then it is removed.  A deletion that was stopped or interrupted starts again, and skips the chunks that
have moved.

Damaged chunks move down as damaged (see `move_down`), so damage neither stops a deletion nor is forgotten.  Blocks that
cannot be read stop it, until the caller accepts that the older snapshots lose them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from lun_backends import block_device, lost_device, tracking, write_once
from lun_backends.damage import OnDamage
from lun_backends.files import os_error
from lun_backends.volumes import clones, errors, invalidation, keeping, move_down
from lun_backends.volumes.manifest import SnapshotState
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""
Cancelled = Callable[[], bool]


def delete(
    state: State,
    snapshot: Snapshot,
    progress: Progress | None,
    cancelled: Cancelled | None,
    on_damage: OnDamage | None,
    *,
    accept_loss: bool,
) -> None:
    """Delete a snapshot.  The caller holds `State.reshaping`.  Raises VolumeError, DeletionStopped."""
    keeping.check_deletable(state, snapshot)
    index = state.snapshots.index(snapshot)
    try:
        if index and snapshot.is_invalid:
            reason = f"{snapshot.name!r} is invalid, and older snapshots must not be read around it"
            raise errors.VolumeError(state.name, reason, "delete the older ones first")
        if index:
            older = state.snapshots[index - 1]
            if not snapshot.deleting:
                mark_deleting(state, snapshot)
            # No read goes past an invalid snapshot, so that snapshot may lack the chunks.  But then it must stay
            # invalid.
            if older.is_invalid and not older.invalid_on_disk:
                state.enforcer.invalidate(older, older.invalid_reason)
            moved = older.is_invalid or _move_down(
                state, snapshot, older, progress, cancelled, on_damage, accept_loss=accept_loss
            )
            if not moved:
                reason = f"deleting {snapshot.name!r} was stopped"
                raise errors.DeletionStopped(state.name, reason, "delete it again to go on")
        with state.changing:
            clones.check_deletable(state, snapshot)
            forget(state, snapshot)
    except OSError as error:
        reason = f"cannot delete {snapshot.name!r}: {os_error.reason(error)}"
        raise errors.VolumeError(state.name, reason, "check the disk and delete it again") from error


def _move_down(
    state: State,
    snapshot: Snapshot,
    older: Snapshot,
    progress: Progress | None,
    cancelled: Cancelled | None,
    on_damage: OnDamage | None,
    *,
    accept_loss: bool,
) -> bool:
    """Move the chunks of `snapshot` to `older`.  Return False if it was cancelled.  Raises VolumeError."""
    source, target = snapshot.write_once, older.write_once
    if isinstance(source, lost_device.LostDevice):
        raise block_device.SnapshotInvalid(source.reason)
    if isinstance(target, lost_device.LostDevice):
        raise block_device.SnapshotInvalid(target.reason)
    try:
        with state.space.unlimited():
            return move_down.move_down(
                source, target, state.chunk_size, progress, cancelled, on_damage, accept_loss=accept_loss
            )
    except block_device.DamagedBlocks as error:
        block = state.device.block_size
        first, count = error.damage.offset // block, error.damage.length // block
        reason = (
            f"blocks {first} to {first + count - 1} of {snapshot.name!r} are damaged ({error.damage.reason}), and "
            f"{older.name!r} has a part of that chunk, so they cannot be moved to it as damaged"
        )
        raise errors.DamageFound(state.name, reason, f"delete {older.name!r} and all older ones first") from error
    except block_device.MediumError as error:
        if error.writing:
            raise
        reason = f"block {error.lba} of {snapshot.name!r} cannot be read: {error.reason}"
        remedy = f"repair the disk, or let {older.name!r} lose such blocks with --damaged"
        if accept_loss:  # a part of a chunk is lost, and no checksum can record that
            remedy = f"repair the disk, or delete {older.name!r} and all older ones first"
        raise errors.DamageFound(state.name, reason, remedy) from error
    except block_device.SpaceExhausted as error:
        reason = f"there is no room to move the chunks of {snapshot.name!r} to {older.name!r}"
        raise errors.VolumeError(state.name, reason, "free space, or delete the oldest snapshot first") from error
    except block_device.SnapshotInvalid:
        if not older.invalid_on_disk:
            raise
        return True  # the snapshot was invalidated meanwhile


def mark_deleting(state: State, snapshot: Snapshot) -> None:
    """Make `snapshot` read-only, durably.

    If it was the newest snapshot, copies go to the next older active one from now on.  The older one must not copy a
    grain from the primary that `snapshot` has, because such grains have changed since.  So its tracker gets all of
    them, and a grain that `snapshot` has in part is completed first.  The same is done for snapshots in deletion
    between the two.
    """
    tracker = known_below(state, snapshot) if snapshot is state.newest_active() else None
    with state.changing:
        if tracker is None or snapshot is not state.newest_active():
            _begin_deleting(state, snapshot)
            return
        with state.device.hold():
            if state.device.tracker is not None:
                tracker.known |= state.device.tracker.known
            _begin_deleting(state, snapshot)
            state.arm(tracker)


def known_below(state: State, snapshot: Snapshot) -> tracking.Tracker:
    """Return the grains that the next older active snapshot must not copy from the primary once `snapshot` is deleted.

    `snapshot` is the newest.  This takes long, and another snapshot may be taken meanwhile.  Raise VolumeError, and the
    errors of preserving.
    """
    older = state.snapshots[: state.snapshots.index(snapshot)]
    between = list(itertools.takewhile(lambda other: other.deleting, reversed(older)))
    if lost := next((other for other in between if other.is_invalid), None):
        reason = f"{lost.name!r} was on its way down to an older one and cannot be read: {lost.invalid_reason}"
        raise errors.VolumeError(state.name, reason, "delete the older ones first")
    for source in (snapshot, *between):
        _complete_partial(state, source)
    tracker = state.moving_tracker(between)
    # A grain that is visible and not yet durable must not count.  Its own writer still waits for the commit, but other
    # writers would not.
    own = state.moving_tracker([snapshot])
    if isinstance(snapshot.write_once, write_once.WriteOnce):
        on_their_way = snapshot.write_once.on_their_way()
        if snapshot.write_once.store.broken:  # it has also taken back the grains that it could not make durable
            own = state.moving_tracker([snapshot])
        for offset, length in on_their_way:
            own.known.remove_range(offset >> tracking.SHIFT, tracking.count(offset + length))
    tracker.known |= own.known
    return tracker


def _begin_deleting(state: State, snapshot: Snapshot) -> None:
    """Record that `snapshot` is in deletion.  Raises OSError, SnapshotCloned; then nothing has changed."""
    clones.check_deletable(state, snapshot)  # one may have been made since the deletion was asked for
    state.store_or_not(state.with_record(dataclasses.replace(state.record_of(snapshot), state=SnapshotState.DELETING)))
    snapshot.deleting = True
    snapshot.view.close()  # while writes are held, because later changes are not preserved for the view


def forget(state: State, snapshot: Snapshot) -> None:
    """Remove a snapshot from the list, durably, then from the chain, then its files.

    The files are removed once the last reader has ended.  The caller holds `State.changing`.  Raises OSError.
    """
    left = tuple(other for other in state.snapshots if other is not snapshot)
    # Snapshots in deletion that are now the oldest have no older snapshot to move their chunks to.
    while left and left[0].deleting:
        left = left[1:]
    kept = {other.uuid.int for other in left}
    removed = [other for other in state.snapshots if other.uuid.int not in kept]
    records = tuple(record for record in state.manifest.snapshots if record.uuid.int in kept)
    doubtful = {identity: reason for identity, reason in state.manifest.doubtful.items() if identity.int in kept}
    notes = {identity: notes for identity, notes in state.manifest.notes.items() if identity.int in kept}
    shorter = dataclasses.replace(state.manifest, snapshots=records, doubtful=doubtful, notes=notes)
    newest = state.newest_active()
    if newest in left or (newest is None and state.device.write_once_side is None):
        state.store_or_not(shorter)
        state.snapshots = left
    else:
        with state.device.hold():
            state.store_or_not(shorter)
            state.snapshots = left
            state.arm(tracking.Tracker(state.device.grains))
    state.chain.replace([other.write_once for other in left])
    for other in removed:
        other.view.close()
        other.write_once.close()
        if isinstance(other.write_once, write_once.WriteOnce):
            state.space.add(-other.write_once.store.allocated_bytes)
        state.stores.remove(other.uuid)
        invalidation.unmark(state.path(other.uuid), state.io)


def _complete_partial(state: State, snapshot: Snapshot) -> None:
    """Preserve every grain that `snapshot` has in part as a whole, in the newest snapshot.

    A snapshot has a grain in part if an initiator wrote to its write-once LUN directly.
    """
    device = snapshot.write_once
    partly = tracking.add_to(tracking.BitMap(), tracking.touched(device))
    partly -= tracking.add_to(tracking.BitMap(), tracking.whole(device))
    if partly:
        state.device.preserve_many(tracking.bytes_of(partly, device.size))
