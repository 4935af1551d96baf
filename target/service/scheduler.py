# SPDX-License-Identifier: Apache-2.0
"""Takes and deletes snapshots by the schedules of the configuration (`schedule` and `keep`), on a thread of its own.

It looks at the clock again and again rather than sleeping until the next hour: clocks are set, machines sleep, schedules
change.  Only snapshots that a schedule took are ever deleted.  An invalid one takes no good one's place, and
stays to be seen as long as it would if it were good.  What could not be done is tried again, and is an alert until it is done.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lun_backends.volumes import manifest, volume
from lun_backends.volumes.snapshot import Snapshot
from target.configuration import schedule, settings
from target.service import problems

if TYPE_CHECKING:
    from target.service import service

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0


class Scheduler:
    """From `start` to `close`; `failures` says of which volumes the schedule is not kept, and why."""

    def __init__(self, served: service.Service, clock: Callable[[], datetime.datetime] = manifest.now) -> None:
        self._served = served
        self._clock = clock
        self._taken: dict[str, datetime.datetime] = {}  # by volume: one that is deleted by hand is not taken again
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)
        self.failures: dict[str, str] = {}

    def start(self) -> None:
        """Look at the clock from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what it waits for must have been cancelled."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Do all that is due now."""
        failures = {}
        for each in self._served.settings.volumes:
            owner = self._served.open_volumes.get(each.name)
            if each.schedule is None or owner is None:
                continue
            try:
                self._take(each, owner)
                self._expire(each, owner)
            except problems.Problem as problem:
                failures[each.name] = problem.message
                if self.failures.get(each.name) != problem.message and not self._stopping.is_set():
                    log.error("the schedule of %s is not kept: %s", each.name, problem)
        self.failures = failures

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception as error:  # a bug; schedules must not end silently because of it
                log.exception("schedules are not kept")
                self.failures = dict.fromkeys(self._served.open_volumes, str(problems.internal(error)))
            self._stopping.wait(LOOK_SECONDS)

    def _take(self, each: settings.Volume, owner: volume.Volume) -> None:
        now = self._clock()
        moments = [snapshot.taken_at for snapshot in _scheduled(owner)]
        if each.name in self._taken:
            moments.append(self._taken[each.name])
        if each.schedule is not None and schedule.due(now, each.schedule, moments):
            self._served.create_snapshot(each.name, schedule.name(now), scheduled=True)
            self._taken[each.name] = now

    def _expire(self, each: settings.Volume, owner: volume.Volume) -> None:
        if each.keep is None:
            return
        snapshots = list(_scheduled(owner))
        kept = schedule.kept((snapshot.taken_at for snapshot in snapshots if not snapshot.is_invalid), each.keep.counts)
        shown = schedule.kept((snapshot.taken_at for snapshot in snapshots), each.keep.counts)
        for snapshot in snapshots:
            if snapshot.taken_at not in (shown if snapshot.is_invalid else kept) and not self._stopping.is_set():
                job = self._served.delete_snapshot(each.name, snapshot.name)
                job.wait()
                job.check()


def _scheduled(owner: volume.Volume) -> Iterator[Snapshot]:
    """The schedule's snapshots, oldest first."""
    return (snapshot for snapshot in owner.snapshots if snapshot.scheduled and not snapshot.deleting)
