# SPDX-License-Identifier: Apache-2.0
"""Conversion of the stores of a volume's snapshots to another kind, while they are used.

One snapshot after the other:

1. All that its store has is copied to a draft of the other kind, with the stored checksums (`move_down`), so damage stays
   damage.  Reads go on, and so do writes of initiators, whose ranges the device notes.
2. Its device holds calls for some milliseconds.  The copy gets all that was written meanwhile.  Then the draft is closed,
   which makes it durable, and takes the place of the store (`contract.Convertible`).
3. The old store is closed and removed.

A crash at any point leaves the old store or the new one, with the same content, and the next open removes the other.

The newest snapshot is left as it is, because writers preserve into it at every moment.  If the disk failed in step 2, it
could be unknown which of the two stores is found after a power cut.  Then a snapshot takes no more writes until the
restart, and that is too much for the one which all first writes need.  Once there is a newer snapshot, it can be
converted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lun_backends import block_device, write_once
from lun_backends.damage import OnDamage
from lun_backends.durability import Durability
from lun_backends.files import os_error
from lun_backends.stores import contract, settings
from lun_backends.volumes import errors, manifest, move_down
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State

_RESERVE = 64 << 20  # bytes that a conversion leaves free on the disk; a log sets aside as much ahead

STOPPED = "the conversion was stopped before"
"""The reason of a Result: `cancelled` returned True."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""
Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome for one snapshot: its store is of kind `store` now; `reason` says why it was left as it was, if it was."""

    snapshot: str
    store: settings.Kind
    reason: str = ""


def kind_of(state: State, snapshot: Snapshot) -> settings.Kind:
    """Return the kind of the store of a snapshot; that of new stores, if it cannot be opened."""
    device = snapshot.write_once
    if isinstance(state.stores, contract.Convertible) and isinstance(device, write_once.WriteOnce):
        return state.stores.kind_of(device.store)
    return state.manifest.store


def convert(
    state: State, progress: Progress | None, cancelled: Cancelled | None, on_damage: OnDamage | None
) -> list[Result]:
    """Give all snapshots that can have it a store of the kind that new ones get.

    Return a result for each snapshot.  If `cancelled` returns True, the rest is left as it is.  Raise VolumeError for a
    snapshot that cannot be converted because of the disk; those before it stay converted.
    """
    stores = _convertible(state)
    wanted = state.snapshots
    total = sum(snapshot.preserved_bytes for snapshot in wanted if not left_because(state, snapshot, stores))
    done, results = 0, []
    for snapshot in wanted:
        with state.reshaping:
            state.check_open()
            state.check_not_rolling_back()
            if snapshot not in state.snapshots:
                continue  # it was deleted meanwhile
            reason = left_because(state, snapshot, stores)
            if not reason and cancelled is not None and cancelled():
                reason = STOPPED
            if not reason and kind_of(state, snapshot) is not stores.kind:
                size = snapshot.preserved_bytes
                shown = None if progress is None else _Part(progress, done, total)
                if not _convert(state, snapshot, stores, shown, cancelled, on_damage):
                    reason = STOPPED
                done += size
            results.append(Result(snapshot.name, kind_of(state, snapshot), reason))
    return results


def set_kind(state: State, kind: settings.Kind) -> None:
    """Let later snapshots have a store of that kind.  Raises StoreRefused, VolumeError."""
    with state.changing:
        state.check_open()
        stores = _convertible(state)
        if kind not in (settings.Kind.MAP, settings.Kind.LOG):
            reason = f"its snapshots cannot get a store of kind {kind.value} while they are in files of this host"
            raise errors.StoreRefused(state.name, reason, "write map or log, or make another volume and copy the data")
        if kind is stores.kind:
            return
        try:
            state.store_or_not(_replaced(state, kind))
        except OSError as error:
            reason = f"cannot write the manifest: {os_error.reason(error)}"
            raise errors.VolumeError(state.name, reason, "check the file system") from error
        stores.kind = kind


def left_because(state: State, snapshot: Snapshot, stores: contract.Convertible) -> str:
    """Return why a conversion leaves a snapshot as it is; empty if it has or gets the wanted store."""
    if snapshot.is_invalid:
        return f"it is invalid: {snapshot.invalid_reason}"
    if kind_of(state, snapshot) is stores.kind:
        return ""
    if snapshot.deleting:
        return "it is being deleted"
    if snapshot is state.newest_active():
        return "it is the newest, which writers need: convert again once there is a newer one"
    return ""


def _replaced(state: State, kind: settings.Kind) -> manifest.Manifest:
    return dataclasses.replace(state.manifest, store=kind)


def _convertible(state: State) -> contract.Convertible:
    if not isinstance(state.stores, contract.Convertible):
        reason = f"its snapshots are in a store of kind {state.manifest.store.value}, which cannot be converted"
        raise errors.StoreRefused(state.name, reason, "make another volume with the wanted store, and copy the data")
    return state.stores


class _Part:
    """The progress of one snapshot as a part of the whole."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def __call__(self, done: int, total: int) -> None:
        self._progress(min(self._before + done, self._total), self._total)


