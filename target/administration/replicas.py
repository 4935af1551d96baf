# SPDX-License-Identifier: Apache-2.0
"""Volumes that receive streams from other hosts: made, grown, followed by the receiving job, and promoted.

| the volume                        | a full stream                              | a stream on a base                              |
| --------------------------------- | ------------------------------------------ | ----------------------------------------------- |
| does not exist                    | makes it                                   | refused: it has no snapshot                     |
| is a replica without a snapshot   | goes on, or begins anew                    | refused: it has no snapshot                     |
| is a replica with the base        | refused, unless forced                     | goes on, or begins anew                         |
| is no replica                     | refused, unless forced: its content goes   | refused, unless forced: what was written since  |
|                                   |                                            | the base goes                                   |

A forced stream is refused while initiators reach the volume.  Its snapshots stay in any case.
"""

from __future__ import annotations

import contextlib

from lun_backends import names
from lun_backends.volumes import manifest
from target import messages, units
from target.administration.in_force import InForce
from target.administration.volumes import VolumeChanges
from target.exports import receiving
from target.service import jobs, problems, replica_file, volumes
from target.service.service import Service


class Replicas:
    """The changes.  One caller at a time (see administration), except for `shown`.  Every method raises Problem."""

    def __init__(self, service: Service, in_force: InForce, changes: VolumeChanges) -> None:
        self._service = service
        self._inventory = service.inventory
        self._in_force = in_force
        self._changes = changes

    def shown(self, name: str) -> messages.Replica:
        """Return what a volume has for streams; it need not exist."""
        if not any(volume.name == name for volume in self._in_force.settings.all_volumes):
            return self._left(name)
        return self._service.status.replica(self._inventory.own_volume(name))

    def _left(self, name: str) -> messages.Replica:
        """Return what the directory of a volume that is not configured has; the next stream serves it again."""
        directory = volumes.volume_directory(name, self._inventory.state_dir) if names.valid(name) else None
        left = None if directory is None else replica_file.load(directory)
        if directory is None or left is None or not manifest.exists(directory):
            return messages.Replica(name, False, False, "", "", ())
        with problems.translated(f"volume {name} cannot be looked at"):
            records = manifest.load(directory).snapshots
        known = tuple(
            messages.Identified(record.name, str(left.origins.get(record.uuid, record.uuid))) for record in records
        )
        partial = (
            None
            if left.partial is None or str(left.partial.identity) in {one.identity for one in known}
            else left.partial
        )
        token, receives = ("", "") if partial is None else (partial.token, partial.name)
        return messages.Replica(name, True, left.replica, left.source, left.source_uuid, known, token, receives)

    def receive(self, name: str, request: messages.Receive) -> jobs.Job:
        """Begin to receive a stream, and make the volume if there is none."""
        begin = receiving.begin_of(request)
        if request.keep is not None and request.keep < 1:
            raise problems.bad_request("keep", "the newest snapshot stays: write 1 or more")
        self._refuse_while_busy(name)
        if not any(volume.name == name for volume in self._in_force.settings.all_volumes):
            self._make(name, request)
        owner = self._inventory.own_volume(name)
        before = replica_file.load(owner.directory)
        base, restore = receiving.check(owner, begin, force=request.force)
        if before is None or not before.replica:
            users = self._inventory.users(lambda unit: unit.device is owner.device)
            if users:
                raise problems.in_use(f"volume {name}", users, "log out there first: its content is going to change")
        if begin.size > owner.device.size:
            self._changes.resize(name, begin.size, received=True)
        with problems.translated(f"{name} is not a replica"):
            origins = {} if before is None else before.origins
            partial = None if before is None else before.partial
            replica_file.store(
                owner.directory, replica_file.Replica(begin.volume, begin.volume_uuid, True, origins, partial)
            )
        self._inventory.protect(owner, True)
        return receiving.start(self._service, receiving.Receiving(owner, begin, base, restore, request.keep))

    def promote(self, name: str) -> jobs.Job:
        """Begin to let a replica take writes."""
        self._refuse_while_busy(name)
        return receiving.promote(self._service, self._inventory.own_volume(name))

    def _refuse_while_busy(self, name: str) -> None:
        running = [
            f"job {job.number} ({job.kind} {job.subject})"
            for job in self._service.jobs.all()
            if not job.ended and job.kind in ("receive", "promote", "restore") and job.subject.partition("@")[0] == name
        ]
        if running:
            raise problems.in_use(f"volume {name}", running, "wait for it, or cancel it")

    def _make(self, name: str, request: messages.Receive) -> None:
        """Make a volume for a full stream, or serve the one that an earlier stream made."""
        directory = volumes.volume_directory(name, self._inventory.state_dir)
        left = replica_file.load(directory) if names.valid(name) and manifest.exists(directory) else None
        if request.since is not None and left is None:
            since = request.since
            raise problems.Problem(
                problems.WRONG_BASE,
                f"{name} cannot receive {request.volume}@{request.snapshot}: it stands on {since.name} ({since.identity}), "
                f"and there is no volume {name}",
                "send all of a snapshot first, without --since",
            )
        asked = messages.CreateVolume(
            name=name,
            size=None if left else units.exact_size(request.size),
            lun=request.lun,
            hidden=request.lun is None,
            block_size=None if left else request.block_size,
            chunk_size=None if left else units.exact_size(request.chunk_size),
            existing="adopt" if left else None,
        )
        self._changes.create(asked, dry_run=True)
        if left is None:
            with problems.translated(f"volume {name} was not made"):
                directory.mkdir(parents=True, exist_ok=True)
                replica_file.store(directory, replica_file.Replica(request.volume, request.volume_uuid))
        try:
            self._changes.create(asked, dry_run=False)
        except BaseException:
            if left is None:
                with contextlib.suppress(OSError):
                    (directory / replica_file.NAME).unlink()
            raise
