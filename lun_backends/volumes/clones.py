# SPDX-License-Identifier: Apache-2.0
"""The clones of a volume's snapshots: writable devices on top of their views (`clone_device`).

    <directory>/clones/<uuid>.json    the name of the clone, its snapshot, its limit
    <directory>/clones/<uuid>.data    its own grains
    <directory>/clones/<uuid>.map     which grains these are, and .recent (`owned_grains`)

A clone exists if its `.json` does: it is written last and removed first.  Files without one are leftovers of a crash, and
the next open removes them.

A snapshot with clones is not deleted, and neither is what its view needs.  A rollback of the volume goes on, because it
leaves every view as it is.  If the policy invalidates the snapshot, the clone keeps its own grains, and reads of the
others fail, as those of the view do.

A clone with files that cannot be opened stays in the list, with the `reason`, and still holds its snapshot.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import uuid
from pathlib import Path
from typing import Literal

import pydantic

from lun_backends import block_device, flat, names, tracking
from lun_backends.files import backing_file, os_error, small_file
from lun_backends.files import format as format_
from lun_backends.volumes import clone_device, errors, manifest, owned_grains
from lun_backends.volumes.clone import Clone
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State

_DIRECTORY = "clones"
_FILES = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(?:json|json\.new|data|map|recent)")


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class _Record:
    name: str
    snapshot: uuid.UUID
    made_at: datetime.datetime
    limit: int | None = None
    format: Literal[1] = 1


_TYPE = pydantic.TypeAdapter(_Record)


def create(state: State, snapshot_name: str, name: str, limit: int | None) -> Clone:
    """Make a clone of a snapshot and open it; durable on return.  `limit` is in bytes.

    Raises NoSuchSnapshot, BadName, CloneExists, CloneRefused, VolumeError.
    """
    with state.changing:
        state.check_open()
        snapshot = state.snapshot(snapshot_name)
        _check(state, snapshot, name, limit)
        identity = uuid.uuid4()
        path = _path(state, identity)
        record = _Record(name, snapshot.uuid, manifest.now(), limit)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _make_files(state, path, snapshot)
            device = _open(state, path, snapshot, limit)
            try:
                state.io.fsync_directory(path.parent)
                state.io.fsync_directory(path.parent.parent)
                small_file.replace(_json(path), _TYPE.dump_json(record, indent=2) + b"\n", io=state.io)
            except BaseException:
                device.close()
                raise
        except (OSError, block_device.BlockDeviceError, backing_file.CannotOpen) as error:
            _remove_files(state, path)
            reason = f"{name!r} was not made: {os_error.reason(error) if isinstance(error, OSError) else error}"
            raise errors.CloneRefused(state.name, reason, "check the disk, and try again") from error
        made = Clone(name, identity, snapshot, record.made_at, limit, device)
        state.clones = (*state.clones, made)
        return made


def delete(state: State, name: str, identity: uuid.UUID | None = None) -> None:
    """Delete a clone with its data.  Its device must not be in use.  Raises NoSuchClone, VolumeError."""
    with state.changing:
        state.check_open()
        clone = find(state, name)
        if identity not in (None, clone.uuid):
            raise errors.NoSuchClone(state.name, f"there is no clone {name!r} any more", "list the clones")
        path = _path(state, clone.uuid)
        try:
            small_file.remove(_json(path), state.io)
        except OSError as error:
            reason = f"{name!r} was not deleted: {os_error.reason(error)}"
            raise errors.VolumeError(state.name, reason, "check the disk and delete it again") from error
        state.clones = tuple(other for other in state.clones if other is not clone)
        if clone.device is not None:
            with contextlib.suppress(block_device.BlockDeviceError):  # nobody needs its data any more
                clone.device.close()
        _remove_files(state, path)


def open_all(state: State) -> None:
    """Open the clones of a volume whose snapshots are open.  Raises OSError."""
    directory = state.directory / _DIRECTORY
    records = {path.stem for path in directory.glob("*.json")}
    for path in sorted(directory.glob("*")):
        match = _FILES.fullmatch(path.name)
        if match is not None and match[1] not in records:
            with contextlib.suppress(OSError):  # it only costs space, and the next open tries again
                state.io.unlink(path)
    found = [clone for stem in records if (clone := _opened(state, directory / stem)) is not None]
    state.clones = tuple(sorted(found, key=lambda clone: (clone.made_at, clone.name)))


def close_all(state: State) -> None:
    """Flush and close all clones."""
    for clone in state.clones:
        if clone.device is not None:
            with contextlib.suppress(
                block_device.BlockDeviceError
            ):  # the flush of its user reported it, or was never made
                clone.device.close()


def find(state: State, name: str) -> Clone:
    """Return the clone of that name.  Raises NoSuchClone."""
    for clone in state.clones:
        if clone.name == name:
            return clone
    known = ", ".join(clone.name for clone in state.clones) or "none"
    raise errors.NoSuchClone(state.name, f"there is no clone {name!r}", f"there are: {known}")


def check_deletable(state: State, snapshot: Snapshot) -> None:
    """Raise SnapshotCloned if the snapshot has a clone."""
    if standing := [clone.name for clone in state.clones if clone.snapshot is snapshot]:
        raise errors.cloned(state.name, snapshot.name, standing)


def _check(state: State, snapshot: Snapshot, name: str, limit: int | None) -> None:
    if not names.valid(name):
        raise errors.BadName(state.name, f"{name!r} is no name for a clone", f"a name is {names.RULE}")
    if any(clone.name == name for clone in state.clones):
        raise errors.CloneExists(state.name, f"there is a clone {name!r} already", "use another name, or delete it")
    if snapshot.unreadable:
        reason = f"{snapshot.name!r} cannot be cloned: {snapshot.unreadable}"
        raise errors.CloneRefused(state.name, reason, "clone another snapshot")
    if snapshot.doubt:
        reason = f"{snapshot.name!r} is doubtful: {snapshot.doubt}"
        raise errors.SnapshotDoubtful(state.name, reason, errors.accept(state.name))
    if limit is not None and limit < tracking.GRAIN:
        raise errors.CloneRefused(state.name, f"a limit of {limit} bytes holds nothing", "give at least 4KiB")


def _make_files(state: State, path: Path, snapshot: Snapshot) -> None:
    with _data(path).open("xb") as file:
        _data(path).chmod(0o600)
        state.io.ftruncate(file.fileno(), snapshot.size)
        state.io.fdatasync(file.fileno())
    owned_grains.OwnedGrains.create(path, tracking.count(snapshot.size), state.io).close()


def _open(state: State, path: Path, snapshot: Snapshot, limit: int | None) -> clone_device.CloneDevice:
    """Open the files of a clone.  Raises CannotOpen, PendingDamaged, MediumError."""
    view = snapshot.view
    data = flat.Flat(_data(path), block_size=view.block_size, size=view.size, io=state.io)
    try:
        owned = owned_grains.OwnedGrains.open(path, tracking.count(view.size), state.io)
        try:
            return clone_device.CloneDevice(view, data, owned, limit)
        except BaseException:
            owned.close()
            raise
    except BaseException:
        data.close()
        raise


def _opened(state: State, path: Path) -> Clone | None:
    """Return the clone of a record; None if a version that knows no clones deleted its snapshot.

    Its files then stay where they are.  Raises VolumeError.
    """
    identity = uuid.UUID(path.name)
    try:
        text = _json(path).read_bytes()
        record = _TYPE.validate_json(text, strict=False)
    except pydantic.ValidationError as error:
        fault = format_.newer(text, 1) or f"it is damaged ({error.errors(include_url=False)[0]['msg']})"
        raise errors.VolumeError(state.name, f"{_json(path)}: {fault}", "restore the file from a copy") from error
    snapshot = next((other for other in state.snapshots if other.uuid == record.snapshot), None)
    if snapshot is None:
        return None
    clone = Clone(record.name, identity, snapshot, record.made_at, record.limit, None)
    try:
        clone.device = _open(state, path, snapshot, record.limit)
    except (OSError, block_device.BlockDeviceError, backing_file.CannotOpen) as error:
        clone.reason = os_error.reason(error) if isinstance(error, OSError) else str(error)
    return clone


def _remove_files(state: State, path: Path) -> None:
    for file in (_json(path), _data(path), owned_grains.map_file(path), owned_grains.recent_file(path)):
        with contextlib.suppress(OSError):  # it only costs space, and the next open tries again
            state.io.unlink(file)


def _path(state: State, identity: uuid.UUID) -> Path:
    return state.directory / _DIRECTORY / str(identity)


def _json(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _data(path: Path) -> Path:
    return path.with_name(path.name + ".data")
