# SPDX-License-Identifier: Apache-2.0
"""Threads that execute the commands for which an event loop must not wait.

The loop hands over jobs: commands of one session that belong together.  A worker prepares a job as a whole, so that
copy-on-write preserves all its chunks with one commit, and executes its commands one by one.  Each result goes to
`results` at once.  The worker wakes the loop through an eventfd, but only if the loop sleeps: a busy loop looks into
`results` every round.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from typing import Final, Generic, NamedTuple, TypeVar

from target.iscsi.command import Command
from target.iscsi.task_set import TaskSet
from target.scsi.task import ForeseeingExecutor

log = logging.getLogger(__name__)

JOB_BYTES: Final = 8 << 20
"""Bytes of data-in that one job may read, unless a single command reads more.  All of it waits in memory to be sent."""

JOB_WRITES: Final = 16
"""Writes in a job that was made from several: enough to be worth a commit, and few enough that another worker gets some,
too."""

STUCK_SECONDS: Final = 1.0
"""The time after which a worker that still waits for a disk is replaced for as long as it waits."""

REPLACEMENTS: Final = 64
"""The most workers that are replaced at once."""

TELL_SECONDS: Final = 0.0005
"""The shortest time between two wake-ups of a sleeping loop for the results of an unfinished job, because the loop takes
the interpreter's lock from the worker."""


class Lane:
    """The jobs of one session: those that wait, and (by their last command) those that are with the workers."""

    __slots__ = ("jobs", "long", "pending", "stuck", "tasks")

    def __init__(self, tasks: TaskSet) -> None:
        self.tasks = tasks
        self.pending: deque[Job] = deque()
        self.long: deque[Job] = deque()  # those whose command takes long, which must not hold up the others
        self.jobs: dict[Command, Job] = {}
        self.stuck = 0  # those of `jobs` whose workers are replaced

    @property
    def owner(self) -> object:
        """The owner of the share of the workers that the lane takes from: the lane itself, unless an initiator has several."""
        return self

    @property
    def active(self) -> int:
        """The number of jobs that are with the workers."""
        return len(self.jobs)

    def stranded(self) -> list[Command]:
        """Return the commands that seem to run, although no worker has them and they wait for none.

        An error has come between the stages of such a command.
        """
        held = {command for job in (*self.jobs.values(), *self.pending, *self.long) for command in job.commands}
        held.update(self.tasks.blocked)
        return [command for command in self.tasks.running if command not in held]

    def next_job(self) -> Job:
        """Take the job that waits longest.

        Writes of the same LUN behind it go along, up to `JOB_WRITES` in all, because they share a commit.
        """
        job = self.pending.popleft()
        if job.commands[0].writes:
            lun = job.commands[0].task.lun
            while (
                self.pending
                and (behind := self.pending[0]).commands[0].writes
                and behind.commands[0].task.lun == lun
                and len(job.commands) + len(behind.commands) <= JOB_WRITES
            ):
                self.pending.popleft()
                job = Job(job.executor, job.commands + behind.commands)
        return job

    def drop(self) -> list[Command]:
        """Take back and return the commands that no worker has yet."""
        commands = [command for job in (*self.pending, *self.long) for command in job.commands]
        self.pending.clear()
        self.long.clear()
        return commands


class Job(NamedTuple):
    """Commands of one session, and the executor to run them on."""

    executor: ForeseeingExecutor
    commands: list[Command]
    long: bool = False
    relieved: bool = False
    """Whether a thread that was relieved of the loop executes it, and no worker."""


L = TypeVar("L", bound=Lane)


class Result(NamedTuple, Generic[L]):
    """An executed command of `lane`; `last` when its job is over, `error` if the executor raised one."""

    lane: L
    command: Command
    last: bool
    error: Exception | None = None


