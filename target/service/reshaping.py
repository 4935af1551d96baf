# SPDX-License-Identifier: Apache-2.0
"""Volumes that go back to a snapshot, or grow, while they are served: what initiators and jobs see of it.

| what    | who is told                                                              | interrupted, cancelled                        |
| ------- | ------------------------------------------------------------------------ | --------------------------------------------- |
| restore | refused while initiators reach the volume, unless forced; then 28h/00h,  | before it takes effect: the volume is as      |
|         | "medium may have changed", goes to each of them                          | before; after: it goes on, at the next start  |
|         |                                                                          | too, and cannot be cancelled                  |
| resize  | 2Ah/09h, "capacity data has changed", goes to all                        | as before, or as after                        |
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lun_backends.volumes import errors, volume
from target import units
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import Asc
from target.service import jobs, problems

if TYPE_CHECKING:
    from target.service import service

log = logging.getLogger(__name__)


class Reshaping:
    """What can be asked of the volumes of `served`."""

    def __init__(self, served: service.Service) -> None:
        self._served = served

    def restore(self, volume_name: str, name: str, *, force: bool) -> jobs.Job:
        """Begin to roll a volume back, or go on with it if that stopped.  Raises Problem."""
        owner, snapshot = self._served.find(volume_name, name)
        users = self._served.users(lambda unit: unit.device is owner.device)
        if users and not force and owner.rolling_back_to is None:
            remedy = f"unmount {volume_name} and log out there first, for what they have cached would be written over it; or say --force"
            raise problems.in_use(f"volume {volume_name}", users, remedy)

        def work(job: jobs.Job) -> None:
            if owner.rolling_back_to is not snapshot:
                try:
                    with problems.translated(f"{volume_name} was not rolled back to {name}"):
                        owner.begin_rollback(name, snapshot.uuid, cancelled=job.cancelled)
                except errors.RollbackStopped:
                    raise jobs.Cancelled from None
                log.info("%s is as it was at %s", volume_name, name)
                for unit in self._units(owner):
                    unit.attention(*divmod(Asc.MEDIUM_MAY_HAVE_CHANGED, 256))
            self.go_on(owner, job)

        return self._served.jobs.start("restore", f"{volume_name}@{name}", work)

    def go_on(self, owner: volume.Volume, job: jobs.Job) -> None:
        """Bring a volume's primary to the moment that it was rolled back to; for jobs.  Raises Problem, Cancelled."""
        snapshot = owner.rolling_back_to
        if snapshot is None:
            return
        with problems.translated(
            f"{owner.name} is as it was at {snapshot.name}, but that is not all in its primary yet",
            f"see to it and say `wolun snapshot restore {owner.name}@{snapshot.name}` again; until then no snapshots "
            "can be taken or deleted",
        ):
            if not owner.continue_rollback(progress=job.progress, cancelled=lambda: self._served.stopping):
                raise jobs.Cancelled
        log.info("the primary of %s is as at %s", owner.name, snapshot.name)

    def resize(self, volume_name: str, size: int) -> None:
        """Make a volume larger.  Raises Problem."""
        owner = self._served.served(volume_name)
        with problems.translated(f"{volume_name} was not resized"):
            owner.resize(size)
        for unit in self._units(owner):
            unit.resized()
        log.info("%s has %s now", volume_name, units.exact_size(size))

    def _units(self, owner: volume.Volume) -> Iterator[LogicalUnit]:
        return (unit for unit in self._served.scsi.luns.values() if unit.device is owner.device)
