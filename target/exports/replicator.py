# SPDX-License-Identifier: Apache-2.0
"""The replications of the configuration (`replicate`): snapshots go to other hosts by themselves.

When a replication is due, it takes a snapshot, holds it, and sends it on the newest snapshot that the receiver has.  The
snapshot before stays, held, until this one has arrived.

| trouble                                     | what happens                                                              |
| ------------------------------------------- | ------------------------------------------------------------------------- |
| the stream is interrupted                   | it goes on where the receiver says, `RETRY_SECONDS` later                 |
| this daemon is killed                       | the same; the file (`replication_file`) knows what was on its way         |
| the receiver had it and could not say so    | its next answer names the snapshot, so nothing is sent again              |
| the receiver lost its newest snapshots      | the newest common one is the base; without one, nothing is sent           |
| a job is cancelled by hand                  | it goes on when the next snapshot is due                                  |

Each replication has a thread while it works; none waits for another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping

from lun_backends.volumes import interface, manifest
from lun_backends.volumes import volume as own
from target import liveness, messages
from target.configuration import schedule, settings
from target.exports import receiver_process, sending
from target.service import jobs, moments, problems, replica_file, replication_file
from target.service.service import Service

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
RETRY_SECONDS = 60.0
"""Seconds between the end of a try that failed and the next one."""
_LATE = 2
"""The periods after which a replication lags, unless the configuration says how many seconds."""


class Replicator:
    """The thread that looks whether something is due, from `start` to `close`."""

    def __init__(self, service: Service, clock: Callable[[], datetime.datetime] = manifest.now) -> None:
        self._service = service
        self._clock = clock
        self._links: Mapping[tuple[str, str], _Link] = {}  # replaced as a whole
        self._stopping = threading.Event()
        self.pulse = liveness.Pulse("replication", LOOK_SECONDS)
        self._thread = threading.Thread(target=self._run, name="replication", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread.  The caller must have cancelled the jobs."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self.wait()

    def wait(self) -> None:
        """Return when no replication is under way."""
        for link in self._links.values():
            link.wait()

    def look(self) -> None:
        """Begin what is due now.  Return at once."""
        opened, links = self._service.inventory.open_volumes, dict[tuple[str, str], _Link]()
        for configured in self._service.inventory.settings.volumes:
            owner = opened.get(configured.name)
            if not isinstance(owner, own.Volume):
                continue
            for wanted in configured.replicate:
                key = (configured.name, wanted.name)
                link = self._links.get(key)
                if link is None or link.owner is not owner:
                    link = _Link(self._service, owner, self._clock, self._stopping)
                link.wanted = wanted
                links[key] = link
        self._links = links
        for link in links.values():
            link.look()

    def shown(self) -> list[messages.Replication]:
        """Return the state of all replications."""
        return [link.shown() for link in self._links.values()]

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.pulse.beat()
            try:
                self.look()
            except Exception:  # a bug; replications must not end silently because of it
                log.exception("replications are not looked at")
            self._stopping.wait(LOOK_SECONDS)


class _Link:
    """One replication of an open volume."""

    wanted: settings.Replication

    def __init__(
        self, service: Service, owner: own.Volume, clock: Callable[[], datetime.datetime], stopping: threading.Event
    ) -> None:
        self.owner = owner
        self._service = service
        self._clock = clock
        self._stopping = stopping
        self._thread: threading.Thread | None = None
        self._trouble = ""
        self._not_before = 0.0  # by the monotonic clock
        self._not_until: datetime.datetime | None = None  # after a cancellation by hand
        self._job: jobs.Job | None = None

    @property
    def _progress(self) -> replication_file.Progress:
        return replication_file.load(self.owner.directory).get(self.wanted.name, replication_file.Progress())

    def _store(self, progress: replication_file.Progress) -> None:
        with problems.translated(f"the replication of {self.owner.name} to {self.wanted.name} was not noted"):
            replication_file.store(self.owner.directory, self.wanted.name, progress)

    def wait(self) -> None:
        """Return when it does nothing."""
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Begin what is due, on a thread of its own."""
        if (self._thread is not None and self._thread.is_alive()) or time.monotonic() < self._not_before:
            return
        now = self._clock()
        if self._not_until is not None and now < self._not_until:
            return
        try:
            progress = self._progress
        except problems.Problem as problem:
            self._failed(problem.message)
            return
        if not progress.pending and not schedule.due(now, self.wanted.schedule, progress.due):
            return
        self._not_until = None
        name = f"replicate-{self.owner.name}-{self.wanted.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._once()
        except jobs.Cancelled:
            if not self._stopping.is_set():
                self._not_until = self.wanted.schedule.following(self._clock())
                self._failed("it was cancelled, and goes on when the next one is due")
        except problems.Problem as problem:
            if not self._stopping.is_set() and problem.code != problems.STOPPING:
                self._failed(f"{problem.message}")
        except Exception as error:  # a bug; the replication must not end silently because of it
            log.exception("the replication of %s to %s failed", self.owner.name, self.wanted.name)
            self._failed(str(problems.internal(error)))
        else:
            self._trouble = ""
        finally:
            self._job = None

    def _failed(self, reason: str) -> None:
        if reason != self._trouble:
            log.error("the replication of %s to %s failed: %s", self.owner.name, self.wanted.name, reason)
        self._trouble = reason
        self._not_before = time.monotonic() + RETRY_SECONDS

    def _once(self) -> None:
        """Take a snapshot if one is due, and send the one that is on its way.  Raise Problem, jobs.Cancelled."""
        progress = self._progress
        snapshot = self._found(progress.pending)
        if snapshot is None:
            progress = self._take(progress)
            snapshot = self._found(progress.pending)
            assert snapshot is not None
        elif snapshot.uuid not in progress.taken:  # a crash came before that was noted
            progress = dataclasses.replace(progress, taken=(*progress.taken, snapshot.uuid))
            self._store(progress)
        pending = snapshot
        subject = f"{self.owner.name}@{pending.name}"
        self._job = job = self._service.jobs.start("replicate", subject, lambda job: self._send(pending, job))
        job.wait()
        job.check()
        if job.message().state == "cancelled":
            raise jobs.Cancelled
        arrived = replication_file.Arrived(pending.uuid, pending.name, pending.taken_at, self._clock())
        progress = dataclasses.replace(progress, pending="", arrived=arrived)
        self._store(progress)
        self._record(f"send {subject}")
        self._delete_old(progress)

    def _found(self, name: str) -> interface.Snapshot | None:
        there = (snapshot for snapshot in self.owner.snapshots if snapshot.name == name and not snapshot.deleting)
        return next(there, None) if name else None

    def _take(self, progress: replication_file.Progress) -> replication_file.Progress:
        now = self._clock()
        plain = schedule.name(now).removeprefix("auto-")
        names = {snapshot.name for snapshot in self.owner.snapshots}
        tries = (f"replica-{self.wanted.name}-{plain}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        name = next(one for one in tries if one not in names)
        self._store(dataclasses.replace(progress, pending=name, due=now))
        self._service.snapshots.create_snapshot(
            self.owner.name, name, hold=f"the replication to {self.wanted.name} needs it", mapped=False
        )
        self._record(f"take {self.owner.name}@{name}")
        taken = self._found(name)
        assert taken is not None
        progress = dataclasses.replace(progress, pending=name, due=now, taken=(*progress.taken, taken.uuid))
        self._store(progress)
        return progress

    def _send(self, snapshot: interface.Snapshot, job: jobs.Job) -> None:
        """Send a snapshot, or its rest, unless the receiver has it.  Raise Problem, jobs.Cancelled."""
        what = f"{self.owner.name}@{snapshot.name} was not sent to {self.wanted.name}"
        wanted = self.wanted
        try:
            with receiver_process.ReceiverProcess(wanted.to, job.cancelled, compress=wanted.compress) as receiver:
                there = receiver.ask()
                planned = self._planned(snapshot, there, what)
                if planned is None:
                    return
                sending.send(planned, receiver.writer, job)
                receiver.finish()
        except receiver_process.Failed as failed:
            raise receiver_process.failed(what, failed) from failed

    def _planned(self, snapshot: interface.Snapshot, there: messages.Replica, what: str) -> sending.Sending | None:
        """Return what the receiver lacks; None if it has the snapshot.  Raise Problem."""
        owner, limit = self.owner, self.wanted.limit
        replica = replica_file.load(owner.directory)
        here = replica_file.identities(owner, replica)
        wanted = replica_file.identity(snapshot, replica)
        theirs = {known.identity for known in there.snapshots}
        if str(wanted) in theirs:
            return None
        if there.resume:
            with contextlib.suppress(problems.Problem):  # what it stands on is gone: it begins anew
                request = messages.Resume(there.resume, self.wanted.compress, limit)
                rest = sending.resumed(self._service, request)
                if rest.snapshot is snapshot:
                    return rest
        older = list(itertools.takewhile(lambda one: one is not snapshot, here.values()))
        common = [known for identity, known in here.items() if str(identity) in theirs and known in older]
        if not common and theirs:
            names = ", ".join(known.name for known in there.snapshots[-5:])
            remedy = f"send one with `wolun send {owner.name}@... | ... wolun volume receive`, or choose another volume there"
            raise problems.refused(what, f"no snapshot of {owner.name} is among those of the receiver: {names}", remedy)
        base = common[-1].name if common else None
        return sending.planned(
            self._service, owner.name, snapshot.name, messages.Send(base, self.wanted.compress, limit)
        )

    def _delete_old(self, progress: replication_file.Progress) -> None:
        """Release and delete the snapshots of this replication that a newer one has replaced at the receiver."""
        assert progress.arrived is not None
        kept: list[uuid.UUID] = []
        for identity in progress.taken:
            snapshot = next((one for one in self.owner.snapshots if one.uuid == identity), None)
            if identity == progress.arrived.uuid:
                kept.append(identity)
                continue
            if snapshot is None:
                continue
            try:
                with problems.translated(f"{self.owner.name}@{snapshot.name} was not released"):
                    self.owner.hold_snapshot(snapshot.name, "")
                deletion = self._service.snapshots.delete_snapshot(self.owner.name, snapshot.name)
                deletion.wait()
                deletion.check()
                self._record(f"delete {self.owner.name}@{snapshot.name}")
            except problems.Problem as problem:
                kept.append(identity)
                log.warning("%s", problem)
        self._store(dataclasses.replace(progress, taken=tuple(kept)))

    def _record(self, what: str) -> None:
        self._service.audit.record("replication", f"the replication of {self.owner.name} to {self.wanted.name}", what)

    def shown(self) -> messages.Replication:
        """Return the state for people and metrics."""
        now = self._clock()
        try:
            progress = self._progress
        except problems.Problem as problem:
            progress, self._trouble = replication_file.Progress(), problem.message
        pending = self._found(progress.pending)
        since = progress.arrived.taken_at if progress.arrived else pending.taken_at if pending else None
        lag = 0.0 if since is None else max(0.0, (now - since).total_seconds())
        late = self.wanted.alert_after
        if late is None:
            longest = self.wanted.schedule.longest(now)
            late = None if longest is None else _LATE * longest.total_seconds()
        job = self._job
        return messages.Replication(
            volume=self.owner.name,
            name=self.wanted.name,
            to=" ".join(self.wanted.to),
            schedule=str(self.wanted.schedule),
            state="sending" if job is not None else "failing" if self._trouble else "waiting",
            trouble=self._trouble,
            lag_seconds=round(lag, 3),
            late=late is not None and lag > late,
            arrived="" if progress.arrived is None else progress.arrived.name,
            arrived_taken=None if progress.arrived is None else moments.utc(progress.arrived.taken_at),
            pending=progress.pending,
            job=None if job is None else job.number,
        )
