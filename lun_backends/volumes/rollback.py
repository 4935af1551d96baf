# SPDX-License-Identifier: Apache-2.0
"""Rolling a volume back to a snapshot: the steps around `rollback_overlay`, which describes each grain's way.

`begin` finds the grains that changed, reads them through the snapshot's view, and writes their numbers to a file.  Then
it puts the manifest in force that names the snapshot, and from then on the volume has the snapshot's content.  `go_on`
brings that content to the primary, and ends the rollback.

`begin` reads all grains that the rollback needs before it puts the manifest in force, because after that the volume is
made of them.  If it finds damage, it refuses the rollback, unless the caller accepts the damage.  The manifest records
that the caller did, so that a later start can continue.  Damage that comes later stops `go_on` until the caller accepts
it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Callable, Sequence

from lun_backends import block_device, damage, tracking
from lun_backends.damage import OnDamage
from lun_backends.durability import Durability
from lun_backends.files import os_error, storage_io
from lun_backends.stores import chunk_file
from lun_backends.volumes import boot, errors, outside, pending_grains, rollback_overlay
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State

_STEP = 1 << 20  # bytes read at a time


def begin(
    state: State,
    name: str,
    identity: uuid.UUID | None,
    cancelled: Callable[[], bool] | None,
    on_damage: OnDamage | None,
    *,
    accept_outside: bool = False,
) -> None:
    """Roll the volume back to a snapshot.  See `Volume.begin_rollback`."""
    with state.reshaping:
        with state.changing:
            snapshot, needed = _candidate(state, name, identity)
        changed = tracking.BitMap()
        read = tracking.BitMap()
        looked: tuple[Snapshot, ...] = ()
        record: pending_grains.PendingGrains | None = None
        try:
            while True:
                # All this takes long.  If snapshots are taken meanwhile, the last one of before may also have got more
                # grains.
                _find_changed(state, name, needed[max(0, len(looked) - 1) :], changed, cancelled)
                looked = needed
                if not accept_outside:
                    _check_origin(state, name, needed)
                check_room(state, name, changed)
                try:
                    _check_content(state, snapshot, changed - read, cancelled, on_damage)
                except block_device.SnapshotInvalid:
                    _check_readable(state, name, needed)
                    raise
                read |= changed
                record = prepare(state, snapshot, changed, record)
                with state.changing:
                    snapshot, needed = _candidate(state, name, identity)
                    if needed == looked:
                        commit(state, snapshot, needed, record, accept_damage=on_damage is not None)
                        return
        except BaseException as error:
            if record is not None:
                record.close()
            with state.changing:
                state.preparing = None
                if not state.doubt.reason:
                    state.forget_rollback()
            if not isinstance(error, OSError | block_device.MediumError):
                raise
            reason = f"{name!r} was not restored: {errors.why(error)}"
            raise errors.RollbackRefused(state.name, reason, "check the disk") from error


def _find_changed(
    state: State,
    name: str,
    snapshots: Sequence[Snapshot],
    changed: tracking.BitMap,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Add to `changed` all grains that some snapshots have.  Raises RollbackStopped."""
    for snapshot in snapshots:
        for first, end in tracking.touched(snapshot.write_once):
            changed.add_range(first, end)
            _check_wanted(state, name, cancelled)


def _check_origin(state: State, name: str, needed: Sequence[Snapshot]) -> None:
    """Raise WrittenOutside if an initiator wrote some of the snapshot's content."""
    if written := outside.found(needed, state.chunk_size):
        reason = outside.sentence(written, name, state.device.block_size)
        remedy = "look at it with `wolun snapshot verify` or export it; restore it as it is with --outside"
        raise errors.WrittenOutside(state.name, reason, remedy)


def _check_wanted(state: State, name: str, cancelled: Callable[[], bool] | None) -> None:
    """Raise RollbackStopped if the rollback was cancelled."""
    if cancelled is not None and cancelled():
        raise errors.RollbackStopped(state.name, f"restoring {name!r} was stopped", "the volume is as before")


def _check_content(
    state: State,
    snapshot: Snapshot,
    grains: tracking.BitMap,
    cancelled: Callable[[], bool] | None,
    on_damage: OnDamage | None,
) -> None:
    """Read some grains of the snapshot, because later it would be too late to find them damaged.

    Raise RollbackStopped, and RollbackRefused for damage if there is no `on_damage`.
    """
    view, found = snapshot.view, damage.Found()
    buffer = memoryview(bytearray(_STEP))
    for offset, length in rollback_overlay.steps(tracking.bytes_of(grains, view.size), _STEP):
        _check_wanted(state, snapshot.name, cancelled)
        view.read_checked(offset, [buffer[:length]], found)
    if on_damage is not None:
        for extent in found.extents:
            on_damage(extent)
    elif found:
        remedy = "restore another snapshot, or let the volume have the damaged blocks as they are with --damaged"
        raise errors.damage_in(state.name, snapshot.name, found, view.block_size, remedy)


