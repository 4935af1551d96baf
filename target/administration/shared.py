# SPDX-License-Identifier: Apache-2.0
"""Changes of the shared volumes of which this host is a node: take part in one, and leave it.

Leaving ends this host's part in order.  The volume, its snapshots and the other nodes stay as they are.
"""

from __future__ import annotations

import logging

from target import codec, messages
from target.administration.in_force import InForce, volume_of
from target.configuration import settings
from target.service import problems
from target.service.service import Service

log = logging.getLogger(__name__)


class SharedChanges:
    """The changes.  One caller at a time (see administration).  Every method raises Problem."""

    def __init__(self, service: Service, in_force: InForce) -> None:
        self._service = service
        self._inventory = service.inventory
        self._in_force = in_force

    def share(self, request: messages.ShareVolume, *, dry_run: bool) -> None:
        """Take part in a shared volume; its devices are opened in the background."""
        fields = {key: value for key, value in codec.encode(request).items() if value not in (None, [])}
        shared = problems.validated(settings.SharedVolume, fields, f"volume {request.name}")
        changed = self._in_force.with_shared(shared)
        if dry_run:
            return
        self._inventory.reserve(shared.lun)
        self._service.nodes.add(shared)
        self._in_force.put(changed)
        log.info("this host takes part in the shared volume %s", shared.name)

    def unshare(self, name: str, *, force: bool, dry_run: bool) -> None:
        """Take part in a shared volume no longer."""
        shared = self._in_force.shared(name)
        users = self._inventory.users(lambda unit: volume_of(unit.name) == name)
        if users and not force:
            raise problems.in_use(f"volume {name}", users, problems.STOP_USING)
        running = [
            f"job {job.number} ({job.kind} {job.subject})"
            for job in self._service.jobs.all()
            if not job.ended and volume_of(job.subject) == name
        ]
        if running:
            raise problems.in_use(f"volume {name}", running, "wait for it, or cancel it")
        if dry_run:
            return
        self._service.nodes.remove(name)
        self._inventory.remove_shared(shared)
        self._in_force.put(self._in_force.without_shared(name))
        log.info("this host no longer takes part in the shared volume %s", name)
