# SPDX-License-Identifier: Apache-2.0
"""Parts of the tests of schedules: a clock to set, a scheduler that looks on demand, the names of snapshots."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

from target.service.scheduler import Scheduler
from target.service.service import Service

HOUR = datetime.timedelta(hours=1)
START = datetime.datetime(2026, 11, 22, 23, 20, tzinfo=datetime.UTC)  # a Sunday


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime.datetime:
        return self.now


def scheduler_of(service: Service, clock: Clock) -> Scheduler:
    """Return a scheduler of the service's volumes that has not started."""
    return Scheduler(service.inventory, service.snapshots, service.jobs, service.audit, clock)


def look(scheduler: Scheduler) -> None:
    """Let the scheduler look, and wait until all of its work has ended.

    A deleted snapshot makes room for one that the second look takes, and that one displaces one that the third look deletes.
    """
    for _ in range(3):
        scheduler.look()
        scheduler.wait()


def names(service: Service, volume: str = "vol0") -> list[str]:
    """Return the names of a volume's snapshots, oldest first."""
    return [snapshot.name for snapshot in service.snapshots.list_snapshots(volume)]


def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
