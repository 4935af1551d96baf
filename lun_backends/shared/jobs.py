# SPDX-License-Identifier: Apache-2.0
"""The jobs of a shared volume that one node does: to move the chunks of a deleted snapshot, and to roll the volume back.

The log says which jobs are open, and any number of nodes may do the same one: a move is a put-if-absent of data that
never changes, and the log takes the DELETED record of the one that moved to the right LUN.  A thread does the jobs that
nobody waits for: deletions that became possible, those that this node began before it stopped, and those of other nodes.

Who should do a deletion is a hint.  With corosync it is the node that holds the deletion's lock; when that node stops or dies, the
next one that wants the lock does it at once.  Without corosync it is the node that asked for the deletion.  In both
cases another node does it after a while.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from lun_backends import block_device, tracking
from lun_backends.block_device import BlockDevice, ExtentKind
from lun_backends.cluster import history, jobs
from lun_backends.cluster.history import Standing
from lun_backends.cluster.records import Record, Type
from lun_backends.copy_on_write import CopyOnWrite
from lun_backends.refused import Refused
from lun_backends.shared.devices import WriteOnceLun
from lun_backends.shared.driver import Driver
from lun_backends.shared.view import SharedView
from lun_backends.volumes import errors

logger = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes per write command of a move
_RETRY = 5.0  # seconds after a job failed
_TIMEOUT = 30.0  # seconds for a record

Progress = Callable[[int, int], None]


class Owner(Protocol):
    """The part of the volume that jobs need."""

    name: str

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
        ...

    def view(self, name: str) -> SharedView:
        """Open a snapshot for reading."""
        ...


class Locks(Protocol):
    """Says which node should do a job: `corosync.messenger.Messenger`."""

    @property
    def joined(self) -> bool:
        """Whether there is somebody to say so."""
        ...

    def want(self, lock: str) -> None:
        """Want the lock of a job."""
        ...

    def release(self, lock: str) -> None:
        """Want it no longer."""
        ...

    def may_do(self, lock: str) -> bool:
        """Return whether this node should do that job."""
        ...


class Jobs:
    """The jobs of one volume on this node."""

    def __init__(self, driver: Driver, below: CopyOnWrite, owner: Owner, takeover: float) -> None:
        """Prepare; `start` begins to look for jobs.  `takeover`: seconds that another node's deletion is left to it."""
        self._driver = driver
        self._below = below
        self._owner = owner
        self._takeover = takeover
        self._claimed: set[uuid.UUID | None] = set()
        self._seen: dict[jobs.Job, float] = {}  # since when it could be done
        self._forgotten: set[uuid.UUID] = set()  # LUNs of deleted snapshots
        self._looked_at = -1  # the end of the log at the last look at the pool
        self._locks: Locks | None = None
        self._wanted: set[uuid.UUID] = set()  # deletions whose locks the thread wants
        self._failed: dict[jobs.Job, float] = {}  # when
        self._working = threading.Lock()
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"jobs of {owner.name}", daemon=True)

    def start(self, locks: Locks | None = None) -> None:
        """Begin to look for jobs, with `locks` that say which node should do one."""
        self._locks = locks
        self._thread.start()

    def wake(self) -> None:
        """Look for jobs now: the log has grown."""
        self._woken.set()

    def stop(self) -> None:
        """Stop after the command under way."""
        self._stopping = True
        self._woken.set()
        self._thread.join()

    @contextlib.contextmanager
    def claim(self, identity: uuid.UUID) -> Iterator[None]:
        """Keep this node's thread off a job that the caller does itself."""
        self._claimed.add(identity)
        try:
            yield
        finally:
            self._claimed.discard(identity)

    @contextlib.contextmanager
    def claim_deletion(self, identity: uuid.UUID) -> Iterator[None]:
        """Keep all nodes' threads off a deletion that the caller does itself."""
        if self._locks is not None:
            self._locks.want(_lock(identity))
        try:
            with self.claim(identity):
                yield
        finally:
            if self._locks is not None:
                self._locks.release(_lock(identity))

    # Deleting -------------------------------------------------------------------------------------------------------

    def delete(
        self,
        identity: uuid.UUID,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timeout: float = _TIMEOUT,
    ) -> bool:
        """Move the chunks of a hidden snapshot and end it.  Return False if they must not move yet.

        Raise DeletionStopped, RequestFailed, BlockDeviceError.
        """
        with self._working:
            while True:
                with self._driver.changed:
                    log = self._driver.node.history
                    epoch = log.find(identity)
                    if log.standing_of(epoch) is Standing.DELETED:
                        return True
                    if not log.may_move(identity):
                        return False
                    older = log.older_lun(epoch.number)
                assert epoch.lun is not None
                if older is not None and not self._move(epoch.lun, older, progress, cancelled):
                    reason = f"the deletion of {epoch.name!r} was stopped"
                    raise errors.DeletionStopped(self._owner.name, reason, "delete it again to go on")
                try:
                    self._owner.request(Type.DELETED, identity, timeout, lun=older)
                except Refused:
                    with self._driver.changed:
                        again = log.older_lun(epoch.number) != older or log.standing_of(epoch) is Standing.DELETED
                    if not again:
                        raise

    def _move(
        self, source: uuid.UUID, target: uuid.UUID, progress: Progress | None, cancelled: Callable[[], bool] | None
    ) -> bool:
        """Put all that `source` has and `target` lacks into `target`.  Return False if it was stopped."""
        there, here = self._lun(source).device, self._lun(target)
        pieces = list(_written(there, min(there.size, here.device.size)))
        total, done = sum(length for _, length in pieces), 0
        buffer = memoryview(bytearray(_PIECE))
        for offset, length in pieces:
            if self._stopping or (cancelled is not None and cancelled()):
                return False
            while missing := [e for e in here.device.extents(offset, length) if e.kind is ExtentKind.BLANK]:
                for extent in missing:
                    piece = [buffer[: extent.length]]
                    there.read_checked(extent.offset, piece)
                    here.side.put_many([(extent.offset, piece)])
            done += length
            if progress is not None:
                progress(done, total)
        return True

    def _lun(self, identity: uuid.UUID) -> WriteOnceLun:
        lun = self._driver.lun(identity)
        if lun is None:
            raise block_device.NotReady(f"write-once LUN {identity} is not visible")
        return lun

    # Rolling back ---------------------------------------------------------------------------------------------------

    def roll_back(self, identity: uuid.UUID, progress: Progress | None = None, timeout: float = _TIMEOUT) -> None:
        """Write the content of a snapshot to the volume, and end the rollback.

        Raise RollbackStopped if another node took it over, RollbackRefused, RequestFailed, BlockDeviceError.
        """
        with self._working:
            self._driver.wait_until_armed()
            with self._driver.changed:
                node = self._driver.node
                order, position = node.history.rollback, node.history.rollback_at
                if order is None or order.node != node.name or order.snapshot != identity:
                    return
                try:
                    chain = node.history.chain(identity, node.epoch)
                except history.Refused as refused:
                    raise errors.RollbackRefused(
                        self._owner.name, str(refused), "restore another snapshot"
                    ) from refused
            view = self._owner.view(str(identity))
            size = self._below.chunk_size
            changed = tracking.BitMap()
            content = self._lun(chain[0]).device.size  # the volume may have grown since
            for lun in chain:
                for offset, length in _written(self._lun(lun).device, content):
                    changed.add_range(offset // size, (offset + length - 1) // size + 1)
            buffer = memoryview(bytearray(size))
            for done, chunk in enumerate(changed):
                if self._stopping:
                    raise block_device.DeviceClosed
                piece = [buffer[: min(size, content - chunk * size)]]
                view.readv(chunk * size, piece)
                self._driver.again(functools.partial(self._write, order, chunk * size, piece))
                if progress is not None:
                    progress((done + 1) * size, len(changed) * size)
            self._driver.again(self._below.primary.flush)
            self._owner.request(Type.ROLLED_BACK, identity, timeout, answers=position)

    def _write(self, order: Record, offset: int, piece: list[memoryview]) -> None:
        """Write through copy-on-write while it is barred for all others.

        The node must not leave the admission between the look at the log and the write: another node may take the
        rollback over, end it, and let its initiators write.
        """
        self._driver.admission.enter()
        try:
            if self._driver.node.history.rollback is not order:
                reason = "another node took the rollback over"
                raise errors.RollbackStopped(self._owner.name, reason, "look at `wolun status` there")
            self._below.preserve(offset, len(piece[0]))
            self._below.primary.writev(offset, piece)
        finally:
            self._driver.admission.leave()

    # The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._woken.wait(min(_RETRY, self._takeover))
            self._woken.clear()
            if self._stopping:
                return
            self._tend()
            for job in self._due():
                if self._stopping:
                    return
                try:
                    self._do(job)
                except (block_device.BlockDeviceError, Refused) as error:
                    if not self._stopping:
                        logger.warning("%s: a job failed and is tried again: %s", self._owner.name, error)
                        self._failed[job] = time.monotonic()
                        self._let_others(job)

    def _tend(self) -> None:
        """Give up the LUNs of deleted snapshots, and learn which ones the pool got in their place."""
        with self._driver.changed:
            log = self._driver.node.history
            gone = [epoch.lun for epoch in log.epochs if log.standing_of(epoch) is Standing.DELETED]
            end = log.end
        for lun in gone:
            if lun is not None and lun not in self._forgotten:
                self._forgotten.add(lun)
                self._driver.forget_lun(lun)
        if self._looked_at != end:
            self._looked_at = end
            with contextlib.suppress(block_device.BlockDeviceError, Refused, OSError):  # `find` meets them again
                self._driver.look_at_pool()

    def _do(self, job: jobs.Job) -> None:
        match job:
            case jobs.Move(snapshot):
                self.delete(snapshot)
            case jobs.RollBack() | jobs.TakeOver():
                with self._driver.changed:
                    rollback = self._driver.node.history.rollback
                if rollback is not None and rollback.snapshot is not None:
                    if isinstance(job, jobs.TakeOver):
                        self._owner.request(Type.ROLLBACK, rollback.snapshot, _TIMEOUT)
                    self.roll_back(rollback.snapshot)

    def _due(self) -> list[jobs.Job]:
        """Return the jobs that this node should do now: its own, and after a while those that other nodes left."""
        node, now = self._driver.node, time.monotonic()
        with self._driver.changed:
            due = jobs.due(node)
            deleter = {record.snapshot: record.node for record in node.history.records if record.type is Type.DELETE}
            rollback = node.history.rollback
        self._seen = {job: self._seen.get(job, now) for job in due}
        self._failed = {job: at for job, at in self._failed.items() if job in due and now - at < _RETRY}
        found: list[jobs.Job] = []
        for job in due:
            if job in self._failed:
                continue
            snapshot = rollback.snapshot if rollback is not None else None
            mine = isinstance(job, jobs.RollBack)
            if isinstance(job, jobs.Move):
                snapshot = job.snapshot
                mine = self._holds(snapshot) if self._has_locks else deleter.get(snapshot) == node.name
            if snapshot not in self._claimed and (mine or now - self._seen[job] >= self._takeover):
                found.append(job)
        self._release(self._wanted - {job.snapshot for job in due if isinstance(job, jobs.Move)})
        return found

    # Who should do it -----------------------------------------------------------------------------------------------

    @property
    def _has_locks(self) -> bool:
        return self._locks is not None and self._locks.joined

    def _holds(self, snapshot: uuid.UUID) -> bool:
        """Want the lock of a deletion.  Return whether this node holds it already."""
        assert self._locks is not None
        if snapshot in self._claimed:
            return False  # `claim_deletion` wants and releases it
        if snapshot not in self._wanted:
            self._wanted.add(snapshot)
            self._locks.want(_lock(snapshot))
        return self._locks.may_do(_lock(snapshot))

    def _let_others(self, job: jobs.Job) -> None:
        """Give the lock of a job up that this node cannot do now."""
        if isinstance(job, jobs.Move):
            self._release({job.snapshot} & self._wanted)

    def _release(self, snapshots: set[uuid.UUID]) -> None:
        for snapshot in snapshots:
            self._wanted.discard(snapshot)
            if self._locks is not None and snapshot not in self._claimed:
                self._locks.release(_lock(snapshot))


def _lock(snapshot: uuid.UUID) -> str:
    return f"delete {snapshot}"


def _written(device: BlockDevice, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of all that is written below `size`, in pieces that cross no multiple of `_PIECE`."""
    for extent in device.extents(0, min(size, device.size)):
        if extent.kind is not ExtentKind.BLANK:
            offset, end = extent.offset, extent.offset + extent.length
            while offset < end:
                stop = min(end, (offset // _PIECE + 1) * _PIECE)
                yield offset, stop - offset
                offset = stop
