# SPDX-License-Identifier: Apache-2.0
"""A thread that takes and deletes snapshots by the schedules of the configuration (`schedule` and `keep`).

The thread reads the clock again and again and does not sleep until the next hour, because clocks are set, machines sleep and
schedules change.  It deletes only snapshots that a schedule took.  An invalid snapshot takes the place of no good one, and
stays visible for as long as a good one would.  A step that fails is tried again, and is an alert until it succeeds.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable, Iterator

from lun_backends.volumes import manifest, volume
from lun_backends.volumes.snapshot import Snapshot
from target.configuration import schedule, settings
from target.service import problems
from target.service.inventory import Inventory
from target.service.snapshots import Snapshots

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0


class Scheduler:
    """The thread, from `start` to `close`.  `failures` has the reason for each volume whose schedule is not kept."""

    def __init__(
        self, inventory: Inventory, snapshots: Snapshots, clock: Callable[[], datetime.datetime] = manifest.now
    ) -> None:
        self._inventory = inventory
        self._snapshots = snapshots
        self._clock = clock
        self._taken: dict[str, datetime.datetime] = {}  # by volume; a snapshot deleted by hand is not taken again
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)
        self.failures: dict[str, str] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread.  The caller must have cancelled the jobs that it may wait for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Take and delete all snapshots that are due now."""
        failures = {}
        for configured in self._inventory.settings.volumes:
            owner = self._inventory.open_volumes.get(configured.name)
            if configured.schedule is None or owner is None:
                continue
            try:
                self._take(configured, owner)
                self._expire(configured, owner)
            except problems.Problem as problem:
                failures[configured.name] = problem.message
                if self.failures.get(configured.name) != problem.message and not self._stopping.is_set():
                    log.error("the schedule of %s is not kept: %s", configured.name, problem)
        self.failures = failures

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception as error:  # a bug; the schedules must not end silently because of it
                log.exception("schedules are not kept")
                self.failures = dict.fromkeys(self._inventory.open_volumes, str(problems.internal(error)))
            self._stopping.wait(LOOK_SECONDS)

    def _take(self, configured: settings.Volume, owner: volume.Volume) -> None:
        now = self._clock()
        moments = [snapshot.taken_at for snapshot in _scheduled(owner)]
        if configured.name in self._taken:
            moments.append(self._taken[configured.name])
        if configured.schedule is not None and schedule.due(now, configured.schedule, moments):
            self._snapshots.create_snapshot(configured.name, schedule.name(now), scheduled=True)
            self._taken[configured.name] = now

    def _expire(self, configured: settings.Volume, owner: volume.Volume) -> None:
        if configured.keep is None:
            return
        snapshots = list(_scheduled(owner))
        kept = schedule.kept(
            (snapshot.taken_at for snapshot in snapshots if not snapshot.is_invalid), configured.keep.counts
        )
        shown = schedule.kept((snapshot.taken_at for snapshot in snapshots), configured.keep.counts)
        for snapshot in snapshots:
            if snapshot.taken_at not in (shown if snapshot.is_invalid else kept) and not self._stopping.is_set():
                job = self._snapshots.delete_snapshot(configured.name, snapshot.name)
                job.wait()
                job.check()


def _scheduled(owner: volume.Volume) -> Iterator[Snapshot]:
    """Return the snapshots that the schedule took, oldest first."""
    return (snapshot for snapshot in owner.snapshots if snapshot.scheduled and not snapshot.deleting)