def _candidate(state: State, name: str, identity: uuid.UUID | None) -> tuple[Snapshot, tuple[Snapshot, ...]]:
    """Return the snapshot to roll back to, and all snapshots that are needed to read it.  Raise the errors of `begin`."""
    state.check_open()
    state.check_not_rolling_back()
    state.check_recorded()
    snapshot = state.snapshot(name, identity)
    needed = state.snapshots[state.snapshots.index(snapshot) :]
    _check_readable(state, name, needed)
    _check_certain(state, snapshot)
    if snapshot.deleting:
        raise errors.RollbackRefused(state.name, f"{name!r} is being deleted", "restore another snapshot")
    return snapshot, needed


def _check_readable(state: State, name: str, needed: Sequence[Snapshot]) -> None:
    """Raise RollbackRefused if one of the snapshots that are needed is invalid."""
    for snapshot in needed:
        if snapshot.is_invalid:
            reason = f"{name!r} cannot be read: {snapshot.name!r} is invalid: {snapshot.invalid_reason}"
            raise errors.RollbackRefused(state.name, reason, "restore another snapshot")


def _check_certain(state: State, snapshot: Snapshot) -> None:
    """Raise SnapshotDoubtful if the snapshot may not be true, see `identity`."""
    if snapshot.doubt:
        reason = f"{snapshot.name!r} is doubtful: {snapshot.doubt}"
        raise errors.SnapshotDoubtful(state.name, reason, errors.accept(state.name))


