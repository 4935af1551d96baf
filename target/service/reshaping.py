# SPDX-License-Identifier: Apache-2.0
"""Requests that change a volume that is being served: roll it back to a snapshot, convert its stores, or enlarge it.

| what    | initiators                                                               | interrupted or cancelled                      |
| ------- | ------------------------------------------------------------------------ | --------------------------------------------- |
| restore | must not reach the volume, unless forced; then each of them receives     | before it takes effect: the volume is as      |
|         | 28h/00h, "medium may have changed"                                       | before; after: it continues, also at the next |
|         |                                                                          | start, and cannot be cancelled                |
| convert | read and write on; a snapshot whose store is exchanged lets them wait    | each snapshot has the old store or the new    |
|         | for milliseconds                                                         | one; the rest is converted by another request |
| resize  | all receive 2Ah/09h, "capacity data has changed"                         | the volume has its old size or its new one    |
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from lun_backends.stores import settings
from lun_backends.volumes import converting, errors, interface
from lun_backends.volumes import volume as own
from target import messages, units
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import Asc
from target.service import damage_met, interrupted, problems, replica_file
from target.service.inventory import Inventory
from target.service.jobs import Cancelled, Job, Jobs

log = logging.getLogger(__name__)


class Reshaping:
    """The requests, on the volumes of an inventory.  Thread-safe."""

    def __init__(self, inventory: Inventory, jobs: Jobs) -> None:
        self._inventory = inventory
        self._jobs = jobs

    def restore(self, volume_name: str, name: str, *, force: bool, damaged: bool = False, outside: bool = False) -> Job:
        """Start a job that rolls a volume back, or that continues a rollback which stopped.

        Damaged blocks prevent the rollback, or stop it.  With `damaged`, the volume gets them as they are, and
        unreadable blocks as zeroes.  Data that initiators wrote to a write-once LUN prevents it, too, unless `outside`.
        Raise Problem.
        """
        owner, snapshot = self._inventory.find(volume_name, name)
        if replica_file.is_replica(owner.directory):
            raise problems.is_replica(f"{volume_name} was not rolled back", volume_name)
        users = self._inventory.users(lambda unit: unit.device is owner.device)
        if users and not force and owner.rolling_back_to is None:
            remedy = (
                f"unmount {volume_name} and log out there first, because data in their caches could be written over the "
                "restored data; or use --force"
            )
            raise problems.in_use(f"volume {volume_name}", users, remedy)

        def work(job: Job) -> None:
            if owner.rolling_back_to is not snapshot:
                try:
                    with (
                        problems.translated(f"{volume_name} was not rolled back to {name}"),
                        damage_met.noted(job, owner) as found,
                    ):
                        owner.begin_rollback(
                            name,
                            snapshot.uuid,
                            cancelled=job.cancelled,
                            on_damage=found if damaged else None,
                            accept_outside=outside,
                        )
                except errors.RollbackStopped:
                    raise Cancelled from None
                log.info("%s is rolled back to %s", volume_name, name)
                for unit in self._units(owner):
                    unit.attention(*divmod(Asc.MEDIUM_MAY_HAVE_CHANGED, 256))
            elif damaged:
                with problems.translated(f"{volume_name} is still being rolled back to {name}"):
                    owner.accept_damage()
            interrupted.finish_rollback(owner, job, lambda: self._inventory.stopping)

        return self._jobs.start("restore", f"{volume_name}@{name}", work)

    def convert(self, owner: own.Volume, kind: settings.Kind, *, existing: bool) -> Job:
        """Let later snapshots have a store of that kind, and start a job that converts `existing` ones, if they are asked for.

        The job's result is a Conversion.  Raise Problem.
        """
        running = [
            f"job {job.number} ({job.kind} {job.subject})"
            for job in self._jobs.all()
            if not job.ended and job.kind == "convert" and job.subject == owner.name
        ]
        if running:
            raise problems.in_use(f"volume {owner.name}", running, "wait for it, or cancel it")
        with problems.translated(f"the store of {owner.name} was not changed"):
            owner.set_store(kind)
        log.info("later snapshots of %s have a store of kind %s", owner.name, kind.value)

        def work(job: Job) -> None:
            if not existing:
                job.result = messages.Conversion(owner.name, kind.value, ())
                return
            with (
                problems.translated(f"the snapshots of {owner.name} were not all converted"),
                damage_met.noted(job, owner) as found,
            ):
                results = owner.convert_stores(progress=job.progress, cancelled=job.cancelled, on_damage=found)
            if any(result.reason == converting.STOPPED for result in results):
                raise Cancelled
            outcomes = tuple(
                messages.ConvertedStore(result.snapshot, result.store.value, result.reason) for result in results
            )
            job.result = messages.Conversion(owner.name, kind.value, outcomes)
            log.info("%s: snapshots have a store of kind %s, except for those that were left", owner.name, kind.value)

        return self._jobs.start("convert", owner.name, work)

    def resize(self, volume_name: str, size: int, *, received: bool = False) -> None:
        """Enlarge a volume to `size` bytes; a replica only if a stream that it receives is larger.  Raise Problem."""
        owner = self._inventory.volume(volume_name)
        if not received and replica_file.is_replica(owner.directory):
            raise problems.is_replica(f"{volume_name} was not resized", volume_name)
        with problems.translated(f"{volume_name} was not resized"):
            owner.resize(size)
        for unit in self._units(owner):
            unit.resized()
        log.info("%s now has %s", volume_name, units.exact_size(size))

    def _units(self, owner: interface.Volume) -> Iterator[LogicalUnit]:
        return (unit for unit in self._inventory.scsi.luns.values() if unit.device is owner.device)
