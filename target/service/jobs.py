# SPDX-License-Identifier: Apache-2.0
"""Things that take long: each runs on a thread of its own, reports its progress, and can be cancelled.

| state       | meaning                                                           |
| ----------- | ----------------------------------------------------------------- |
| `running`   | at work                                                           |
| `done`      | finished                                                          |
| `failed`    | ended with a Problem                                              |
| `cancelled` | was asked to stop, stopped, and left nothing behind it should not |

Ended jobs are remembered until `KEPT` newer ones have ended: how they ended, and nothing of what they worked on.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable

from target import messages
from target.service import problems

log = logging.getLogger(__name__)

KEPT = 64


class Cancelled(Exception):
    """Raised by a job's work when it stops because it was asked to."""


class Job:
    """One of them.  `work` is called with the job, calls `progress`, and raises Cancelled soon after `cancelled` is set."""

    def __init__(self, number: int, kind: str, subject: str, work: Callable[[Job], None]) -> None:
        self.number = number
        self.kind = kind
        self.subject = subject
        self._work: Callable[[Job], None] | None = work  # until it has ended: it holds what it worked on
        self._cancel = threading.Event()
        self._ended = threading.Event()
        self._done = self._total = 0
        self._state = "running"
        self._problem: problems.Problem | None = None
        self.result: object = None
        """What the work found out, if that is what it is for: set by the work before it ends."""
        self._thread = threading.Thread(target=self._run, name=f"job-{number}", daemon=True)

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._ended.is_set()

    def start(self) -> None:
        """Set it going."""
        self._thread.start()

    def progress(self, done: int, total: int) -> None:
        """For the work: `done` of `total` bytes are through."""
        self._done, self._total = done, total

    def cancelled(self) -> bool:
        """For the work: whether it should stop."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Ask it to stop."""
        self._cancel.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        return self._ended.wait(seconds)

    def check(self) -> None:
        """Raises the Problem it ended with, if it did."""
        if self._problem is not None:
            raise self._problem

    def message(self) -> messages.Job:
        """How it stands."""
        refusal = None
        if self._problem is not None:
            refusal = messages.Refusal(self._problem.code, self._problem.message, self._problem.remedy)
        return messages.Job(self.number, self.kind, self.subject, self._state, self._done, self._total, refusal)

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            work(self)
            self._state = "done"
        except Cancelled:
            self._state = "cancelled"
        except problems.Problem as problem:
            problem.__cause__ = problem.__context__ = None  # their frames hold it, too
            self._problem, self._state = problem.with_traceback(None), "failed"
        except Exception as error:  # a bug; told to whoever waits for the job, too
            log.exception("job %d, %s of %s, failed", self.number, self.kind, self.subject)
            self._problem, self._state = problems.internal(error), "failed"
        finally:
            del work
            self._ended.set()


class Jobs:
    """All jobs of a daemon.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._stopping = False

    def start(self, kind: str, subject: str, work: Callable[[Job], None]) -> Job:
        """Set a job going.  Raises Problem when the daemon is stopping."""
        with self._lock:
            if self._stopping:
                raise problems.stopping()
            job = Job(next(self._numbers), kind, subject, work)
            self._jobs[job.number] = job
            ended = [number for number, other in self._jobs.items() if other.ended]
            for number in ended[:-KEPT]:
                del self._jobs[number]
            job.start()
        return job

    def job(self, number: int) -> Job:
        """The job of that number.  Raises Problem."""
        job = self._jobs.get(number)
        if job is None:
            raise problems.no_such_job(number)
        return job

    def all(self) -> list[Job]:
        """The jobs, oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def stop(self) -> None:
        """Cancel what runs, wait until it has ended, and start nothing more."""
        with self._lock:
            self._stopping = True
        for job in self.all():
            job.cancel()
        for job in self.all():
            job.wait()
