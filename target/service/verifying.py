# SPDX-License-Identifier: Apache-2.0
"""Scheduled checks: by the clock, a job compares all old data of a volume's snapshots with its checksums.

Each snapshot's own pre-images are read once, so all of them together are all old data of the volume.  `speed` limits the
bytes per second.  The result of the newest check is kept in `checks.json` in the state directory, so a restart forgets
neither damage nor when the next check is due.  A check that did not end, because the daemon stopped or the job was cancelled,
begins again: after a restart at once, after a cancellation when the next one is due.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyroaring

from lun_backends import block_device
from lun_backends.files import os_error, small_file
from lun_backends.stores import contract
from lun_backends.volumes import interface
from target import units
from target.configuration import schedule, settings
from target.service import problems
from target.service.jobs import Cancelled, Job, Jobs

log = logging.getLogger(__name__)

FILE = "checks.json"
_NAP = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check: when it began, by the wall clock, and what it found.

    `damaged` has the damaged bytes by the snapshot that keeps them.
    """

    began: datetime.datetime
    read_bytes: int
    damaged: Mapping[str, int]


class Throttle:
    """At most `speed` bytes per second, from the moment on at which it was made; None: no limit."""

    def __init__(
        self,
        speed: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._speed = speed
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._done = 0

    def spend(self, length: int, cancelled: Callable[[], bool]) -> None:
        """Wait until `length` bytes more are within the limit, or `cancelled` is true."""
        self._done += length
        if self._speed is None:
            return
        until = self._began + self._done / self._speed
        while (left := until - self._clock()) > 0 and not cancelled():
            self._sleep(min(left, _NAP))


class Checks:
    """The scheduled checks of all volumes.  `look` is called by one thread, everything else by any."""

    def __init__(self, state_dir: Path, jobs: Jobs, clock: Callable[[], datetime.datetime]) -> None:
        self._path = state_dir / FILE
        self._jobs = jobs
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, Job] = {}
        self._begun: dict[str, datetime.datetime] = {}  # a check that was cancelled is not begun again
        self._failures: dict[str, str] = {}
        self._found = self._load()

    def look(self, configured: settings.Volume, owner: interface.Volume) -> None:
        """Begin the check of a volume if it is due.  Return at once."""
        name, wanted = configured.name, configured.verify
        job = self._running.get(name)
        if wanted is None or (job is not None and not job.ended):
            return
        if schedule.due(self._clock(), wanted.schedule, self.last(name)):
            began = self._clock()
            try:
                self._running[name] = self._jobs.start(
                    "verify", name, lambda job: self._verify(job, owner, wanted, began)
                )
            except problems.Problem:  # the daemon stops
                return
            self._begun[name] = began

    def last(self, name: str) -> datetime.datetime | None:
        """Return when the newest check of a volume began; None if there was none."""
        found = self._found.get(name)
        return self._begun.get(name) or (None if found is None else found.began)

    def found(self, name: str) -> Check | None:
        """Return the result of the newest check of a volume that ended."""
        return self._found.get(name)

    def trouble(self, name: str) -> str:
        """Return what is wrong with a volume, or why it is not checked; an empty text if nothing is."""
        if failure := self._failures.get(name):
            return f"the scheduled check of {name} does not end: {failure}"
        found = self._found.get(name)
        if found is None or not found.damaged:
            return ""
        where = ", ".join(f"{name}@{snapshot}" for snapshot in found.damaged)
        size = units.human_size(sum(found.damaged.values()))
        return f"the scheduled check of {name} found {size} of damaged data in {where}"

    def wait(self) -> None:
        """Return when no check runs."""
        for job in list(self._running.values()):
            job.wait()

    def _verify(self, job: Job, owner: interface.Volume, wanted: settings.Verify, began: datetime.datetime) -> None:
        name = owner.name
        try:
            found = _read(job, owner, Throttle(wanted.speed), began)
            self._keep(name, found)
        except Cancelled:
            raise
        except (problems.Problem, OSError, block_device.BlockDeviceError) as error:
            self._failures[name] = os_error.reason(error) if isinstance(error, OSError) else str(error)
            log.error("the scheduled check of %s failed: %s", name, self._failures[name])
            raise problems.refused(f"{name} was not checked", self._failures[name], "check the disk") from error
        self._failures.pop(name, None)
        damaged = sum(found.damaged.values())
        level = logging.ERROR if damaged else logging.INFO
        log.log(level, "checked the snapshots of %s: %d bytes read, %d damaged", name, found.read_bytes, damaged)

    def _keep(self, name: str, check: Check) -> None:
        """Keep a result, durably.  Raises OSError."""
        with self._lock:
            kept = {**self._found, name: check}
            content = {
                volume: {**dataclasses.asdict(found), "began": found.began.isoformat()}
                for volume, found in kept.items()
            }
            small_file.replace(self._path, json.dumps(content, indent=2).encode())
            self._found = kept

    def _load(self) -> Mapping[str, Check]:
        """Read the file.  Without a readable one each check is due."""
        try:
            content = json.loads(self._path.read_bytes())
            return {
                name: Check(
                    datetime.datetime.fromisoformat(found["began"]), int(found["read_bytes"]), dict(found["damaged"])
                )
                for name, found in content.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s cannot be read, so each scheduled check is due: %s", self._path, error)
            return {}


def _read(job: Job, owner: interface.Volume, throttle: Throttle, began: datetime.datetime) -> Check:
    """Compare all old data of a volume with its checksums.  Raise Cancelled, OSError, BlockDeviceError."""
    total = sum(snapshot.preserved_bytes for snapshot in owner.snapshots)
    read, damaged = 0, dict[str, int]()
    job.progress(0, total)
    for snapshot in owner.snapshots:
        if snapshot.is_invalid or snapshot.deleting:
            continue
        try:
            for report in snapshot.verify(pyroaring.BitMap()):
                if job.cancelled():
                    raise Cancelled
                if report.verdict is contract.Verdict.DAMAGED:
                    damaged[snapshot.name] = damaged.get(snapshot.name, 0) + report.length
                read += report.length
                job.progress(min(read, total), total)
                throttle.spend(report.length, job.cancelled)
        except block_device.DeviceClosed:
            if snapshot in owner.snapshots:
                raise
    job.damaged_bytes = sum(damaged.values())
    return Check(began, read, damaged)