def _convert(
    state: State,
    snapshot: Snapshot,
    stores: contract.Convertible,
    progress: Progress | None,
    cancelled: Cancelled | None,
    on_damage: OnDamage | None,
) -> bool:
    """Convert one snapshot; return False if it was cancelled.  The caller holds `State.reshaping`.  Raises VolumeError."""
    device = snapshot.write_once
    assert isinstance(device, write_once.WriteOnce)  # others are invalid
    try:
        _check_room(state, snapshot)
        return _exchange(state, device, stores, progress, cancelled, on_damage)
    except (OSError, block_device.BlockDeviceError) as error:
        reason = f"{snapshot.name!r} was not converted: {errors.why(error)}"
        if isinstance(error, block_device.SpaceExhausted):
            reason = f"{snapshot.name!r} was not converted: the disk is full"
        remedy = "check the disk, and convert again"
        raise errors.VolumeError(state.name, reason, remedy) from error


def _check_room(state: State, snapshot: Snapshot) -> None:
    """Raise VolumeError if the disk has no room for a second copy of a snapshot.  Raises OSError."""
    found = os.statvfs(state.directory / "snapshots")
    free, needed = found.f_bavail * found.f_frsize, snapshot.used_bytes + _RESERVE
    if free < needed:
        reason = (
            f"{snapshot.name!r} was not converted: that needs {needed} bytes of disk for a while, and {free} are free"
        )
        raise errors.VolumeError(state.name, reason, "free space, or delete snapshots")


def _exchange(
    state: State,
    device: write_once.WriteOnce,
    stores: contract.Convertible,
    progress: Progress | None,
    cancelled: Cancelled | None,
    on_damage: OnDamage | None,
) -> bool:
    old, identity = device.store, device.uuid
    geometry = contract.Geometry(identity, old.volume, old.size, old.block_size, old.chunk_size)
    source = write_once.WriteOnce(old)  # never closed: the device owns the store
    draft = write_once.WriteOnce(stores.draft(geometry), marks=True)

    def copy(ranges: Sequence[tuple[int, int]] | None) -> bool:
        stop = cancelled if ranges is None else None
        return move_down.move_down(source, draft, old.chunk_size, progress, stop, on_damage, ranges=ranges)

    def replaced(ranges: Sequence[tuple[int, int]]) -> contract.Store:
        copy(ranges)
        for chunk in draft.store.reader.damaged:
            old.reader.found(chunk, damaged=True)
        draft.close()
        durability = Durability.POWER_LOSS if state.synced else state.durability
        return stores.put_in_place(identity, durability=durability, space=state.space)

    try:
        device.note_writes()
        if not copy(None):
            return False
        device.exchange(replaced)
    finally:
        device.forget_writes()
        if device.store is old:
            draft.close()
            with contextlib.suppress(block_device.BlockDeviceError):  # the next open removes it
                stores.discard_draft(identity)
    state.space.add(-old.allocated_bytes)
    with contextlib.suppress(block_device.BlockDeviceError):  # its content is in the other one
        old.close()
    stores.discard_replaced(identity, stores.kind_of(device.store))
    return True
