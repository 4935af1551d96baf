# SPDX-License-Identifier: Apache-2.0
"""The part of this host as a node of shared volumes: it opens them, follows their logs, and answers requests about nodes.

A thread for each volume opens it, again and again while its devices do not answer, and then looks at its log once a
second.  A snapshot that another node took gets its LUNs then, and one that another node deleted loses them.

| alert           | when                                                                              |
| --------------- | --------------------------------------------------------------------------------- |
| `node-out`      | the node has not reached the volume's devices, or not joined, for `PATIENCE`      |
| `node-expelled` | another node expelled this one                                                    |
| `fence-pending` | a fence that a snapshot or an expulsion needs is not complete after `PATIENCE`    |
| `pool-empty`    | no blank write-once LUN is left for the next snapshot                             |
| `log-damaged`   | a block of the log holds no record of the volume                                  |
| `log-full`      | the log has room for few further records                                          |
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lun_backends import block_device
from lun_backends.refused import Refused
from lun_backends.volumes import policy
from target import messages
from target.configuration import settings
from target.service import moments, problems, shared_devices, snapshot_events
from target.service.inventory import Inventory
from target.service.shared_volume import SharedOwner

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds for which a state that passes by itself is no alert."""
LOOK = 1.0
RETRY = 5.0
COUNT = 15.0
"""Seconds between looks at what the newest snapshot preserves."""
POOL_LOOK = 15.0
"""Seconds between looks at the pool while it may change: after a record of the log, or while it is empty."""
POOL_REST = 300.0
"""Seconds between looks otherwise.  Each look asks every LUN of the pool."""
LOG_HIGH = 0.8
"""The share of the log above which there is an alert: a full log ends everything that is written into it."""
RECORDS_OF_SNAPSHOT = 4
"""EPOCH, FENCED, DELETE and DELETED."""

Opener = Callable[[settings.SharedVolume, str, Path, policy.Listener], SharedOwner]
"""Opens a volume on the node of that name.  Raise VolumeError, Refused, BlockDeviceError, OSError."""


class Nodes:
    """The shared volumes of this host that take snapshots while several nodes write.  Thread-safe."""

    def __init__(self, inventory: Inventory, configured: settings.Settings, opener: Opener) -> None:
        self._inventory = inventory
        self._opener = opener
        self._keepers: Mapping[str, _Keeper] = {  # replaced as a whole
            shared.name: _Keeper(inventory, shared, opener) for shared in configured.shared if not shared.is_static
        }
        for name in self._keepers:
            inventory.scsi.expect(name)

    @property
    def any(self) -> bool:
        """Whether there are any, open or not."""
        return bool(self._keepers)

    def start(self) -> None:
        """Begin to open them."""
        for keeper in self._keepers.values():
            keeper.start()

    def stop(self) -> None:
        """End the threads.  The volumes stay open until the inventory closes them."""
        for keeper in self._keepers.values():
            keeper.stop()

    def add(self, configured: settings.SharedVolume) -> None:
        """Begin to open one more volume."""
        keeper = _Keeper(self._inventory, configured, self._opener)
        self._keepers = {**self._keepers, configured.name: keeper}
        keeper.start()

    def remove(self, name: str) -> None:
        """End the thread of a volume.  If the volume is open, it stays so until the inventory closes it."""
        keeper = self._keepers[name]
        self._keepers = {other: kept for other, kept in self._keepers.items() if other != name}
        keeper.stop()
        self._inventory.scsi.arrived(name)

    def look(self, volume: str) -> None:
        """Let the thread of a volume look at its log now."""
        self._keeper(volume).look()

    def list_nodes(self, volume: str) -> list[messages.Node]:
        """Return the nodes of a volume.  Raise Problem."""
        owner = self._owner(volume)
        with problems.translated(f"the nodes of {volume} are not known"):
            seen = owner.shared.nodes()
        own = self._keeper(volume).node
        epoch = owner.shared.status.epoch
        return [
            messages.Node(
                volume=volume,
                name=node.name or shared_devices.node_of(node.initiator),
                this=node.name == own,
                expelled=node.expelled,
                registered=node.in_epoch,
                epoch=epoch if node.in_epoch else node.last_epoch,
                last_seen=None if node.last_seen is None else moments.utc(node.last_seen),
                initiator=node.initiator,
            )
            for node in seen
        ]

    def expel(self, volume: str, name: str, *, force: bool) -> list[messages.Node]:
        """Expel a node, for good, and return the nodes.  Raise Problem."""
        known = [node.name for node in self.list_nodes(volume) if node.name]
        if name not in known and not force:
            raise problems.no_such_node(volume, name, known)
        with problems.translated(f"node {name} was not expelled from {volume}"):
            self._owner(volume).shared.expel(name)
        log.warning("node %s is expelled from %s", name, volume)
        return self.list_nodes(volume)

    def sharing(self, volume: str) -> messages.Sharing | None:
        """Return the part of this host in a volume; None if it is no shared volume."""
        keeper = self._keepers.get(volume)
        return None if keeper is None else keeper.sharing()

    def alerts(self) -> Iterator[messages.Alert]:
        """Yield the conditions that need the administrator's attention."""
        for keeper in self._keepers.values():
            yield from keeper.alerts()

    def _keeper(self, volume: str) -> _Keeper:
        keeper = self._keepers.get(volume)
        if keeper is None:
            self._inventory.volume(volume)
            raise problems.not_shared(volume)
        return keeper

    def _owner(self, volume: str) -> SharedOwner:
        owner = self._keeper(volume).owner
        if owner is None:
            self._inventory.volume(volume)
            raise problems.volume_failed(volume, "it is being opened")
        return owner


