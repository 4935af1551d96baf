# SPDX-License-Identifier: Apache-2.0
"""Snapshots of several volumes at one moment: all of them, or none.

    <parent of the volumes' directories>/.groups/<uuid>    names the volumes' directories; its being there is the change

| step                                                       | a crash after it leaves                               |
| ---------------------------------------------------------- | ----------------------------------------------------- |
| make the files; write the manifests beside those in force  | none                                                  |
| hold the writes of all volumes, flush them                 | none                                                  |
| put the manifests in force; their new records name the group | none: opening a volume drops such a record, unless    |
| make the group's file                                      | all: ... the file is there                            |
| arm copy-on-write in all, release                          | all                                                   |
| take the group out of the manifests, remove its file       | all                                                   |

No write is let through between the first manifest and the group's file, so what is dropped is empty.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import small_file, storage_io
from lun_backends.volumes import errors, manifest, snapshot, volume


def create(
    volumes: Sequence[volume.Volume],
    name: str,
    labels: Mapping[str, str] | None = None,
    io: storage_io.StorageIO = storage_io.SYSTEM,
) -> list[snapshot.Snapshot]:
    """Take a snapshot called `name` of each volume, all at one moment; in the order of `volumes`.

    Raises VolumeError as `Volume.create_snapshot`; then none was taken.
    """
    if not volumes or len({each.directory for each in volumes}) < len(volumes):
        raise errors.VolumeError(name, "a group is of one or more volumes, each once", "name each volume once")
    if len({each.directory.parent for each in volumes}) > 1:
        raise errors.VolumeError(name, "the volumes are not kept in one place", "take their snapshots one by one")
    identity = uuid.uuid4()
    begun: dict[str, volume.Taking] = {}
    # Always in the same order, lest two groups wait for each other.
    ordered = sorted(volumes, key=lambda each: str(each.directory))
    with contextlib.ExitStack() as locks:
        for each in ordered:
            locks.enter_context(each.changing())
        try:
            for each in ordered:
                begun[each.name] = each.begin_taking(name, labels, group=identity)
            for each in ordered:
                each.prepare_taking(begun[each.name])
            taken = _barrier(ordered, begun, identity, io)
        except (OSError, block_device.BlockDeviceError) as error:
            _take_back(ordered, begun, identity, io)
            if isinstance(error, errors.VolumeError):
                raise
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise errors.SnapshotFailed(name, f"no snapshot was taken: {reason}", "check the disk") from error
        with contextlib.suppress(OSError):  # then the next open does it
            for each in ordered:
                each.end_group()
            _uncommit(ordered[0].directory.parent, identity, io)
    return [taken[each.name] for each in volumes]


def _barrier(
    ordered: Sequence[volume.Volume], begun: Mapping[str, volume.Taking], identity: uuid.UUID, io: storage_io.StorageIO
) -> dict[str, snapshot.Snapshot]:
    """Raises OSError, MediumError."""
    began = time.perf_counter()
    with contextlib.ExitStack() as gates:
        for each in ordered:
            gates.enter_context(each.device.hold())
        try:
            for each in ordered:
                each.commit_taking(begun[each.name])
            _commit(ordered, identity, io)
        except BaseException:
            _take_back(ordered, begun, identity, io)  # before any write goes on
            raise
        taken = {each.name: each.end_taking(begun[each.name]) for each in ordered}
    held = time.perf_counter() - began
    for made in taken.values():
        made.held_seconds = held
    return taken


def _take_back(
    ordered: Sequence[volume.Volume], begun: Mapping[str, volume.Taking], identity: uuid.UUID, io: storage_io.StorageIO
) -> None:
    """Make sure that none of them comes up at the next open."""
    _uncommit(ordered[0].directory.parent, identity, io)
    for each in ordered:
        if each.name in begun:
            each.abandon_taking(begun[each.name])


def _commit(ordered: Sequence[volume.Volume], identity: uuid.UUID, io: storage_io.StorageIO) -> None:
    """Make the group's file, durably.  Raises OSError."""
    parent = ordered[0].directory.parent
    path = manifest.group_path(parent / "any", identity)
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        io.fsync_directory(parent)
    small_file.replace(path, json.dumps([each.directory.name for each in ordered]).encode(), io=io)


def _uncommit(parent: Path, identity: uuid.UUID, io: storage_io.StorageIO) -> None:
    path = manifest.group_path(parent / "any", identity)
    for each in (path, small_file.beside(path)):
        with contextlib.suppress(OSError):
            io.unlink(each)
            io.fsync_directory(path.parent)


def sweep(parent: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Remove the files of groups that no manifest names any more, after a crash; `parent` has the volumes' directories."""
    for path in sorted(manifest.group_path(parent / "any", uuid.UUID(int=0)).parent.glob("*")):
        with contextlib.suppress(OSError, ValueError, manifest.ManifestError):
            if path.suffix != ".new":
                names = json.loads(path.read_text())
                records = [manifest.load(parent / name) for name in names if manifest.exists(parent / name)]
                if any(each.group == uuid.UUID(path.name) for record in records for each in record.snapshots):
                    continue
            io.unlink(path)
