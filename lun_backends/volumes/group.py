# SPDX-License-Identifier: Apache-2.0
"""Snapshots of several volumes at one moment: all of them, or none.

    <parent of the volumes' directories>/.groups/<uuid>    names the volumes' directories; the change is that it exists

| step                                                       | a crash after it leaves                               |
| ---------------------------------------------------------- | ----------------------------------------------------- |
| make the files; write the manifests beside those in force  | none                                                  |
| hold the writes of all volumes, flush them                 | none                                                  |
| put the manifests in force; their new records name the group | none: opening a volume removes such a record if the   |
|                                                            | group's file is missing                               |
| make the group's file                                      | all: the file is there                                |
| arm copy-on-write in all, release                          | all                                                   |
| take the group out of the manifests, remove its file       | all                                                   |

No write is let through between the first manifest and the group's file, so a snapshot whose record is removed is empty.
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
from lun_backends.volumes import errors, manifest, taking, volume
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.volumes.state import State


def create(
    volumes: Sequence[volume.Volume],
    name: str,
    labels: Mapping[str, str] | None = None,
    io: storage_io.StorageIO = storage_io.SYSTEM,
    *,
    scheduled: bool = False,
    notes: manifest.Notes = manifest.NOTHING,
) -> list[Snapshot]:
    """Take a snapshot called `name` of each volume, all at one moment.  Return them in the order of `volumes`.

    Raise the errors of `Volume.create_snapshot`; then no snapshot was taken.
    """
    if not volumes or len({member.directory for member in volumes}) < len(volumes):
        raise errors.VolumeError(name, "a group is of one or more volumes, each once", "name each volume once")
    if len({member.directory.parent for member in volumes}) > 1:
        raise errors.VolumeError(name, "the volumes are not kept in one place", "take their snapshots one by one")
    # Take the locks always in the same order, so that two groups never wait for each other.
    states = sorted((member.state for member in volumes), key=lambda state: str(state.directory))
    group = _Group(uuid.uuid4(), states, io)
    with contextlib.ExitStack() as locks:
        for state in states:
            locks.enter_context(state.changing)
        try:
            for state in states:
                group.at_work_on = state.name
                group.begun[state.name] = taking.begin(
                    state, name, labels, scheduled=scheduled, group=group.identity, notes=notes
                )
            for state in states:
                group.at_work_on = state.name
                taking.prepare(state, group.begun[state.name])
            taken = group.barrier()
        except errors.VolumeError:
            group.take_back()
            raise
        except (OSError, block_device.BlockDeviceError) as error:
            group.take_back()
            reason = f"no snapshot was taken: {errors.why(error)}"
            raise errors.SnapshotFailed(group.at_work_on, reason, "check the disk") from error
        with contextlib.suppress(OSError):  # if this fails, the next open does it
            for state in states:
                taking.end_group(state)
            group.uncommit()
    return [taken[member.name] for member in volumes]


class _Group:
    """A group that is being taken.

    `begun` has the snapshots that were begun so far, and `at_work_on` the name of the volume that a failure concerns.
    """

    def __init__(self, identity: uuid.UUID, states: Sequence[State], io: storage_io.StorageIO) -> None:
        self.identity = identity
        self.begun: dict[str, taking.Taking] = {}
        self.at_work_on = states[0].name
        self._states = states
        self._io = io
        self._path = manifest.group_path(states[0].directory, identity)

    def barrier(self) -> dict[str, Snapshot]:
        """Take all snapshots while the writes of all volumes are held.  Raises OSError, MediumError."""
        began = time.perf_counter()
        with contextlib.ExitStack() as gates:
            for state in self._states:
                gates.enter_context(state.device.hold())
            try:
                for state in self._states:
                    self.at_work_on = state.name
                    taking.commit(state, self.begun[state.name])
                self._commit()
            except BaseException:
                self.take_back()  # before any write continues
                raise
            taken = {state.name: taking.end(state, self.begun[state.name]) for state in self._states}
        held = time.perf_counter() - began
        for snapshot in taken.values():
            snapshot.held_seconds = held
        return taken

    def take_back(self) -> None:
        """Make sure that none of the snapshots comes up at the next open."""
        self.uncommit()
        for state in self._states:
            if state.name in self.begun:
                taking.abandon(state, self.begun[state.name])

    def _commit(self) -> None:
        """Make the group's file, durably.  Raises OSError."""
        directory = self._path.parent
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)
            self._io.fsync_directory(directory.parent)
        names = json.dumps([state.directory.name for state in self._states]).encode()
        small_file.replace(self._path, names, io=self._io)

    def uncommit(self) -> None:
        """Remove the group's file, if it is there and can be removed."""
        for path in (self._path, small_file.beside(self._path)):
            with contextlib.suppress(OSError):
                self._io.unlink(path)
                self._io.fsync_directory(path.parent)


def sweep(parent: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
    """Remove the files of groups that no manifest names any longer, after a crash.

    `parent` is the directory that holds the volumes' directories.
    """
    for path in sorted(manifest.group_path(parent / "any", uuid.UUID(int=0)).parent.glob("*")):
        with contextlib.suppress(OSError, ValueError, manifest.ManifestError):
            if path.suffix != ".new":
                names = json.loads(path.read_text())
                records = [manifest.load(parent / name) for name in names if manifest.exists(parent / name)]
                if any(snapshot.group == uuid.UUID(path.name) for record in records for snapshot in record.snapshots):
                    continue
            io.unlink(path)