class _Keeper:
    """The thread that opens and follows one volume."""

    def __init__(self, inventory: Inventory, configured: settings.SharedVolume, opener: Opener) -> None:
        self._inventory = inventory
        self._configured = configured
        self._opener = opener
        self.node = configured.node or socket.gethostname().partition(".")[0]
        self.owner: SharedOwner | None = None
        self._since: dict[str, float] = {}  # since when a condition has been true, by the monotonic clock
        self._pool: int | None = None
        self._counted = float("-inf")  # the last look at what the newest snapshot preserves
        self._pool_due = float("-inf")  # when to look at the pool again
        self._followed: object = None
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"shared {configured.name}", daemon=True)
        inventory.mark_failed(configured.name, "it is being opened")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        self._woken.set()

    def sharing(self) -> messages.Sharing:
        """Return the part of this host."""
        owner = self.owner
        if owner is None:
            reason = self._inventory.failed.get(self._configured.name, "")
            return messages.Sharing(self.node, "out", reason, None, None, None, 0, 0)
        status = owner.shared.status
        pending = self._since.get("fence-pending")
        sharing = messages.Sharing(
            node=self.node,
            state=status.state,
            problem=status.problem,
            epoch=status.epoch,
            fence_pending_seconds=time.monotonic() - pending if status.pending and pending is not None else None,
            pool=self._pool,
            copies=status.copies,
            futile_copies=status.futile_copies,
        )
        exchange = owner.shared.exchange
        if exchange is None:
            return sharing
        counted = exchange.trackers
        return dataclasses.replace(
            sharing,
            exchange=f"corosync: {exchange.problem}" if exchange.problem else f"corosync, {exchange.members} nodes",
            exchange_members=exchange.members,
            exchange_messages_sent=counted.sent_messages,
            exchange_messages_taken=counted.taken_messages,
            exchange_bytes_sent=counted.sent_bytes,
            exchange_bytes_taken=counted.taken_bytes,
        )

    def alerts(self) -> Iterator[messages.Alert]:
        """Yield the alerts of the module's table."""
        owner, name = self.owner, self._configured.name
        if owner is None:
            return
        status = owner.shared.status
        if owner.shared.expelled:
            text = f"node {self.node} is expelled from volume {name}, and neither reads nor writes it"
            remedy = "if that was a mistake, give the node another name: `node` of the volume in the configuration"
            yield messages.Alert("node-expelled", name, text, remedy)
        elif owner.shared.log_damage:
            text = f"node {self.node} is out of volume {name}: {owner.shared.log_damage}"
            remedy = "look at the log on the storage host; no node can know what that record said"
            yield messages.Alert("log-damaged", name, text, remedy)
        elif self._lasts("node-out"):
            text = f"node {self.node} takes no part in volume {name}: {status.problem or f'it is {status.state}'}"
            remedy = "see that it reaches the storage host; it joins again by itself"
            yield messages.Alert("node-out", name, text, remedy)
        if self._lasts("fence-pending"):
            text = f"a fence of volume {name} is not complete: the log demands one for its newest {status.pending}"
            yield messages.Alert(
                "fence-pending", name, text, "see that a node reaches the primary; any node completes it"
            )
        if self._pool == 0:
            text = f"volume {name} has no blank write-once LUN left, so no further snapshot can be taken"
            remedy = "raise `pool` of the volume on the storage host, or delete snapshots there"
            yield messages.Alert("pool-empty", name, text, remedy)
        left = status.log_size - status.log_used
        if status.log_size and status.log_used > LOG_HIGH * status.log_size:
            share = 100 * status.log_used // status.log_size
            text = (
                f"the log of volume {name} is {share} % full: it has room for {left} further records,"
                f" about {left // RECORDS_OF_SNAPSHOT} snapshots that are taken and deleted"
            )
            yield messages.Alert("log-full", name, text, "make a larger volume, and copy the data to it")

    def _lasts(self, condition: str) -> bool:
        since = self._since.get(condition)
        return since is not None and time.monotonic() - since > PATIENCE

    def _note(self, condition: str, is_true: bool) -> None:
        if is_true:
            self._since.setdefault(condition, time.monotonic())
        else:
            self._since.pop(condition, None)

    def _run(self) -> None:
        while not self._stopping:
            if self.owner is None:
                self._open()
            else:
                self._follow(self.owner)
            self._woken.wait(LOOK if self.owner is not None else RETRY)
            self._woken.clear()

    def _open(self) -> None:
        name = self._configured.name
        owner: SharedOwner | None = None
        try:
            directory = self._inventory.state_dir / "shared" / name
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            watch = snapshot_events.Watch(name, lambda: self._inventory.unit_of(self._configured))
            owner = self._opener(self._configured, self.node, directory, watch)
            self._inventory.add_shared(self._configured, owner)
        except (block_device.BlockDeviceError, Refused, problems.Problem, OSError) as error:
            if owner is not None:
                owner.close()
            reason = error.message if isinstance(error, problems.Problem) else str(error)
            if self._inventory.failed.get(name) != reason:
                log.error("volume %s is not served yet: %s", name, reason)
            self._inventory.mark_failed(name, reason)
            return
        self.owner = owner
        log.info("volume %s is served on node %s", name, self.node)

    def _follow(self, owner: SharedOwner) -> None:
        """Look at the state of the node, and serve the snapshots that the log lists."""
        status = owner.shared.status
        self._note("node-out", status.state != "armed" or bool(status.problem))
        self._note("fence-pending", bool(status.pending))
        now = (status.log_used, status.epoch, status.state)
        try:
            grown = now != self._followed
            if status.state == "armed" and (grown or time.monotonic() - self._counted > COUNT):
                self._counted = time.monotonic()
                if grown or self._counted > self._pool_due:
                    self._pool = owner.shared.pool_left()
                    self._pool_due = self._counted + (POOL_LOOK if grown or self._pool == 0 else POOL_REST)
                self._inventory.follow(owner)
                self._inventory.scsi.arrived(owner.name)
                owner.count()
                self._followed = now
        except (block_device.BlockDeviceError, Refused, problems.Problem) as error:
            log.warning("the snapshots of %s are not followed, and that is tried again: %s", owner.name, error)
