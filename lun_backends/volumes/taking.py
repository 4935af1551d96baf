# SPDX-License-Identifier: Apache-2.0
"""Taking a snapshot (rule 7, lun_backends/README.md), in steps, so that `group` can take several at one moment.

| step      | when                     | action                                                                   |
| --------- | ------------------------ | ------------------------------------------------------------------------ |
| `begin`   |                          | check the request and make the files                                     |
| `prepare` |                          | write the new manifest beside the old one, flush the primary             |
| `commit`  | while writes are held    | flush the rest, put the manifest in force                                |
| `end`     | while writes are held    | extend the chain, arm copy-on-write                                      |
| `abandon` | if any step above failed | keep the snapshot from coming up, before writes are let through          |

The caller holds `State.changing` from the first step to the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
import uuid
from collections.abc import Mapping

from lun_backends import block_device, names, write_once
from lun_backends.files import os_error
from lun_backends.stores import contract
from lun_backends.volumes import errors, manifest
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State


@dataclasses.dataclass
class Taking:
    """A snapshot that is being taken."""

    record: manifest.SnapshotRecord
    device: write_once.WriteOnce
    notes: manifest.Notes
    taken_at: datetime.datetime | None = None  # another moment than now, for a snapshot of another host
    after: manifest.Manifest | None = None  # the manifest with the snapshot in it, from `prepare` on
    recorded: bool = False  # its manifest may be on the disk
    abandoned: bool = False


def take(
    state: State,
    name: str,
    labels: Mapping[str, str] | None,
    *,
    scheduled: bool,
    notes: manifest.Notes,
    identity: uuid.UUID | None = None,
    taken_at: datetime.datetime | None = None,
) -> Snapshot:
    """Take a snapshot of one volume.  See `Volume.create_snapshot`."""
    with state.changing:
        taking = begin(state, name, labels, scheduled=scheduled, notes=notes, identity=identity)
        taking.taken_at = taken_at
        try:
            prepare(state, taking)
            began = time.perf_counter()
            with state.device.hold():
                try:
                    commit(state, taking)
                except BaseException:
                    abandon(state, taking)  # before any write continues
                    raise
                snapshot = end(state, taking)
        except (OSError, block_device.BlockDeviceError) as error:
            abandon(state, taking)
            reason = f"no snapshot was taken: {errors.why(error)}"
            raise errors.SnapshotFailed(state.name, reason, "check the disk") from error
        snapshot.held_seconds = time.perf_counter() - began
        return snapshot


def begin(
    state: State,
    name: str,
    labels: Mapping[str, str] | None = None,
    *,
    scheduled: bool = False,
    group: uuid.UUID | None = None,
    notes: manifest.Notes = manifest.NOTHING,
    identity: uuid.UUID | None = None,
) -> Taking:
    """Check the request and make the files.  Raise the errors of `Volume.create_snapshot`."""
    _check(state, name, labels or {})
    record = manifest.SnapshotRecord(
        name=name,
        uuid=identity or uuid.uuid4(),
        taken_at=manifest.now(),
        labels=dict(labels or {}),
        scheduled=scheduled,
        group=group,
    )
    geometry = contract.Geometry(record.uuid, state.uuid, state.device.size, state.device.block_size, state.chunk_size)
    try:
        store = state.stores.create(geometry, durability=state.durability, space=state.space)
        return Taking(record, write_once.WriteOnce(store, marks=True), notes)
    except block_device.BlockDeviceError as error:
        reason = f"no snapshot was taken: {error}"
        remedy = os_error.remedy(error, "free space and try again")
        raise errors.SnapshotFailed(state.name, reason, remedy) from error


def prepare(state: State, taking: Taking) -> None:
    """Do all that can be done before the barrier.  Raises OSError, MediumError."""
    taking.record = dataclasses.replace(taking.record, taken_at=taking.taken_at or manifest.now())
    taking.after = _with(state, taking)
    manifest.prepare(state.directory, taking.after, state.io)
    if state.synced:
        state.flush_ahead()


def commit(state: State, taking: Taking) -> None:
    """Record the snapshot, while writes are held.

    Raises OSError, MediumError; then the caller has to call `abandon` before it lets writes through.
    """
    if state.synced:
        state.primary.flush()
    taking.recorded = True
    manifest.commit(state.directory, state.io)


def end(state: State, taking: Taking) -> Snapshot:
    """Preserve into the snapshot from now on.  Call it while writes are held."""
    assert taking.after is not None
    state.manifest = taking.after
    state.chain.append(taking.device)
    snapshot = state.make_snapshot(taking.record, taking.device)
    state.snapshots = (*state.snapshots, snapshot)  # before a copy can fail and its snapshot is looked for
    state.device.arm(taking.device)
    return snapshot


def end_group(state: State) -> None:
    """Record that the group of the newest snapshot was taken.  Raises OSError."""
    state.store(manifest.without_groups(state.directory, state.manifest))


def abandon(state: State, taking: Taking) -> None:
    """Make sure that a snapshot that was not taken cannot come up at the next open.  Abandoning it twice is allowed.

    Its manifest may be durable although it could not be stored.  Without files, the snapshot would be listed as
    invalid, never as good.  If neither the files nor the manifest can be removed, writes are refused from now on; see
    `doubt`.
    """
    if taking.abandoned:
        return
    taking.abandoned = True
    sure = not taking.recorded
    with contextlib.suppress(block_device.BlockDeviceError):
        taking.device.close()
    state.space.add(-taking.device.store.allocated_bytes)
    with contextlib.suppress(block_device.BlockDeviceError, OSError):
        state.stores.remove(taking.record.uuid)
        sure = True
    try:
        state.put_back()
    except OSError as error:
        if not sure:
            name, why = taking.record.name, os_error.reason(error)
            state.doubt.begin(f"taking {name!r} could neither be recorded nor taken back: {why}")


def check_labels(state: State, labels: Mapping[str, str]) -> None:
    """Raise BadLabel if a snapshot may not have these labels."""
    problems = (manifest.bad_label(key, value) for key, value in labels.items())
    if problem := next(filter(None, problems), None):
        raise errors.BadLabel(state.name, problem, "correct the label")
    if len(labels) > manifest.LABELS_MAX:
        raise errors.BadLabel(state.name, f"there are more than {manifest.LABELS_MAX} labels", "take some away")


def _check(state: State, name: str, labels: Mapping[str, str]) -> None:
    """Raise an error if a snapshot of that name and with these labels cannot be taken now."""
    state.check_open()
    check_labels(state, labels)
    if not names.valid(name):
        raise errors.BadName(state.name, f"{name!r} is no name for a snapshot", f"a name is {names.RULE}")
    state.check_not_rolling_back()
    state.check_recorded()
    if any(snapshot.name == name for snapshot in state.snapshots):
        reason = f"there is a snapshot {name!r} already"
        raise errors.SnapshotExists(state.name, reason, "use another name, or delete it")
    most, count = state.rules.max_snapshots, len(state.snapshots)
    if most is not None and count >= most:
        reason = f"there are {count} snapshots, as many as are allowed"
        raise errors.TooManySnapshots(state.name, reason, "delete one first")
    if state.space.full:
        reason = f"the snapshots take {state.space.used} of {state.space.limit} bytes allowed"
        raise errors.NoSpaceLeft(state.name, reason, "delete snapshots, or raise the limit")


def _with(state: State, taking: Taking) -> manifest.Manifest:
    """Return the manifest with the snapshot in it."""
    records = (*state.manifest.snapshots, taking.record)
    after = dataclasses.replace(state.manifest, snapshots=records, epoch=state.manifest.epoch + 1)
    return manifest.with_notes(after, taking.record.uuid, taking.notes)
