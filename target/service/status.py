# SPDX-License-Identifier: Apache-2.0
"""The state of the daemon as it is shown: volumes, sessions, jobs, throughput, space and alerts."""

from __future__ import annotations

import collections
import datetime
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import target
from lun_backends.volumes import interface, manifest
from lun_backends.volumes import volume as own
from target import messages
from target.configuration import settings
from target.iscsi.session_info import SessionInfo
from target.service import alerts, moments, problems, replica_file, volumes
from target.service.clones import Clones
from target.service.inventory import Inventory
from target.service.jobs import Jobs
from target.service.nodes import Nodes
from target.service.pools import Pools
from target.service.rates import Rates
from target.service.scheduler import Scheduler

log = logging.getLogger(__name__)


class Status:
    """The parts of a daemon, read only."""

    def __init__(
        self, inventory: Inventory, jobs: Jobs, rates: Rates, scheduler: Scheduler, nodes: Nodes, pools: Pools
    ) -> None:
        self._inventory = inventory
        self._clones = Clones(inventory)
        self._jobs = jobs
        self._rates = rates
        self._scheduler = scheduler
        self._nodes = nodes
        self._pools = pools
        self.noticing: Callable[[], str] = str
        """Returns why notices cannot be sent; an empty text if they can."""
        self.replications: Callable[[], Sequence[messages.Replication]] = tuple
        """Returns the state of the replications."""
        self._started = datetime.datetime.now(datetime.UTC)

    def status(self) -> messages.Status:
        """Return everything at a glance."""
        inventory = self._inventory
        space = shutil.disk_usage(inventory.state_dir)
        troubles = tuple(self._alerts(space.free, space.total))
        return messages.Status(
            version=target.VERSION,
            pid=os.getpid(),
            started=moments.utc(self._started),
            state_dir=str(inventory.state_dir),
            fabric=inventory.settings.fabric.value,
            target=inventory.settings.target,
            portal=inventory.portal_address,
            portals=tuple(inventory.fabric.addresses()),
            portals_unbound=tuple(inventory.fabric.unbound()),
            space_free_bytes=space.free,
            space_total_bytes=space.total,
            volumes=tuple(self.volume(configured) for configured in inventory.settings.all_volumes),
            sessions=tuple(_session(session) for session in inventory.fabric.sessions()),
            jobs=tuple(job.message() for job in self._jobs.all() if not job.ended),
            trouble=tuple(alert.message for alert in troubles),
            alerts=troubles,
            pools=tuple(self._pools.shown()),
            schedules=tuple(self._scheduler.schedules()),
            replications=tuple(self.replications()),
            clones=tuple(self._clones.list_clones()),
        )

    def alerts(self) -> list[messages.Alert]:
        """Return the conditions that need the administrator's attention."""
        space = shutil.disk_usage(self._inventory.state_dir)
        return list(self._alerts(space.free, space.total))

    def _alerts(self, free: int, total: int) -> Iterator[messages.Alert]:
        yield from alerts.current(self._inventory, self._scheduler.unkept(), free, total, manifest.now())
        for volume in self._inventory.settings.volumes:
            if volume.verify is not None and (trouble := self._scheduler.checks.trouble(volume.name)):
                remedy = f"`wolun snapshot verify {volume.name}@...` names the blocks; look for them in a backup"
                yield messages.Alert("verify-failed", volume.name, trouble, remedy)
        yield from self._nodes.alerts()
        yield from alerts.of_pools(self._pools.shown(), self._pools.left)
        yield from alerts.of_replications(self.replications())
        if trouble := self.noticing():
            text = f"notices of alerts cannot be sent: {trouble}"
            yield messages.Alert(
                "notices-failed", "daemon", text, "correct `notices` in the configuration, or its target"
            )

    def volume(self, configured: settings.Volume | settings.SharedVolume) -> messages.Volume:
        """Return one volume, as it is being served."""
        if isinstance(configured, settings.SharedVolume):
            return self._shared(configured)
        owner = self._inventory.open_volumes.get(configured.name)
        read, written, commands = self._rates.of(configured.name)
        primary = volumes.primary_path(configured, self._inventory.state_dir)
        return messages.Volume(
            name=configured.name,
            lun=configured.lun,
            state="online" if owner else "failed",
            trouble=owner.in_doubt if owner else self._inventory.failed.get(configured.name, ""),
            restoring=owner.rolling_back_to.name if owner and owner.rolling_back_to else None,
            size=owner.device.size if owner else configured.size or 0,
            block_size=configured.block_size,
            chunk_size=configured.chunk_size,
            durability=configured.durability.value,
            primary=str(primary),
            primary_used_bytes=_used(primary),
            snapshots=len(owner.snapshots) if owner else 0,
            snapshot_bytes=sum(snapshot.used_bytes for snapshot in owner.snapshots) if owner else 0,
            preserved_bytes=owner.space.used if owner else 0,
            preserved_limit=configured.limit,
            on_error=configured.on_error.value,
            verify_reads=configured.verify_reads,
            read_bytes_per_second=read,
            written_bytes_per_second=written,
            commands_per_second=commands,
            doubtful=owner.doubt if owner else "",
            store=configured.store.value,
            stores=_stores(owner),
            map_write_once=configured.map_write_once.value,
            write_cache=configured.write_cache,
            **self._limit(configured),
            replica=self._replica(owner) if owner else None,
        )

    def _replica(self, owner: interface.Volume) -> messages.Replica | None:
        try:
            return self.replica(owner) if replica_file.load(owner.directory) is not None else None
        except problems.Problem as problem:
            log.error("%s", problem)
            return None

    def replica(self, owner: interface.Volume) -> messages.Replica:
        """Return what an open volume has for streams.  Raise Problem."""
        replica = replica_file.load(owner.directory)
        known = replica_file.identities(owner, replica)
        partial = None if replica is None or replica.partial is None else replica.partial
        if partial is not None and partial.identity in known:
            partial = None  # a crash came after its snapshot
        return messages.Replica(
            owner.name,
            True,
            replica is not None and replica.replica,
            "" if replica is None else replica.source,
            "" if replica is None else replica.source_uuid,
            tuple(messages.Identified(snapshot.name, str(identity)) for identity, snapshot in known.items()),
            "" if partial is None else partial.token,
            "" if partial is None else partial.name,
        )

    def _limit(self, configured: settings.Volume) -> dict[str, Any]:
        """Return the fields about a volume's limit."""
        unit = self._inventory.unit_of(configured)
        if unit is None or (bucket := unit.bucket) is None:
            return {}
        rate = messages.Rate(bucket.rate.iops, bucket.rate.bandwidth, bucket.rate.burst)
        return {"rate": rate, "limited_commands": bucket.limited, "limited_seconds": bucket.seconds}

    def _shared(self, configured: settings.SharedVolume) -> messages.Volume:
        owner = self._inventory.open_volumes.get(configured.name)
        read, written, commands = self._rates.of(configured.name)
        sharing = self._nodes.sharing(configured.name)
        trouble = sharing.problem if owner and sharing else self._inventory.failed.get(configured.name, "")
        preserved = owner.space.used if owner else 0
        return messages.Volume(
            name=configured.name,
            lun=configured.lun,
            state="online" if owner else "failed",
            trouble=trouble,
            restoring=owner.rolling_back_to.name if owner and owner.rolling_back_to else None,
            size=owner.device.size if owner else 0,
            block_size=owner.device.block_size if owner else 0,
            chunk_size=configured.chunk_size,
            durability="power-loss",
            primary=configured.primary,
            primary_used_bytes=0,
            snapshots=len(owner.snapshots) if owner else 0,
            snapshot_bytes=preserved,
            preserved_bytes=preserved,
            preserved_limit=None,
            on_error=configured.on_error.value,
            read_bytes_per_second=read,
            written_bytes_per_second=written,
            commands_per_second=commands,
            store="luns" if configured.store is None else configured.store.value,
            sharing=sharing,
        )


def _session(session: SessionInfo) -> messages.Session:
    since = None if session.since is None else moments.utc(datetime.datetime.fromtimestamp(session.since, datetime.UTC))
    return messages.Session(
        session.initiator,
        session.address,
        session.target,
        since,
        session.commands,
        session.bytes_read,
        session.bytes_written,
    )


def _used(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _stores(owner: interface.Volume | None) -> dict[str, int]:
    """Return the number of snapshots for each kind of store; empty if another host keeps them."""
    counted: collections.Counter[str] = collections.Counter()
    if isinstance(owner, own.Volume):
        counted.update(owner.store_of(snapshot).value for snapshot in owner.snapshots)
    return dict(counted)
