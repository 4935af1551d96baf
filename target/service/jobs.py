# SPDX-License-Identifier: Apache-2.0
"""Jobs: work that takes long, each on a thread of its own, that reports progress and can be cancelled.

| state       | meaning                                                           |
| ----------- | ----------------------------------------------------------------- |
| `running`   | its work is running                                               |
| `done`      | finished                                                          |
| `failed`    | ended with a Problem                                              |
| `cancelled` | its work stopped on request, and left nothing unfinished behind   |

An ended job is kept until `KEPT` newer ones have ended.  Its outcome is kept, and no reference to the objects it worked on.
"""

from __future__ import annotations

import io
import itertools
import logging
import threading
import time
from collections.abc import Callable

from target import messages
from target.service import problems

log = logging.getLogger(__name__)

KEPT = 64
HOLDER_SECONDS = 10.0


class Cancelled(Exception):
    """The work of a job raises this when it stops on request."""


class Job:
    """One job.  It calls `work` with itself; `work` calls `progress`, and raises Cancelled soon after `cancelled` is true."""

    def __init__(self, number: int, kind: str, subject: str, work: Callable[[Job], None]) -> None:
        self.number = number
        self.kind = kind
        self.subject = subject
        self._work: Callable[[Job], None] | None = work  # until it ends: it refers to what it works on
        self._cancel = threading.Event()
        self._ended = threading.Event()
        self._holder_until: float | None = None
        self._done = self._total = 0
        self._state = "running"
        self._problem: problems.Problem | None = None
        self.damaged_bytes = 0
        self.damage: tuple[messages.Damage, ...] = ()
        """The damage that the work met, see `messages.Job`; the work sets it before it ends."""
        self.result: object = None
        """The result, if the job has one; the work sets it before it ends."""
        self.input: io.FileIO | None = None
        """The pipe into which a request writes what the job reads, if it reads something."""
        self._thread = threading.Thread(target=self._run, name=f"job-{number}", daemon=True)

    @property
    def ended(self) -> bool:
        """Whether the work has ended."""
        return self._ended.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def progress(self, done: int, total: int) -> None:
        """Record that `done` of `total` bytes are processed; the work calls it."""
        self._done, self._total = done, total

    def cancelled(self) -> bool:
        """Return whether the work should stop; the work calls it."""
        if self._holder_until is not None and time.monotonic() > self._holder_until:
            return True
        return self._cancel.is_set()

    def expect_holder(self) -> None:
        """Cancel the job unless a client calls `hold` within `HOLDER_SECONDS`."""
        self._holder_until = time.monotonic() + HOLDER_SECONDS

    def hold(self) -> None:
        """Note that a client holds the job: it will cancel the job when that client goes away."""
        self._holder_until = None

    def cancel(self) -> None:
        """Ask the work to stop."""
        self._cancel.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the work has ended, or for `seconds`; return whether it has ended."""
        return self._ended.wait(seconds)

    def check(self) -> None:
        """Raise the Problem that the work ended with, if there is one."""
        if self._problem is not None:
            raise self._problem

    def message(self) -> messages.Job:
        """Return the state of the job."""
        refusal = None
        if self._problem is not None:
            refusal = messages.Refusal(self._problem.code, self._problem.message, self._problem.remedy)
        return messages.Job(
            self.number,
            self.kind,
            self.subject,
            self._state,
            self._done,
            self._total,
            refusal,
            self.damaged_bytes,
            self.damage,
        )

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            work(self)
            self._state = "done"
        except Cancelled:
            self._state = "cancelled"
        except problems.Problem as problem:
            problem.__cause__ = problem.__context__ = None  # their frames refer to the work's objects
            self._problem, self._state = problem.with_traceback(None), "failed"
        except Exception as error:  # a bug; the job's caller learns of it, too
            log.exception("job %d, %s of %s, failed", self.number, self.kind, self.subject)
            self._problem, self._state = problems.internal(error), "failed"
        finally:
            del work
            self._ended.set()


class Jobs:
    """The jobs of a daemon.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._stopping = False

    def start(self, kind: str, subject: str, work: Callable[[Job], None]) -> Job:
        """Start a job.  Raise Problem when the daemon is stopping."""
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
        """Return the job of that number.  Raise Problem."""
        job = self._jobs.get(number)
        if job is None:
            raise problems.no_such_job(number)
        return job

    def all(self) -> list[Job]:
        """Return the jobs, oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def stop(self) -> None:
        """Refuse new jobs, cancel those that run, and wait until they have ended."""
        with self._lock:
            self._stopping = True
        for job in self.all():
            job.cancel()
        for job in self.all():
            job.wait()
