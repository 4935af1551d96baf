# SPDX-License-Identifier: Apache-2.0
"""Creating, opening and closing a volume: from its files to a `State`, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Sequence
from pathlib import Path

from lun_backends import block_device, flat, lost_device, names, write_once
from lun_backends.durability import Durability
from lun_backends.files import backing_file, facts, os_error, storage_io
from lun_backends.stores import contract, settings
from lun_backends.stores import opening as store_opening
from lun_backends.volumes import boot, clones, errors, identity, invalidation, manifest, policy, rollback
from lun_backends.volumes.manifest import SnapshotState
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State

DEFAULT_CHUNK_SIZE = 65536


def create(
    directory: Path,
    name: str,
    primary: Path,
    *,
    size: int | None,
    block_size: int,
    chunk_size: int,
    direct: bool,
    durability: Durability,
    rules: policy.Policy,
    listener: policy.Listener,
    io: storage_io.StorageIO,
    store: settings.Settings,
) -> State:
    """Make a volume and open it.  See `Volume.create`."""
    if not names.valid(name):
        raise errors.BadName(name, "this is no name for a volume", f"a name is {names.RULE}")
    if manifest.exists(directory):
        reason = f"there is a volume in {directory} already"
        raise errors.VolumeError(name, reason, "open it, or give another directory")
    if store_opening.left_in(directory / "snapshots"):
        reason = f"there are snapshots in {directory}, but no manifest"
        raise errors.VolumeError(name, reason, "restore volume.json from a backup, or move the directory away")
    try:
        (directory / "snapshots").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot make {directory}: {os_error.reason(error)}"
        raise errors.VolumeError(name, reason, "check path and permissions") from error
    actual = _primary_size(name, primary, size, block_size=block_size, direct=direct)
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
            store=store.kind,
        )
    except ValueError as error:  # pydantic's ValidationError is one
        reason = manifest.first_problem(error)
        raise errors.VolumeError(name, reason, "correct it and create the volume again") from error
    stores = _stores(directory, record, store, io, new=True)
    try:
        state = State(directory, record, io, rules, listener, stores)
    except BaseException:
        stores.close()
        raise
    try:
        state.store(record)
        _take_over(state)
    except OSError as error:
        close(state)
        reason = f"cannot write the manifest: {os_error.reason(error)}"
        raise errors.VolumeError(name, reason, "check the file system") from error
    state.opened = True
    return state


def _primary_size(name: str, primary: Path, size: int | None, *, block_size: int, direct: bool) -> int:
    """Return the size of the primary in bytes.  With `size`, make the primary first, of that size, if it does not exist.

    Raise CannotOpen, and VolumeError if the primary is smaller than `size`.
    """
    if size is not None and not primary.exists():
        backing_file.create(primary, size)
    with contextlib.closing(flat.Flat(primary, block_size=block_size, direct=direct)) as device:
        actual = device.size
    if size is not None and actual < size:
        raise errors.VolumeError(name, f"{primary} has {actual} bytes, fewer than {size}", "give the size it has")
    return actual


def open_state(
    directory: Path,
    rules: policy.Policy,
    listener: policy.Listener,
    io: storage_io.StorageIO,
    store: settings.Settings | None,
) -> State:
    """Open the volume in `directory`.  See `Volume.open`."""
    recorded = manifest.load(directory)
    record = manifest.without_groups(directory, recorded)
    if record != recorded:
        with contextlib.suppress(OSError):  # if this fails, the next open reads the same and tries again
            manifest.store(directory, record, io)
    if store is not None and store.kind is not record.store:
        reason = f"its snapshots are in a store of kind {record.store.value}, not {store.kind.value}"
        raise errors.StoreRefused(record.name, reason, f"write `store: {record.store.value}`")
    place = settings.Settings(record.store) if store is None else store
    stores = _stores(directory, record, place, io, new=False)
    try:
        state = State(directory, record, io, rules, listener, stores)
    except BaseException:
        stores.close()
        raise
    try:
        _recognise(state)
        _open_snapshots(state)
        clones.open_all(state)
        _note_boot(state)
        state.opened = True
    except BaseException:
        close(state)
        raise
    return state


def _stores(
    directory: Path, record: manifest.Manifest, place: settings.Settings, io: storage_io.StorageIO, *, new: bool
) -> contract.Stores:
    """Return the stores of a volume.  Raises StoreRefused if snapshots cannot be kept there.

    A place that cannot be reached is refused only if the volume is new.  Later, the policy decides about its snapshots.
    """
    try:
        stores = store_opening.stores(directory / "snapshots", record.uuid, place, io)
        try:
            stores.check(new=new)
        except BaseException as error:
            if new or isinstance(error, contract.StoreUnfit) or not isinstance(error, block_device.BlockDeviceError):
                stores.close()
                raise
    except block_device.BlockDeviceError as error:
        raise errors.StoreRefused(record.name, f"its snapshots cannot be kept: {error}", "correct `store`") from error
    return stores


def close(state: State) -> None:
    """Drain, flush and release everything.  Closing twice is allowed."""
    with state.reshaping, state.changing:
        if state.closed:
            return
        state.closed = True
        with contextlib.suppress(OSError):  # writes have ended, so the next open may read either manifest
            state.doubt.resolve()
        primary, sound = state.primary.descriptor, False
        clones.close_all(state)
        try:
            state.device.close()
            state.chain.replace(())
            state.primary.close()
            sound = True
        finally:
            if state.overlay is not None:
                state.overlay.record.close()
            devices = [snapshot.write_once for snapshot in state.snapshots]
            broken = any(isinstance(device, write_once.WriteOnce) and device.store.broken for device in devices)
            for device in devices:
                device.close()
            state.stores.close()
        if state.opened and not broken:
            if state.manifest.in_use == boot.current():
                state.manifest = dataclasses.replace(state.manifest, in_use=None)
            with contextlib.suppress(OSError):  # the next open then takes the volume for unclean, which is safe
                if sound and state.manifest.identity is not None:
                    _hand_over(state, primary.fd)
                else:
                    manifest.store(state.directory, state.manifest, state.io)


def _recognise(state: State) -> None:
    """Compare the primary with the record of it, and tie the two together anew.  Raises OSError of looking at the primary.

    If the manifest cannot be stored, primary and record stay as they are, and the next open compares again.
    """
    known = state.manifest.identity
    seen = facts.observe(state.primary.descriptor.fd, state.io)
    if known is not None and (reason := identity.difference(known, seen, state.uuid)):
        doubtful = {snapshot.uuid: f"its primary {reason}" for snapshot in state.manifest.snapshots}
        state.manifest = dataclasses.replace(state.manifest, doubtful=doubtful | state.manifest.doubtful)
        names = tuple(snapshot.name for snapshot in state.manifest.snapshots)
        state.listener(policy.PrimaryDiffers(names, reason))
    try:
        _take_over(state)
    except OSError:
        if known is not None and state.manifest.identity is known:
            state.manifest = dataclasses.replace(state.manifest, identity=dataclasses.replace(known, clean=False))


def _take_over(state: State) -> None:
    """Give the primary the next generation, before the first write to it.  Raises OSError."""
    fd, known = state.primary.descriptor.fd, state.manifest.identity
    generation = "" if known is None else known.generation
    _move(state, fd, generation, clean=False)


def _hand_over(state: State, fd: int) -> None:
    """Give the primary the next generation, after the last write to it, and record how it is left.  Raises OSError."""
    known = state.manifest.identity
    _move(state, fd, "" if known is None else known.generation, clean=True)


def _move(state: State, fd: int, generation: str, *, clean: bool) -> None:
    """Take the four steps of `identity` that lead to another generation.  Raises OSError."""
    seen = facts.observe(fd, state.io)
    if seen.marks:
        following = identity.following(generation)
        before = identity.record(seen, generation=generation, following=following)
        state.store(dataclasses.replace(state.manifest, identity=before))
        generation = identity.move(fd, state.uuid, following, state.io)
        seen = facts.observe(fd, state.io)
    after = identity.record(seen, generation=generation if seen.marks else "", clean=clean)
    state.store(dataclasses.replace(state.manifest, identity=after))


def _open_snapshots(state: State) -> None:
    """Open all snapshots, arm the newest active one, and continue a rollback.  Raises PendingDamaged."""
    state.remove_leftovers()
    snapshots: list[Snapshot] = []
    for record in state.manifest.snapshots:
        device = _open_device(state, record.uuid)
        state.chain.append(device)
        snapshot = state.make_snapshot(record, device)
        snapshot.deleting = record.state is SnapshotState.DELETING
        if snapshot.deleting:
            snapshot.view.close()
        snapshots.append(snapshot)
        state.snapshots = tuple(snapshots)
    # Chunks that move down from newer snapshots count as part of the armed one already; see `deleting`.
    moving: list[Snapshot] = []
    for snapshot in reversed(snapshots):
        if not snapshot.deleting:
            break
        moving.append(snapshot)
    if any(snapshot.is_invalid for snapshot in moving):
        _arm_past_lost(state, moving)
    else:
        state.arm(state.moving_tracker(moving))
    if (target := state.rolling_back_to) is not None:
        rollback.cover(state, target, state.open_pending(target.uuid))


def _arm_past_lost(state: State, moving: Sequence[Snapshot]) -> None:
    """Arm the newest active snapshot although some snapshots that were moving down to it cannot be read.

    Then it is unknown which chunks it must no longer copy from the primary.  If a snapshot that was moving is lost for
    good, the newest active snapshot is lost with it.  If one is only unreachable, no copy is made for now.
    """
    newest = state.newest_active()
    invalid = [snapshot for snapshot in moving if snapshot.is_invalid]
    unreachable = next((snapshot for snapshot in invalid if not snapshot.invalid_on_disk), None)
    if newest is not None and unreachable is None:
        reason = f"the chunks of {invalid[0].name!r} were lost before they were moved down to it"
        try:
            state.enforcer.invalidate(newest, reason)
        except (OSError, block_device.BlockDeviceError):
            unreachable = invalid[0]
    if unreachable is not None and state.newest_active() is not None:
        state.device.arm(unreachable.write_once)  # this device refuses every copy, and then the policy decides
    else:
        state.device.disarm()


def _open_device(state: State, identity: uuid.UUID) -> write_once.WriteOnce | lost_device.LostDevice:
    """Return the write-once device of a snapshot; a LostDevice if it cannot be opened."""
    path = state.path(identity)
    size, block_size = state.device.size, state.device.block_size
    try:
        if reason := invalidation.marked(path):
            return lost_device.LostDevice(size, block_size, reason, recorded=True)
        if state.manifest.in_use not in (None, boot.current()):
            recorded = invalidation.mark(path, boot.LOST, state.io)
            return lost_device.LostDevice(size, block_size, boot.LOST, recorded=recorded)
        durability = Durability.POWER_LOSS if state.synced else state.durability
        store = state.stores.open(identity, durability=durability, space=state.space)
        device = write_once.WriteOnce(store, marks=True)
    except contract.StoreNewer:
        raise  # nothing is lost, so the snapshot must not be marked, and nothing be written that the newer version misses
    except (contract.StoreDamaged, contract.StoreMissing) as error:
        recorded = invalidation.mark(path, str(error), state.io)
        return lost_device.LostDevice(size, block_size, str(error), recorded=recorded)
    except (block_device.BlockDeviceError, OSError) as error:
        return lost_device.LostDevice(size, block_size, str(error), recorded=False)
    if device.reason:
        with contextlib.suppress(block_device.BlockDeviceError):  # if this fails, the chunks only cost space
            device.discard(0)
    return device


def _note_boot(state: State) -> None:
    """Record before the first write whether pre-images would be lost with this boot; see `boot`.  Raises VolumeError."""
    now = boot.current()
    before, after = state.manifest.in_use, None if state.synced else now
    if before == after:
        return
    devices = [snapshot.write_once for snapshot in state.snapshots]
    if before not in (None, now) and any(
        isinstance(device, lost_device.LostDevice) and not device.recorded for device in devices
    ):
        return  # the next open has to mark the snapshots
    try:
        if before == now:  # a later commit would not sync data that is not synced yet
            _sync_all(state)
        state.store(dataclasses.replace(state.manifest, in_use=after))
    except (OSError, block_device.MediumError) as error:
        reason = f"cannot note that it is in use: {error}"
        raise errors.VolumeError(state.name, reason, "check the disk, or set durability to power-loss") from error


def _sync_all(state: State) -> None:
    """Sync the primary and the files of all snapshots.  Raises OSError, MediumError."""
    state.primary.flush()
    for snapshot in state.snapshots:
        state.stores.sync(snapshot.uuid)
