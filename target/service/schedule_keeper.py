# SPDX-License-Identifier: Apache-2.0
"""The keeper of one schedule, of a volume or of a group of volumes: it takes the snapshots that are due, and deletes those that are no longer kept.

Both run on threads of their own.  Taking and deleting do not wait for each other, and neither waits for another volume.

| trouble                                     | the keeper's answer                                                       |
| ------------------------------------------- | ------------------------------------------------------------------------- |
| a snapshot is not taken, or not deleted     | it tries again at the next look; until then `trouble` has the reason      |
| taking hangs                                | `trouble` says so, `GRACE` seconds after it was due                       |
| there are `max_snapshots` already           | it first deletes the one that the new snapshot would displace             |
| the clock was set back, or is wrong         | only the order in which snapshots were taken counts, see `schedule`       |
| another node of a shared volume was first   | nothing: the snapshot of a period has one name, and the log takes it once |

The snapshots of a group bear the label `group`: that tells them from those that a volume's own schedule took.  Each volume of the
group keeps and deletes its snapshots by itself.

An invalid snapshot displaces no good one, and stays visible for as long as a good one would.  A snapshot that is held is
never deleted.  One that has expired is deleted, whoever took it.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Sequence

from lun_backends.volumes import interface
from target import messages
from target.audit import Audit
from target.configuration import schedule, settings
from target.service import cloned, problems
from target.service.snapshots import Snapshots

log = logging.getLogger(__name__)

GRACE = 60.0
"""Seconds after which a snapshot that is due and not taken is trouble, even if nothing failed."""

GROUP = "group"
"""The label with the name of the group whose schedule took the snapshot."""

_Configured = settings.Volume | settings.SharedVolume | settings.SnapshotGroup
_TAKE = "take"
_EXPIRE = "expire"


class ScheduleKeeper:
    """The keeper for one open volume, or for a group of them.  `look` is called by one thread, everything else by any.

    `name` is that of the volume or the group, and `subject` what people read.
    """

    def __init__(
        self,
        name: str,
        owners: Sequence[interface.Volume],
        snapshots: Snapshots,
        audit: Audit,
        clock: Callable[[], datetime.datetime],
        stopping: threading.Event,
    ) -> None:
        self.name = name
        self.owners = tuple(owners)
        self.subject = name
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
        name = f"schedule-{what}-{self.name}"
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
            log.exception("the schedule of %s is not kept", self.subject)
            self._failures[what] = str(problems.internal(error))
        else:
            self._failures.pop(what, None)

    def _failed(self, what: str, reason: str) -> None:
        if self._failures.get(what) != reason:
            log.error("the schedule of %s is not kept: %s", self.subject, reason)
        self._failures[what] = reason

    def _record(self, what: str) -> None:
        self._audit.record("schedule", f"the schedule of {self.subject}", what)

    def last(self, configured: _Configured) -> datetime.datetime | None:
        """Return when the schedule took its last snapshot; None if it has none, or a volume of the group has none."""
        newest = [
            max((snapshot.taken_at for snapshot in self._scheduled(owner)[-1:]), default=None) for owner in self.owners
        ]
        found = [moment for moment in newest if moment is not None]
        last = self._last or (min(found) if len(found) == len(self.owners) else None)
        if found and last is not None and isinstance(configured, settings.SharedVolume):
            last = max(last, *found)  # another node may have taken one
        return last

    def _due(self, configured: _Configured) -> bool:
        return configured.schedule is not None and schedule.due(
            self._clock(), configured.schedule, self.last(configured)
        )

    def _take(self, configured: _Configured) -> None:
        """Take a snapshot.  Raise Problem."""
        now = self._clock()
        if isinstance(configured, settings.SharedVolume):
            self._take_for_all(configured, now)
            return
        used = {snapshot.name for owner in self.owners for snapshot in owner.snapshots}
        name = schedule.name(now, used, self._prefix)
        try:
            taken = self._create(name)
        except problems.Problem as problem:
            if problem.code != problems.TOO_MANY or not self._expired(configured, now):
                raise
            self._expire(configured, now)
            taken = self._create(name)
        self._last = datetime.datetime.fromisoformat(taken.taken)
        self._record(f"take {', '.join(f'{owner.name}@{name}' for owner in self.owners)}")

    _prefix = "auto"

    def _create(self, name: str) -> messages.Taken:
        return self._snapshots.create_snapshot(self.name, name, scheduled=True)

    def _scheduled(self, owner: interface.Volume) -> list[interface.Snapshot]:
        """Return the snapshots that the schedule took of a volume, in the order in which it took them."""
        return [
            snapshot
            for snapshot in owner.snapshots
            if snapshot.scheduled and not snapshot.deleting and self._owns(snapshot)
        ]

    def _owns(self, snapshot: interface.Snapshot) -> bool:
        return GROUP not in snapshot.labels

    def _take_for_all(self, configured: settings.SharedVolume, now: datetime.datetime) -> None:
        """Take the snapshot of this period, unless another node was first: the log takes its name once.  Raise Problem."""
        assert configured.schedule is not None
        start = configured.schedule.latest(now)
        assert start is not None
        name = schedule.name(start)
        try:
            self._snapshots.create_snapshot(configured.name, name, scheduled=True)
        except problems.Problem:
            if all(name != snapshot.name for snapshot in self.owners[0].snapshots):
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
            for owner, snapshot in self._expired(configured, coming):
                if self._stopping.is_set():
                    return
                try:
                    job = self._snapshots.delete_snapshot(owner.name, snapshot.name)
                    job.wait()
                    job.check()
                    self._record(f"delete {owner.name}@{snapshot.name}")
                except problems.Problem as problem:
                    if snapshot in owner.snapshots:  # else it was deleted by hand meanwhile
                        failed.append(problem)
        if failed:
            raise failed[0]

    def _expired(
        self, configured: _Configured, coming: datetime.datetime | None = None
    ) -> list[tuple[interface.Volume, interface.Snapshot]]:
        """Return the snapshots that are no longer kept, with their volumes, oldest first.  Those that are held, or have clones, stay."""
        return [
            (owner, snapshot)
            for owner in self.owners
            for displaced in [{snapshot.uuid for snapshot in self._displaced(configured, owner, coming)}]
            for snapshot in owner.snapshots
            if not snapshot.hold
            and not cloned.names(owner, snapshot)
            and not snapshot.deleting
            and (snapshot.uuid in displaced or self._out_of_date(snapshot))
        ]

    def _out_of_date(self, snapshot: interface.Snapshot) -> bool:
        return snapshot.expires is not None and snapshot.expires <= self._clock()

    def _displaced(
        self, configured: _Configured, owner: interface.Volume, coming: datetime.datetime | None = None
    ) -> list[interface.Snapshot]:
        """Return the snapshots of a volume that the schedule took and the rule `keep` no longer covers."""
        if configured.keep is None:
            return []
        counts, snapshots = configured.keep.counts, self._scheduled(owner)
        sound = [snapshot for snapshot in snapshots if not snapshot.is_invalid]
        new = [] if coming is None else [coming]
        zone = schedule.UTC if configured.schedule is None else configured.schedule.zone_name
        kept = schedule.kept([snapshot.taken_at for snapshot in sound] + new, counts, zone)
        shown = schedule.kept([snapshot.taken_at for snapshot in snapshots] + new, counts, zone)
        keep = {snapshot.uuid for position, snapshot in enumerate(sound) if position in kept}
        keep |= {snapshot.uuid for position, snapshot in enumerate(snapshots) if position in shown}
        return [snapshot for snapshot in snapshots if snapshot.uuid not in keep]


class GroupKeeper(ScheduleKeeper):
    """The keeper for a group of open volumes.  Snapshots that expire by their own date are left to the volumes' keepers."""

    def __init__(
        self,
        name: str,
        owners: Sequence[interface.Volume],
        snapshots: Snapshots,
        audit: Audit,
        clock: Callable[[], datetime.datetime],
        stopping: threading.Event,
    ) -> None:
        super().__init__(name, owners, snapshots, audit, clock, stopping)
        self.subject = f"group {name}"
        self._prefix = f"auto-{name}"

    def _create(self, name: str) -> messages.Taken:
        volumes = [owner.name for owner in self.owners]
        return self._snapshots.create_group(name, volumes, {GROUP: self.name}, scheduled=True)[0]

    def _owns(self, snapshot: interface.Snapshot) -> bool:
        return snapshot.labels.get(GROUP) == self.name

    def _out_of_date(self, snapshot: interface.Snapshot) -> bool:
        return False