class Workers(Generic[L]):
    """A pool of `count` daemon threads; all methods except `wake` belong to the loop's thread.

    A session gets another worker only while more workers are free than it has.  An initiator gets another one only
    while half as many are free as it has in all its sessions.  So one session alone gets half of the workers and one
    initiator two thirds, and the others still get workers however long its commands take.  Commands that take long,
    those of all initiators together, get at most half of the workers.  An initiator gets another one of that half only
    while more of it are free than the initiator has, so another initiator's long command need not wait for its.

    A disk that does not answer holds its workers, but not the commands to other disks: `replace_stuck` starts a thread
    for each worker that waits too long while others need one.  The pool shrinks again when the disk answers.
    A replaced worker counts in no share, so a session that waits for one LUN still gets workers for its others.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.results: deque[Result[L]] = deque()
        self._active = 0  # jobs with the threads, except those that are stuck
        self._since: dict[Command, tuple[float, L]] = {}  # when each of them began, by its last command, oldest first
        self._stuck: set[Command] = set()  # the last commands of the jobs whose workers are replaced
        self._long = 0  # those of them that take long
        self._shares: Counter[object] = Counter()  # jobs with the threads, by the owner of their lane
        self._long_shares: Counter[object] = Counter()  # those of them that take long
        self._queued: deque[L] = deque()  # lanes that found no worker free, longest first
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fd_lock = (
            threading.Lock()
        )  # the descriptor must not be closed, and its number used again, between check and write
        self.sleeping = False  # set by the loop before its last look into `results` and its sleep
        self._jobs: queue.SimpleQueue[tuple[L, Job] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._hired = 0
        for _ in range(count):
            self._hire()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name=f"iscsi-worker-{self._hired}", daemon=True)
        self._hired += 1
        self._threads.append(thread)
        thread.start()

    def enqueue(self, lane: L, executor: ForeseeingExecutor, commands: list[Command]) -> None:
        """Make jobs of a batch's blocked commands, and start as many as possible.

        Writes of one LUN stay together, because they share a commit.  The other commands are spread over the workers,
        because each waits for the disk by itself.
        """
        writes: dict[int, list[Command]] = {}
        others: list[Command] = []
        for command in commands:
            if executor.takes_long(command.task):
                lane.long.append(Job(executor, [command], long=True))
            elif command.writes:
                writes.setdefault(command.task.lun, []).append(command)
            else:
                others.append(command)
        lane.pending.extend(Job(executor, batch) for batch in writes.values())
        share = -(-len(others) // (self.count // 2 or 1))
        batch: list[Command] = []
        size = 0
        for command in others:
            if batch and (len(batch) == share or size + command.task.expected_in > JOB_BYTES):
                lane.pending.append(Job(executor, batch))
                batch, size = [], 0
            batch.append(command)
            size += command.task.expected_in
        if batch:
            lane.pending.append(Job(executor, batch))
        self.start(lane)

    def start(self, lane: L) -> None:
        """Start jobs of `lane`, while its share of the workers allows it and its peer takes answers."""
        owner = lane.owner
        while (lane.pending or lane.long) and not lane.tasks.congested:
            short = bool(lane.pending)
            free = self.count - self._active
            if (
                len(lane.jobs) - lane.stuck >= free
                or self._shares[owner] >= 2 * free
                or (not short and self._long_shares[owner] >= max(1, self.count // 2) - self._long)
            ):
                if lane not in self._queued:
                    self._queued.append(lane)
                return
            job = lane.next_job() if short else lane.long.popleft()
            last = job.commands[-1]
            lane.jobs[last] = job
            self._active += 1
            self._since[last] = time.monotonic(), lane
            self._shares[owner] += 1
            if job.long:
                self._long += 1
                self._long_shares[owner] += 1
            self._jobs.put((lane, job))

    def adopt(self, lane: L, job: Job) -> None:
        """Count a job of `lane` that the thread which ran the loop executes, now that it is relieved."""
        lane.jobs[job.commands[-1]] = job._replace(relieved=True)
        self._shares[lane.owner] += 1

    def replace_stuck(self, now: float) -> None:
        """Replace the workers that have waited too long at `now` (time.monotonic), if a session waits for a worker."""
        if not self._queued:
            return
        for last, (since, lane) in list(self._since.items()):
            if now - since < STUCK_SECONDS or len(self._stuck) >= REPLACEMENTS:
                break
            del self._since[last]
            self._stuck.add(last)
            lane.stuck += 1
            self._give_share_back(lane.owner)
            self._active -= 1
            self._hire()
        self._start_queued()

    def job_done(self, lane: L, last: Command) -> None:
        """Note that the job of `lane` that ends with `last` is over, and start others, of the longest-waiting lane first."""
        job = lane.jobs.pop(last)
        if last in self._stuck:
            self._stuck.discard(last)
            lane.stuck -= 1
            self._jobs.put(None)  # one thread ends: there is one too many now
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        else:
            self._give_share_back(lane.owner)
            if not job.relieved:
                del self._since[last]
                self._active -= 1
        if job.long:
            self._long -= 1
            self._long_shares[lane.owner] -= 1
            if not self._long_shares[lane.owner]:
                del self._long_shares[lane.owner]
        self._start_queued()
        self.start(lane)

    def _give_share_back(self, owner: object) -> None:
        self._shares[owner] -= 1
        if not self._shares[owner]:
            del self._shares[owner]

    def _start_queued(self) -> None:
        queued, self._queued = self._queued, deque()
        for waiting in queued:
            self.start(waiting)

    @property
    def busy(self) -> bool:
        """Whether workers are at work, and would have to share the interpreter's lock with a loop that spins."""
        return self._active > 0 or bool(self._stuck)

    def wake(self) -> None:
        """Wake the loop.  Any thread may call this.  Do nothing once closed."""
        with self._fd_lock:
            if self.wake_fd >= 0:
                os.eventfd_write(self.wake_fd, 1)

    def drain_wakeups(self) -> None:
        """Clear the wake-ups, now that the loop is awake."""
        os.eventfd_read(self.wake_fd)

    def close(self) -> None:
        """Let the threads finish their jobs, and end them."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        with self._fd_lock:
            os.close(self.wake_fd)
            self.wake_fd = -1

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            lane, job = work
            live = [command for command in job.commands if not command.task.aborted]
            if len(live) > 1:
                try:
                    job.executor.prepare([command.task for command in live])
                except Exception:
                    log.exception("writes could not be prepared together, so each is prepared by itself")
            execute = job.executor.execute
            last = job.commands[-1]
            woken = time.monotonic()
            for command in job.commands:
                error = None
                if not command.task.aborted:
                    try:
                        execute(command.task, nowait=False)
                    except Exception as raised:  # noqa: BLE001 - the loop logs it, and ends the session
                        error = raised
                self.results.append(Result(lane, command, command is last, error))
                if self.sleeping and (command is last or time.monotonic() - woken > TELL_SECONDS):
                    woken = time.monotonic()
                    self.sleeping = False
                    self.wake()
