# SPDX-License-Identifier: Apache-2.0
"""A thread that carries out the schedules of the configuration (`schedule`, `groups`, `verify`), and resumes stopped rollbacks.

The thread reads the clock again and again and does not sleep until the next hour, because clocks are set, machines
sleep and schedules change.  It waits for no disk: each volume has a keeper with threads of its own (`schedule_keeper`).
Only snapshots that a schedule took are deleted, and those that have expired.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable, Iterator, Mapping

from lun_backends.volumes import manifest
from target import liveness, messages
from target.audit import Audit
from target.configuration import occurrences, schedule
from target.service import moments, problems
from target.service.inventory import Inventory
from target.service.jobs import Jobs
from target.service.schedule_keeper import GroupKeeper, ScheduleKeeper
from target.service.snapshots import Snapshots
from target.service.verifying import Checks

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0


class Scheduler:
    """The thread, from `start` to `close`."""

    def __init__(
        self,
        inventory: Inventory,
        snapshots: Snapshots,
        jobs: Jobs,
        audit: Audit,
        clock: Callable[[], datetime.datetime] = manifest.now,
    ) -> None:
        self._inventory = inventory
        self._snapshots = snapshots
        self._audit = audit
        self._clock = clock
        self._keepers: Mapping[str, ScheduleKeeper] = {}  # by volume; replaced as a whole
        self._groups: Mapping[str, GroupKeeper] = {}  # by group; replaced as a whole
        self.checks = Checks(inventory.state_dir, jobs, clock)
        self._bug = ""
        self.pulse = liveness.Pulse("schedule", LOOK_SECONDS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and the keepers.  The caller must have cancelled the jobs that they may wait for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self.wait()

    def look(self) -> None:
        """Begin to take and to delete all snapshots that are due now.  Return at once."""
        opened, looking = self._inventory.open_volumes, []
        keepers = {name: keeper for name, keeper in self._keepers.items() if keeper.busy}
        for configured in self._inventory.settings.all_volumes:
            owner = opened.get(configured.name)
            if owner is None or not (configured.schedule or any(snapshot.expires for snapshot in owner.snapshots)):
                continue
            keeper = self._keepers.get(configured.name)
            if keeper is None or keeper.owners != (owner,):
                keeper = ScheduleKeeper(owner.name, [owner], self._snapshots, self._audit, self._clock, self._stopping)
            keepers[configured.name] = keeper
            looking.append((keeper, configured))
        self._keepers = keepers
        for keeper, configured in looking:
            keeper.look(configured)
        self._look_at_groups()
        for volume in self._inventory.settings.volumes:
            if volume.verify is not None and volume.name in opened:
                self.checks.look(volume, opened[volume.name])

    def _look_at_groups(self) -> None:
        opened = self._inventory.open_volumes
        groups = {name: keeper for name, keeper in self._groups.items() if keeper.busy}
        for group in self._inventory.settings.groups:
            owners = tuple(opened[name] for name in group.volumes if name in opened)
            if len(owners) < len(group.volumes):
                continue
            keeper = self._groups.get(group.name)
            if keeper is None or keeper.owners != owners:
                keeper = GroupKeeper(group.name, owners, self._snapshots, self._audit, self._clock, self._stopping)
            groups[group.name] = keeper
            keeper.look(group)
        self._groups = groups

    def wait(self) -> None:
        """Return when nothing that a look began is under way."""
        for keeper in (*self._keepers.values(), *self._groups.values()):
            keeper.wait()
        self.checks.wait()

    def unkept(self) -> Mapping[str, str]:
        """Return the reason for each volume, and each `group NAME`, whose schedule is not kept."""
        unkept = {}
        for configured in self._inventory.settings.all_volumes:
            keeper = self._keepers.get(configured.name)
            if configured.schedule is None and keeper is None:
                continue
            if configured.name not in self._inventory.open_volumes:
                unkept[configured.name] = "the volume is not served"
            elif trouble := self._bug or (keeper.trouble() if keeper is not None else ""):
                unkept[configured.name] = trouble
        for group in self._inventory.settings.groups:
            left = [name for name in group.volumes if name not in self._inventory.open_volumes]
            member = self._groups.get(group.name)
            if left:
                unkept[f"group {group.name}"] = f"the volume {left[0]} is not served"
            elif trouble := self._bug or (member.trouble() if member is not None else ""):
                unkept[f"group {group.name}"] = trouble
        return unkept

    def schedules(self) -> Iterator[messages.Schedule]:
        """Yield all schedules, with when each is due next."""
        unkept = self.unkept()
        for configured in self._inventory.settings.all_volumes:
            if configured.schedule is not None:
                keeper = self._keepers.get(configured.name)
                last = None if keeper is None else keeper.last(configured)
                why = unkept.get(configured.name, "")
                yield self._schedule("snapshots", configured.name, configured.schedule, last, why)
        for group in self._inventory.settings.groups:
            member = self._groups.get(group.name)
            last = None if member is None else member.last(group)
            yield self._schedule("group", group.name, group.schedule, last, unkept.get(f"group {group.name}", ""))
        for volume in self._inventory.settings.volumes:
            if volume.verify is not None:
                why = self.checks.trouble(volume.name)
                last = self.checks.last(volume.name)
                yield self._schedule("verify", volume.name, volume.verify.schedule, last, why)

    def _schedule(
        self, kind: str, subject: str, timing: schedule.Timing, last: datetime.datetime | None, trouble: str
    ) -> messages.Schedule:
        now = self._clock()
        following = schedule.soonest(now, timing, last)
        longest = timing.longest(now)
        return messages.Schedule(
            kind=kind,
            subject=subject,
            when=str(timing),
            zone=timing.zone_name,
            last=None if last is None else moments.utc(last),
            next=None if following is None else moments.utc(following),
            next_there=None
            if following is None
            else following.astimezone(occurrences.zone(timing.zone_name)).isoformat(timespec="seconds"),
            period_seconds=None if longest is None else longest.total_seconds(),
            trouble=trouble,
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.pulse.beat()
            try:
                self.look()
                self._inventory.resume_rollbacks()
                self._bug = ""
            except Exception as error:  # a bug; the schedules must not end silently because of it
                log.exception("schedules are not kept")
                self._bug = str(problems.internal(error))
            self._stopping.wait(LOOK_SECONDS)
