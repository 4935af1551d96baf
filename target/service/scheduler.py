# SPDX-License-Identifier: Apache-2.0
"""A thread that carries out the schedules of the configuration (`schedule` and `keep`), and resumes stopped rollbacks.

The thread reads the clock again and again and does not sleep until the next hour, because clocks are set, machines
sleep and schedules change.  It waits for no disk: each volume has a keeper with threads of its own (`schedule_keeper`).
Only snapshots that a schedule took are deleted, and those that have expired.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable, Mapping

from lun_backends.volumes import manifest
from target import liveness
from target.audit import Audit
from target.service import problems
from target.service.inventory import Inventory
from target.service.schedule_keeper import ScheduleKeeper
from target.service.snapshots import Snapshots

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0


class Scheduler:
    """The thread, from `start` to `close`."""

    def __init__(
        self,
        inventory: Inventory,
        snapshots: Snapshots,
        audit: Audit,
        clock: Callable[[], datetime.datetime] = manifest.now,
    ) -> None:
        self._inventory = inventory
        self._snapshots = snapshots
        self._audit = audit
        self._clock = clock
        self._keepers: Mapping[str, ScheduleKeeper] = {}  # by volume; replaced as a whole
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
            if keeper is None or keeper.owner is not owner:
                keeper = ScheduleKeeper(owner, self._snapshots, self._audit, self._clock, self._stopping)
            keepers[configured.name] = keeper
            looking.append((keeper, configured))
        self._keepers = keepers
        for keeper, configured in looking:
            keeper.look(configured)

    def wait(self) -> None:
        """Return when nothing that a look began is under way."""
        for keeper in self._keepers.values():
            keeper.wait()

    def unkept(self) -> Mapping[str, str]:
        """Return the reason for each volume whose schedule is not kept."""
        unkept = {}
        for configured in self._inventory.settings.all_volumes:
            keeper = self._keepers.get(configured.name)
            if configured.schedule is None and keeper is None:
                continue
            if configured.name not in self._inventory.open_volumes:
                unkept[configured.name] = "the volume is not served"
            elif trouble := self._bug or (keeper.trouble() if keeper is not None else ""):
                unkept[configured.name] = trouble
        return unkept

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