def check_room(state: State, name: str, changed: tracking.BitMap) -> None:
    """Raise RollbackRefused if the rollback is sure to fill the disk.

    It copies all `changed` grains that the newest snapshot does not have already, and perhaps what is around them.
    """
    newest = state.newest_active()
    preserved = 0 if newest is None else newest.preserved_bytes
    unit = tracking.GRAIN if newest is None else max(tracking.GRAIN, newest.write_once.grain)
    scale = unit >> tracking.SHIFT
    units = ((first // scale, -(-end // scale)) for first, end in tracking.runs(changed))
    needed = len(tracking.add_to(tracking.BitMap(), units)) * unit - preserved
    disk = os.statvfs(state.directory)
    room = disk.f_bavail * disk.f_frsize
    limit = state.space.limit
    if limit is not None:
        room = min(room, limit - state.space.used)
    if needed > max(0, room):
        reason = f"restoring {name!r} needs up to {needed} bytes for newer snapshots"
        raise errors.RollbackRefused(state.name, reason, "free space first")


def prepare(
    state: State, snapshot: Snapshot, changed: tracking.BitMap, record: pending_grains.PendingGrains | None
) -> pending_grains.PendingGrains:
    """Do all that can be done before the barrier.  With `record`, add to it.  Raises OSError, MediumError."""
    state.set_durability(Durability.POWER_LOSS)
    pending = _to_settle(state, snapshot, changed)
    if record is None:
        path = state.preparing = state.pending_path(snapshot.uuid)
        record = pending_grains.PendingGrains.create(path, pending, state.device.grains, state.io)
        state.io.fsync_directory(path.parent)
    else:
        record.add(pending)
    if state.device.tracker is not None:  # writes went on meanwhile
        record.add(_to_settle(state, snapshot, state.device.tracker.known))
    state.flush_ahead()
    return record


def _to_settle(state: State, snapshot: Snapshot, changed: tracking.BitMap) -> tracking.BitMap:
    newest = state.newest_active() or snapshot
    return rollback_overlay.to_settle(changed, snapshot.view, newest.write_once, state.primary)


def commit(
    state: State,
    snapshot: Snapshot,
    needed: Sequence[Snapshot],
    record: pending_grains.PendingGrains,
    *,
    accept_damage: bool,
) -> None:
    """Pass the barrier of a rollback.  Raises OSError, MediumError, RollbackRefused."""
    with state.device.hold(), state.deciding:
        _check_readable(state, snapshot.name, needed)
        state.primary.flush()  # otherwise a grain that equals the snapshot's only in memory would be left out
        known = tracking.BitMap() if state.device.tracker is None else state.device.tracker.known
        record.add(_to_settle(state, snapshot, known))
        try:
            rolling_back = dataclasses.replace(
                state.manifest, restoring=snapshot.uuid, restoring_damaged=accept_damage, in_use=None
            )
            state.store(rolling_back)
        except BaseException:
            _take_back(state, snapshot)  # before any write continues
            raise
        cover(state, snapshot, record)
        state.preparing = None


def _take_back(state: State, snapshot: Snapshot) -> None:
    """Make sure that a rollback that failed does not take effect at the next open.

    Its manifest may be durable although it could not be stored.  If the old manifest cannot be put back, writes are
    refused from now on; see `doubt`.
    """
    try:
        state.put_back()
    except OSError as error:
        why = os_error.reason(error)
        state.doubt.begin(f"rolling back to {snapshot.name!r} could neither be recorded nor taken back: {why}")


def cover(state: State, snapshot: Snapshot, record: pending_grains.PendingGrains) -> None:
    """Put the snapshot's content over the primary."""
    preserve = state.device.preserve_many
    state.overlay = rollback_overlay.RollbackOverlay(state.primary, snapshot.view, record, preserve)
    state.overlay.accept_damage = state.manifest.restoring_damaged
    state.device.cover(state.overlay)


def accept_damage(state: State) -> None:
    """Let the rollback under way continue despite damaged blocks.  See `Volume.accept_damage`."""
    with state.changing:
        if state.overlay is None or state.overlay.accept_damage:
            return
        try:
            state.store_or_not(dataclasses.replace(state.manifest, restoring_damaged=True))
        except OSError as error:
            reason = f"cannot write the manifest: {os_error.reason(error)}"
            raise errors.VolumeError(state.name, reason, "check the disk and go on") from error
        state.overlay.accept_damage = True


def go_on(state: State, progress: Callable[[int, int], None] | None, cancelled: Callable[[], bool] | None) -> bool:
    """Bring the primary to the snapshot's content, and note why if it stops.  See `Volume.continue_rollback`."""
    target = state.rolling_back_to
    try:
        ended = _go_on(state, progress, cancelled)
    except block_device.DeviceClosed:
        raise
    except (errors.VolumeError, block_device.BlockDeviceError, OSError) as error:
        if target is not None:
            state.rollback_stopped = _stalled(state, target, error)
        raise
    state.rollback_stopped = None
    return ended


def _stalled(
    state: State, target: Snapshot, error: errors.VolumeError | block_device.BlockDeviceError | OSError
) -> errors.RollbackStalled:
    """Return why the rollback makes no progress, and what helps."""
    if isinstance(error, errors.VolumeError):
        decided = isinstance(error, errors.DamageFound | errors.SnapshotDoubtful)
        command = f"; `wolun snapshot restore {state.name}@{target.name} --damaged` does so"
        remedy = error.remedy + (command if isinstance(error, errors.DamageFound) else "")
        return errors.RollbackStalled(state.name, error.reason, remedy, retry=not decided)
    cause = error.cause if isinstance(error, block_device.PreserveFailed) else error
    space = isinstance(cause, block_device.SpaceExhausted) or (
        isinstance(cause, OSError) and cause.errno in storage_io.NO_SPACE
    )
    at_once = f"it goes on by itself then, or at once with `wolun snapshot restore {state.name}@{target.name}`"
    remedy = f"remove the cause; {at_once}"
    if space:
        first = state.snapshots[0]
        older = "" if first is target else f", or delete {state.name}@{first.name}, which it does not need"
        remedy = f"free space where {state.directory} and the primary are, or raise the limit{older}; {at_once}"
    return errors.RollbackStalled(state.name, errors.why(error), remedy, retry=True, needs_space=space)


def has_room(state: State) -> bool:
    """Return whether the snapshots can take one more chunk, so that a rollback without space may go on.  Raises OSError."""
    limit = state.space.limit
    return (limit is None or state.space.used + state.chunk_size <= limit) and chunk_file.has_room(
        state.directory, state.chunk_size
    )


def _go_on(state: State, progress: Callable[[int, int], None] | None, cancelled: Callable[[], bool] | None) -> bool:
    with state.reshaping:
        state.check_open()
        overlay = state.overlay
        if overlay is None:
            return True
        if state.rolling_back_to is not None:
            _check_certain(state, state.rolling_back_to)
        try:
            if not overlay.settle_all(progress, cancelled):
                return False
        except block_device.DamagedBlocks as error:
            blocks = damage.blocks(error.damage, state.device.block_size)
            reason = f"blocks {blocks} of the snapshot are damaged: {error.damage.reason}"
            remedy = "go on with --damaged, which lets the volume have the damaged blocks as they are"
            raise errors.DamageFound(state.name, reason, remedy) from error
        with state.changing:
            in_use = None if state.durability is Durability.POWER_LOSS else boot.current()
            ended = dataclasses.replace(state.manifest, restoring=None, restoring_damaged=False, in_use=in_use)
            try:
                state.store(ended)
            except OSError as error:
                reason = f"cannot write the manifest: {os_error.reason(error)}"
                raise errors.VolumeError(state.name, reason, "check the disk and go on") from error
            with state.device.hold():
                state.device.uncover()
            state.overlay = None
            state.set_durability(state.durability)
        overlay.record.close()
        with contextlib.suppress(OSError):  # if this fails, the file only costs space, and the next open tries again
            state.io.unlink(overlay.record.path)
        return True
