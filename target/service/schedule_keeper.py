# SPDX-License-Identifier: Apache-2.0
"""The keeper of one volume's schedule: it takes the snapshots that are due, and deletes those that are no longer kept.

Both run on threads of their own.  Taking and deleting do not wait for each other, and neither waits for another volume.

| trouble                                     | the keeper's answer                                                       |
| ------------------------------------------- | ------------------------------------------------------------------------- |
| a snapshot is not taken, or not deleted     | it tries again at the next look; until then `trouble` has the reason      |
| taking hangs                                | `trouble` says so, `GRACE` seconds after it was due                       |
| there are `max_snapshots` already           | it first deletes the one that the new snapshot would displace             |
| the clock was set back, or is wrong         | only the order in which snapshots were taken counts, see `schedule`       |
| another node of a shared volume was first   | nothing: the snapshot of a period has one name, and the log takes it once |

An invalid snapshot displaces no good one, and stays visible for as long as a good one would.  A snapshot that is held is
never deleted.  One that has expired is deleted, whoever took it.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator

from lun_backends.volumes import interface
from target.audit import Audit
from target.configuration import schedule, settings
from target.service import problems
from target.service.snapshots import Snapshots

log = logging.getLogger(__name__)

GRACE = 60.0
"""Seconds after which a snapshot that is due and not taken is trouble, even if nothing failed."""

_Configured = settings.Volume | settings.SharedVolume
_TAKE = "take"
_EXPIRE = "expire"


class ScheduleKeeper:
    """The keeper for one open volume.  `look` is called by one thread, everything else by any."""

    def __init__(
        self,
        owner: interface.Volume,
        snapshots: Snapshots,
        audit: Audit,
        clock: Callable[[], datetime.datetime],
        stopping: threading.Event,
    ) -> None:
        self.owner = owner
        self._snapshots = snapshots
        self._audit = audit
        self._clock = clock
        self._stopping = stopping
        self._last: datetime.datetime | None = None  # a snapshot deleted by hand is not taken again
        self._due_since: float | None = None  # by the monotonic clock
        self._deleting = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._failures: dict[str, str] = {}

    @property
    def busy(self) -> bool:
        """Whether it is taking or deleting a snapshot."""
        return any(thread.is_alive() for thread in self._threads.values())

    def trouble(self) -> str:
        """Return why the schedule is not kept; an empty text if it is."""
        reasons = list(self._failures.values())
        since = self._due_since
        if _TAKE not in self._failures and since is not None and time.monotonic() - since > GRACE:
            minutes = int(time.monotonic() - since) // 60
            reasons.append(f"a snapshot has been due for {minutes} min, and is not taken yet")
        return "; ".join(reasons)

    def look(self, configured: _Configured) -> None:
        """Begin to take and to delete what is due now.  Return at once."""
        if self._due(configured):
            self._due_since = time.monotonic() if self._due_since is None else self._due_since
            self._begin(_TAKE, configured, self._take)
        else:
            self._due_since = None
            self._failures.pop(_TAKE, None)
        if self._expired(configured):
            self._begin(_EXPIRE, configured, self._expire)
        else:
            self._failures.pop(_EXPIRE, None)

    def wait(self) -> None:
        """Return when it neither takes nor deletes a snapshot."""
        for thread in list(self._threads.values()):
            thread.join()

    def _begin(self, what: str, configured: _Configured, work: Callable[[_Configured], None]) -> None:
        thread = self._threads.get(what)
        if thread is not None and thread.is_alive():
            return
        name = f"schedule-{what}-{self.owner.name}"
        self._threads[what] = thread = threading.Thread(
            target=self._run, args=(what, configured, work), name=name, daemon=True
        )
        thread.start()

    def _run(self, what: str, configured: _Configured, work: Callable[[_Configured], None]) -> None:
        try:
            work(configured)
        except problems.Problem as problem:
            if not self._stopping.is_set() and problem.code != problems.STOPPING:
                self._failed(what, problem.message)
        except Exception as error:  # a bug; the schedule must not end silently because of it
            log.exception("the schedule of %s is not kept", self.owner.name)
            self._failures[what] = str(problems.internal(error))
        else:
            self._failures.pop(what, None)

    def _failed(self, what: str, reason: str) -> None:
        if self._failures.get(what) != reason:
            log.error("the schedule of %s is not kept: %s", self.owner.name, reason)
        self._failures[what] = reason

    def _record(self, what: str) -> None:
        self._audit.record("schedule", f"the schedule of {self.owner.name}", what)

    def _due(self, configured: _Configured) -> bool:
        if configured.schedule is None:
            return False
        moments = [snapshot.taken_at for snapshot in self.owner.snapshots if snapshot.scheduled]
        last = self._last or (moments[-1] if moments else None)
        if moments and last is not None and isinstance(configured, settings.SharedVolume):
            last = max(last, moments[-1])  # another node may have taken one
        return schedule.due(self._clock(), configured.schedule, last)

    def _take(self, configured: _Configured) -> None:
        """Take a snapshot.  Raise Problem."""
        now = self._clock()
        if isinstance(configured, settings.SharedVolume):
            self._take_for_all(configured, now)
            return
        name = schedule.name(now, {snapshot.name for snapshot in self.owner.snapshots})
        try:
            taken = self._snapshots.create_snapshot(configured.name, name, scheduled=True)
        except problems.Problem as problem:
            if problem.code != problems.TOO_MANY or not self._expired(configured, now):
                raise
            self._expire(configured, now)
            taken = self._snapshots.create_snapshot(configured.name, name, scheduled=True)
        self._last = datetime.datetime.fromisoformat(taken.taken)
        self._record(f"take {configured.name}@{name}")

    def _take_for_all(self, configured: settings.SharedVolume, now: datetime.datetime) -> None:
        """Take the snapshot of this period, unless another node was first: the log takes its name once.  Raise Problem."""
        assert configured.schedule is not None
        start = configured.schedule.latest(now)
        assert start is not None
        name = schedule.name(start)
        try:
            self._snapshots.create_snapshot(configured.name, name, scheduled=True)
        except problems.Problem:
            if all(name != snapshot.name for snapshot in self.owner.snapshots):
                raise
        else:
            self._record(f"take {configured.name}@{name}")
        self._last = now

    def _expire(self, configured: _Configured, coming: datetime.datetime | None = None) -> None:
        """Delete the snapshots that are no longer kept, oldest first.  Continue if one cannot be deleted.

        With `coming`, also delete the snapshots that a snapshot of that moment displaces.  Raise the first Problem.
        """
        failed: list[problems.Problem] = []
        with self._deleting:
            for snapshot in self._expired(configured, coming):
                if self._stopping.is_set():
                    return
                try:
                    job = self._snapshots.delete_snapshot(configured.name, snapshot.name)
                    job.wait()
                    job.check()
                    self._record(f"delete {configured.name}@{snapshot.name}")
                except problems.Problem as problem:
                    if snapshot in self.owner.snapshots:  # else it was deleted by hand meanwhile
                        failed.append(problem)
        if failed:
            raise failed[0]

    def _expired(self, configured: _Configured, coming: datetime.datetime | None = None) -> list[interface.Snapshot]:
        """Return the snapshots that are no longer kept, oldest first.  Those that are held stay."""
        displaced = {snapshot.uuid for snapshot in self._displaced(configured, coming)}
        now = self._clock()
        return [
            snapshot
            for snapshot in self.owner.snapshots
            if not snapshot.hold
            and not snapshot.deleting
            and (snapshot.uuid in displaced or (snapshot.expires is not None and snapshot.expires <= now))
        ]

    def _displaced(self, configured: _Configured, coming: datetime.datetime | None = None) -> list[interface.Snapshot]:
        """Return the snapshots that the schedule took and the rule `keep` no longer covers."""
        if configured.keep is None:
            return []
        counts, snapshots = configured.keep.counts, list(_scheduled(self.owner))
        sound = [snapshot for snapshot in snapshots if not snapshot.is_invalid]
        new = [] if coming is None else [coming]
        zone = schedule.UTC if configured.schedule is None else configured.schedule.zone_name
        kept = schedule.kept([snapshot.taken_at for snapshot in sound] + new, counts, zone)
        shown = schedule.kept([snapshot.taken_at for snapshot in snapshots] + new, counts, zone)
        keep = {snapshot.uuid for position, snapshot in enumerate(sound) if position in kept}
        keep |= {snapshot.uuid for position, snapshot in enumerate(snapshots) if position in shown}
        return [snapshot for snapshot in snapshots if snapshot.uuid not in keep]


def _scheduled(owner: interface.Volume) -> Iterator[interface.Snapshot]:
    """Yield the snapshots that the schedule took, in the order in which it took them."""
    return (snapshot for snapshot in owner.snapshots if snapshot.scheduled and not snapshot.deleting)
