# SPDX-License-Identifier: Apache-2.0
"""How long single snapshots are kept: holds, dates of expiry, and their names.

Nobody deletes a snapshot that is held: no request, no schedule, and no policy that makes room.  A date of expiry lets a
schedule delete it from then on.
"""

from __future__ import annotations

import dataclasses
import datetime

from lun_backends import names
from lun_backends.files import os_error
from lun_backends.volumes import clones, errors, manifest
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State

REASON_MAX = 256
"""Characters of the reason of a hold."""


def bad_reason(reason: str) -> str:
    """Return the fault of the reason of a hold; an empty text if it is allowed."""
    if len(reason) > REASON_MAX or not reason.isprintable():
        return f"the reason of a hold is not at most {REASON_MAX} printable characters"
    return ""


def hold(state: State, name: str, reason: str) -> Snapshot:
    """Hold a snapshot for that reason; an empty reason releases it.  Raises NoSuchSnapshot, VolumeError."""
    if fault := bad_reason(reason):
        raise errors.VolumeError(state.name, fault, "give a shorter reason, on one line")
    return _change(state, name, lambda notes: dataclasses.replace(notes, hold=reason))


def expire(state: State, name: str, moment: datetime.datetime | None) -> Snapshot:
    """Let a snapshot expire at that moment; None means never.  Raises NoSuchSnapshot, VolumeError."""
    return _change(state, name, lambda notes: dataclasses.replace(notes, expires=moment))


def _change(state: State, name: str, change: manifest.ChangeNotes) -> Snapshot:
    with state.changing:
        snapshot = _found(state, name)
        notes = change(snapshot.notes)
        _store(state, manifest.with_notes(state.manifest, snapshot.uuid, notes))
        snapshot.notes = notes
        return snapshot


def rename(state: State, name: str, new: str) -> Snapshot:
    """Give a snapshot another name.  Raises NoSuchSnapshot, BadName, SnapshotExists, VolumeError."""
    with state.changing:
        snapshot = _found(state, name)
        if not names.valid(new):
            raise errors.BadName(state.name, f"{new!r} is no name for a snapshot", f"a name is {names.RULE}")
        if any(other.name == new for other in state.snapshots):
            reason = f"there is a snapshot {new!r} already"
            raise errors.SnapshotExists(state.name, reason, "use another name, or delete it")
        _store(state, state.with_record(dataclasses.replace(state.record_of(snapshot), name=new)))
        snapshot.name = new
        return snapshot


def check_deletable(state: State, snapshot: Snapshot) -> None:
    """Raise SnapshotHeld or SnapshotCloned if nobody may delete the snapshot."""
    clones.check_deletable(state, snapshot)
    if snapshot.hold:
        reason = f"{snapshot.name!r} is held: {snapshot.hold}"
        raise errors.SnapshotHeld(
            state.name, reason, f"run `wolun snapshot release {state.name}@{snapshot.name}` first"
        )


def _found(state: State, name: str) -> Snapshot:
    state.check_open()
    snapshot = state.snapshot(name)
    if snapshot.deleting:
        raise errors.VolumeError(state.name, f"{name!r} is being deleted", "use another snapshot")
    return snapshot


def _store(state: State, record: manifest.Manifest) -> None:
    try:
        state.store_or_not(record)
    except OSError as error:
        reason = f"cannot write the manifest: {os_error.reason(error)}"
        raise errors.VolumeError(state.name, reason, "check the file system") from error
