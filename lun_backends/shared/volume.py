# SPDX-License-Identifier: Apache-2.0
"""A shared volume on one node: its device, its snapshots, and the requests to change them.

    initiators: SharedDevice            any node: SharedView
                     |                                |
              copy-on-write -> EpochSide        SnapshotView -> LUN(j) .. LUN(e)
                     |            |                   |
              FencedPrimary    LUN(e)           ViewedPrimary

`driver` runs the protocol of `lun_backends.cluster` beside them.  Snapshots are listed as this node read them in the log,
so all nodes list the same, a second apart at most.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lun_backends import block_device, copy_on_write, names, preserving, tracking
from lun_backends.cluster import history, trackers
from lun_backends.cluster import node as cluster_node
from lun_backends.cluster.history import Epoch, History, Standing
from lun_backends.cluster.records import Record, Type
from lun_backends.corosync import messenger
from lun_backends.initiator import reservation
from lun_backends.shared import devices as shared_devices
from lun_backends.shared import jobs, snapshot, view
from lun_backends.shared.device import SharedDevice
from lun_backends.shared.driver import Driver
from lun_backends.shared.primary import EpochSide, FencedPrimary
from lun_backends.shared.snapshot import NodeSeen, Snapshot, Status
from lun_backends.volumes import errors, policy

_NO_SNAPSHOT = uuid.UUID(int=0)


@dataclass(frozen=True)
class Settings:
    """The settings of a shared volume on this node."""

    chunk_size: int = 65536  # bytes; the same on all nodes saves copies, but need not be
    patience: float = 30.0  # seconds that commands of initiators wait while the node is not ARMED
    writes: bool = True  # False: this node only reads
    exchange: bool = False  # over corosync, of what nodes preserved, and of who does a job
    takeover: float = 60.0  # seconds after which this node does a deletion that is left to another one
    rules: policy.Policy = field(default_factory=policy.Policy)  # on_error, copy_timeout, max_snapshots


class CannotShare(errors.VolumeError):
    """The devices cannot be used for a shared volume."""


class SnapshotPending(errors.VolumeError):
    """The snapshot is in the log, and its fence was not complete in time.  Any node completes it."""


class RequestFailed(errors.VolumeError):
    """The log did not take the request, or not in time."""


class SharedVolume:
    """A shared volume that is open on this node."""

    def __init__(
        self,
        devices: shared_devices.Devices,
        *,
        identity: uuid.UUID,
        name: str,
        node: str,
        settings: Settings | None = None,
        listener: policy.Listener = policy.ignore,
    ) -> None:
        """Take the devices over, and begin to join; `device` waits until the node is ARMED.

        `node` names this node among the nodes of the volume, for good.  Raise CannotShare, BlockDeviceError; then the
        devices are still the caller's.
        """
        self.uuid = identity
        self.name = name
        self.settings = settings = settings or Settings()
        self._devices = devices
        self._listener = listener
        try:
            exclusive = devices.fence.exclusive()
        except reservation.Unsuitable as lacking:
            reason, _, remedy = str(lacking).rpartition(": ")
            raise CannotShare(name, reason, remedy) from lacking
        self._node = cluster_node.Node(
            identity,
            node,
            exclusive=exclusive,
            block_size=shared_devices.RECORD,
            clock=time.time_ns,
            patience=cluster_node.PATIENCE * (1 + (uuid.uuid5(identity, node).int % 100) / 100),
            log_blocks=devices.log.blocks,
        )
        self._driver = Driver(self._node, devices, self, settings.patience)
        self._below = copy_on_write.CopyOnWrite(
            FencedPrimary(self._driver, devices.primary),
            settings.chunk_size,
            self._copy_failed,
            settings.rules.copy_timeout,
        )
        self.device = SharedDevice(self._driver, devices.primary, self._below, writes=settings.writes)
        self._jobs = jobs.Jobs(self._driver, self._below, self, settings.takeover)
        self._deciding = threading.Lock()
        self._barred = False
        self._closed = False
        self._driver.start()
        self._messenger: messenger.Messenger | None = None
        if settings.exchange:
            exchange = trackers.Exchange(identity, node, tracking.GRAIN, self._known)
            self._messenger = messenger.Messenger(identity, exchange, listener=self._jobs.wake)
        self._jobs.start(self._messenger)

    def close(self) -> None:
        """End the node in order: what it wrote is on stable storage, and it stays registered.  Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        if self._messenger is not None:
            self._messenger.close()
        self.device.close()
        with contextlib.suppress(block_device.BlockDeviceError):
            if self._driver.admission.open and self.settings.writes:
                self._below.flush()
        self._driver.stop()
        self._jobs.stop()
        self._below.close()
        with contextlib.ExitStack() as closing:
            closing.callback(self._devices.close)
            closing.callback(self._devices.log.close)
            closing.callback(self._devices.primary.close)

    # Looking --------------------------------------------------------------------------------------------------------

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots, oldest first, as this node read them in the log a second ago at most."""
        with self._driver.changed:
            return snapshot.snapshots_of(self._node.history)

    def refresh(self, timeout: float = 5.0) -> bool:
        """Read the log now, so that what another node did a moment ago is listed.  Return False if that was not possible."""
        now = time.monotonic()
        self._driver.look()
        return self._driver.wait_for(lambda: self._driver.read_at > now, timeout)

    def snapshot(self, name: str) -> Snapshot:
        """Return the snapshot of that name, or of that UUID.  Raise NoSuchSnapshot."""
        epoch = self._find(name)
        with self._driver.changed:
            return snapshot.snapshot_of(self._node.history, epoch)

    def view(self, name: str) -> view.SharedView:
        """Open a snapshot for reading; the caller closes it.  Its reads wait until this node is ARMED.  Raise NoSuchSnapshot."""
        epoch = self._find(name)
        assert epoch.snapshot is not None
        return view.SharedView(self._driver, self._devices.primary, epoch.snapshot)

    @property
    def status(self) -> Status:
        """The state of the volume on this node."""
        node, counters = self._node, self._below.counters
        with self._driver.changed:
            log = node.history
            epoch = node.adopted
            demand = log.records[log.demand] if log.fence_is_due else None
            return Status(
                state=node.state.value,
                epoch=epoch.number if epoch else None,
                snapshot=epoch.name if epoch else "",
                problem=node.problem,
                pending=demand.type.name.lower() if demand else "",
                exclusive=node.exclusive,
                rolling_back=log.rollback.node if log.rollback else "",
                log_used=log.end,
                log_size=self._devices.log.blocks,
                running=self._driver.admission.running,
                joined=self._driver.life,
                held_seconds=self._driver.held_seconds,
                copies=counters.copies,
                futile_copies=counters.futile_copies,
                copied_bytes=counters.copied_bytes,
                waits=counters.waits,
            )

    @property
    def counters(self) -> preserving.Counters:
        """The counts of copy-on-write on this node."""
        return self._below.counters

    @property
    def expelled(self) -> bool:
        """Whether another node expelled this one."""
        with self._driver.changed:
            return self._node.name in self._node.history.expelled

    @property
    def log_damage(self) -> str:
        """Why the log cannot be trusted, and so keeps this node out; empty if it can."""
        return self._node.damage

    def write_once(self, name: str) -> block_device.BlockDevice:
        """Return the write-once LUN of a snapshot, for reading.  Raise NoSuchSnapshot, NotReady, BlockDeviceError."""
        identity = self._find(name).lun
        assert identity is not None
        found = self._driver.lun(identity)
        if found is None:
            raise block_device.NotReady(f"write-once LUN {identity} is not visible")
        return found.device

    def pool_left(self) -> int | None:
        """Return how many blank write-once LUNs this node sees that no snapshot has taken; None if they are made on demand.

        Raise BlockDeviceError.
        """
        if self._devices.pool.on_demand:
            return None
        with self._driver.changed:
            newest = self._node.history.newest
        blank = self._devices.pool.blank(0 if newest is None else newest.number + 1)
        with self._driver.changed:
            return sum(not self._node.history.names_lun(identity) for identity in blank)

    @property
    def tracker(self) -> tuple[Epoch, tracking.Tracker] | None:
        """The epoch in which this node is ARMED, and the chunks that it knows to be preserved; None if there are none."""
        armed = self._below.armed
        if armed is None or not self._driver.admission.open:
            return None
        side, tracker = armed
        return (side.epoch, tracker) if isinstance(side, EpochSide) else None

    @property
    def exchange(self) -> messenger.Status | None:
        """The state of the tracker exchange over corosync; None if it is off."""
        return None if self._messenger is None else self._messenger.status

    def _known(self) -> trackers.Known | None:
        found = self.tracker
        if found is None or found[0].lun is None:
            return None
        return trackers.Known(found[0].lun, found[1].known, found[1].grains)

    def nodes(self) -> tuple[NodeSeen, ...]:
        """Return the nodes that are registered, or that wrote a record, or are expelled.  Raise BlockDeviceError.

        A registration belongs to the node whose name is the initiator's name, or its last part after a colon.
        """
        registrations = list(self._devices.fence.registrations())
        with self._driver.changed:
            log = self._node.history
            newest = log.newest
            last: dict[str, Record] = {}
            epochs: dict[str, int] = {}
            for record in log.records:
                if record.type is not Type.EXPEL:
                    last[record.node] = record
                    if record.type in (Type.EPOCH, Type.FENCED):
                        epochs[record.node] = record.epoch
            expelled = set(log.expelled)
        key = None if newest is None else history.key(self.uuid, newest)
        seen: list[NodeSeen] = []
        for name in sorted({*last, *expelled, self._node.name}):
            own = [found for found in registrations if _is_initiator_of(found.initiator, name)]  # one for each path
            registrations = [found for found in registrations if found not in own]
            latest = last.get(name)
            seen.append(
                NodeSeen(
                    name,
                    own[0].initiator if own else "",
                    bool(own) and all(found.key == key for found in own),
                    epochs.get(name),
                    snapshot.moment(latest.time) if latest else None,
                    name in expelled,
                )
            )
        return (*seen, *(NodeSeen("", other.initiator, other.key == key, None, None) for other in registrations))

    # Changing -------------------------------------------------------------------------------------------------------

    def create_snapshot(self, name: str, labels: Mapping[str, str] | None = None, *, timeout: float = 30.0) -> Snapshot:
        """Take a snapshot, for all nodes at one instant.  Return when its fence is complete and this node writes again.

        Raise BadName, SnapshotExists, TooManySnapshots; SnapshotFailed: none was taken; SnapshotPending: it may be taken
        all the same; RequestFailed.
        """
        if not names.valid(name):
            raise errors.BadName(self.name, f"{name!r} is no name of a snapshot", f"use {names.RULE}")
        with self._driver.changed:
            taken = snapshot.snapshots_of(self._node.history)
        if any(other.name == name for other in taken):
            raise errors.SnapshotExists(self.name, f"there is a snapshot {name!r}", "choose another name")
        limit = self.settings.rules.max_snapshots
        if limit is not None and len(taken) >= limit:
            raise errors.TooManySnapshots(self.name, f"it has {len(taken)} snapshots, the most allowed", "delete one")
        end = time.monotonic() + timeout
        with contextlib.suppress(block_device.BlockDeviceError):
            self._devices.primary.flush()  # so that little is left for the flush that holds writes
        request = cluster_node.taking(self.uuid, name, labels)
        try:
            self._driver.ask(request, timeout)
        except history.Refused as refused:
            raise errors.SnapshotFailed(self.name, f"no snapshot was taken: {refused}", "then try again") from refused
        except TimeoutError as late:
            raise (errors.SnapshotFailed if request.refused else SnapshotPending)(
                self.name, f"no snapshot was taken in {timeout:g} s: {late}", "look at `wolun status`"
            ) from late
        record = request.record
        assert record is not None
        assert record.snapshot is not None
        log = self._node.history
        fenced = self._driver.wait_for(lambda: log.answered >= request.position, max(0.0, end - time.monotonic()))
        if not fenced:
            reason = f"snapshot {name!r} is recorded, and its fence is not complete after {timeout:g} s"
            raise SnapshotPending(self.name, reason, "wait: any node completes it")
        self._driver.wait_for(lambda: self._driver.admission.open, max(0.0, end - time.monotonic()))
        with self._driver.changed:
            return snapshot.snapshot_of(log, log.find(record.snapshot), self._driver.held_seconds)

    def delete_snapshot(
        self,
        name: str,
        *,
        timeout: float = 30.0,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> bool:
        """Delete a snapshot.  Return True when it is gone; False if it is only hidden, until a newer one is taken.

        The chunks that older snapshots need move to the next older one, with `progress` (bytes done, bytes in all).  If
        this node stops meanwhile, another one goes on.  Raise NoSuchSnapshot, RequestFailed, DeletionStopped,
        BlockDeviceError.
        """
        identity = self._find(name).snapshot
        assert identity is not None
        with self._driver.changed:
            standing = self._node.history.standing(identity)
        with self._jobs.claim_deletion(identity):
            if standing is not Standing.HIDDEN:
                self.request(Type.DELETE, identity, timeout)
            self._end_copies(timeout)
            return self._jobs.delete(identity, progress, cancelled, timeout)

    def note(self, name: str, new: str | None, labels: Mapping[str, str | None], *, timeout: float = 30.0) -> None:
        """Give a snapshot another name if `new` is not None, set labels, and remove those that are None.

        Raise BadName, NoSuchSnapshot, RequestFailed.
        """
        if new is not None and not names.valid(new):
            raise errors.BadName(self.name, f"{new!r} is no name of a snapshot", f"use {names.RULE}")
        identity = self._find(name).snapshot
        assert identity is not None
        with self._driver.changed:
            position, old = self._node.history.note(identity)
        merged = {key: value for key, value in {**old.labels, **labels}.items() if value is not None}
        self._ask(
            cluster_node.Request(
                Record(Type.NOTE, self.uuid, snapshot=identity, answers=position, name=new or old.name, labels=merged)
            ),
            timeout,
        )

    def rollback(
        self,
        name: str,
        *,
        timeout: float = 30.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make the volume's content that of a snapshot, and return when it is.  Other nodes stay out meanwhile.

        Initiators of this node wait, too.  If this node stops meanwhile, it goes on after its next start, or another
        node takes over when this is asked of it.  Raise NoSuchSnapshot, RequestFailed, BlockDeviceError.
        """
        identity = self._find(name).snapshot
        assert identity is not None
        with self._driver.changed:
            under_way = self._node.history.rollback
        with self._jobs.claim(identity):
            if under_way is None or under_way.node != self._node.name or under_way.snapshot != identity:
                self.request(Type.ROLLBACK, identity, timeout)
            self._jobs.roll_back(identity, progress, timeout)

    def expel(self, node: str, *, timeout: float = 30.0) -> None:
        """Keep a node out of the volume for good.  Return when it can write no more.  Raise RequestFailed."""
        if node == self._node.name:
            raise RequestFailed(self.name, "a node does not expel itself", "expel it on another node")
        request = cluster_node.Request(Record(Type.EXPEL, self.uuid, node=node))
        self._ask(request, timeout)
        log = self._node.history
        if not self._driver.wait_for(lambda: log.answered >= request.position, timeout):
            reason = f"node {node} is expelled, and the fence is not complete after {timeout:g} s"
            raise RequestFailed(self.name, reason, "wait: any node completes it")

    def request(
        self,
        kind: Type,
        identity: uuid.UUID,
        timeout: float,
        *,
        lun: uuid.UUID | None = None,
        answers: int = 0,
        reason: str = "",
    ) -> None:
        """Put a record about a snapshot into the log.  Raise RequestFailed."""
        draft = Record(kind, self.uuid, snapshot=identity, lun=lun, answers=answers, reason=reason)
        self._ask(cluster_node.Request(draft), timeout)

    def _ask(self, request: cluster_node.Request, timeout: float) -> None:
        try:
            self._driver.ask(request, timeout)
        except history.Refused as refused:
            raise RequestFailed(self.name, str(refused), "then try again") from refused
        except TimeoutError as late:
            reason = f"the log did not take the request in {timeout:g} s: {late}"
            raise RequestFailed(self.name, reason, "look at `wolun status`") from late

    def _end_copies(self, timeout: float) -> None:
        """Begin an epoch without copies if no snapshot is left that needs them."""
        with self._driver.changed:
            log = self._node.history
            newest = log.newest
            needed = (
                newest is None
                or newest.snapshot is None
                or any(
                    log.standing(epoch.snapshot) in (Standing.PENDING, Standing.TAKEN)
                    for epoch in log.epochs
                    if epoch.snapshot is not None
                )
            )
        if not needed:
            request = cluster_node.Request(Record(Type.EPOCH, self.uuid, snapshot=_NO_SNAPSHOT))
            self._ask(request, timeout)
            log = self._node.history
            self._driver.wait_for(lambda: log.answered >= request.position, timeout)

    def _find(self, name: str) -> Epoch:
        """Return the epoch of a snapshot by its name or UUID.  Raise NoSuchSnapshot."""
        for last_try in (False, True):
            with self._driver.changed:
                known = snapshot.snapshots_of(self._node.history)
                for found in reversed(known):
                    if name in (found.name, str(found.uuid)):
                        return self._node.history.find(found.uuid)
            if not last_try:
                self.refresh()  # another node may have taken it a moment ago
        there = ", ".join(other.name for other in known) or "none"
        raise errors.NoSuchSnapshot(self.name, f"there is no snapshot {name!r}", f"there are: {there}")

    # Following the node: the driver's thread calls these --------------------------------------------------------------

    def arm(self, epoch: Epoch, lun: shared_devices.WriteOnceLun | None) -> None:
        """Preserve into `lun` from now on; a side of the same epoch keeps its tracker."""
        with self._below.hold():
            side = self._below.write_once_side
            if lun is None:
                self._below.disarm()
            elif not isinstance(side, EpochSide) or side.epoch is not epoch:
                self._below.arm(EpochSide(self._driver, lun.side, epoch))
            rolls_back = self._node.history.rollback is not None
            self._bar(self.device.check_no_rollback if rolls_back else None)

    def joined(self) -> None:
        """Do the jobs that waited for this node to join."""
        self._jobs.wake()

    def read(self, log: History) -> None:
        """Follow a log that has grown while the node stays in its epoch."""
        unbars = self._barred and log.rollback is None
        drops = self._below.write_once_side is not None and log.target(self._node.epoch) is None
        if self._driver.admission.open and (unbars or drops):
            with self._below.hold():
                if unbars:
                    self._bar(None)
                if drops:
                    self._below.disarm()
        self._jobs.wake()

    def _bar(self, refuse: Callable[[], None] | None) -> None:
        self._below.bar(refuse)
        self._barred = refuse is not None

    # The policy -----------------------------------------------------------------------------------------------------

    def _copy_failed(
        self, side: preserving.WriteOnceSide, error: block_device.BlockDeviceError, _began: float
    ) -> preserving.Decision:
        """Decide about a copy that failed.  INVALID is in the log, and fenced, before `SharedDevice` writes without the copy."""
        if isinstance(error, block_device.ReservationConflict):
            return preserving.Decision.LATER  # SharedDevice writes again
        drop = self.settings.rules.on_error is policy.OnError.DROP_SNAPSHOT
        if not drop or not isinstance(side, EpochSide) or self._node.history.rollback is not None:
            self._listener(policy.WriteRefused(error))
            return preserving.Decision.REFUSE
        identity = side.epoch.snapshot
        assert identity is not None
        with self._deciding:
            with self._driver.changed:
                given_up = self._node.history.is_given_up(side.epoch)
            if not given_up:
                reason = f"a pre-image could not be preserved: {error}"
                try:
                    self.request(Type.INVALID, identity, self.settings.patience, reason=reason)
                except RequestFailed:
                    self._listener(policy.WriteRefused(error))
                    return preserving.Decision.REFUSE
                self._listener(policy.SnapshotInvalidated(side.epoch.name, reason))
        return preserving.Decision.REFUSE


def _is_initiator_of(initiator: str, node: str) -> bool:
    return bool(node) and (initiator == node or initiator.endswith(f":{node}"))
