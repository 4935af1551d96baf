# SPDX-License-Identifier: Apache-2.0
"""Threads that execute the commands an event loop must not wait for.

The loop hands over jobs: commands of one session that belong together.  A worker prepares a job as a whole (copy-on-write then preserves all
its chunks with one commit) and executes its commands one by one.  Each result goes to `results` at once, and the loop is
woken through an eventfd, but only if it sleeps: a busy loop looks into `results` by itself every round.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from typing import Any, NamedTuple

from target.iscsi.command import Command


class Job(NamedTuple):
    """`commands` to execute on `nexus`; `owner` is told, through the results."""

    owner: Any
    nexus: Any
    commands: list[Command]


class Result(NamedTuple):
    """`command` was executed; `last` when its job is over."""

    owner: Any
    command: Command
    last: bool


class Workers:
    """`count` daemon threads; `submit` and `results` belong to the loop's thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.results: deque[Result] = deque()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fd_lock = threading.Lock()  # the number must not be someone else's by the time it is written to
        self.sleeping = False  # set by the loop before it looks into `results` the last time, and sleeps
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"iscsi-worker-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def wake(self) -> None:
        """Make the loop look around; from any thread.  Does nothing once closed."""
        with self._fd_lock:
            if self.wake_fd >= 0:
                os.eventfd_write(self.wake_fd, 1)

    def drain_wakeups(self) -> None:
        """The loop is awake: forget that it was woken."""
        os.eventfd_read(self.wake_fd)

    def close(self) -> None:
        """Let the threads finish what they have, and end them."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        with self._fd_lock:
            os.close(self.wake_fd)
            self.wake_fd = -1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            live = [command for command in job.commands if not command.task.aborted]
            if len(live) > 1:
                job.nexus.prepare([command.task for command in live])
            execute = job.nexus.execute
            last = job.commands[-1]
            for command in job.commands:
                if not command.task.aborted:
                    execute(command.task, nowait=False)
                self.results.append(Result(job.owner, command, command is last))
                if self.sleeping:
                    self.sleeping = False
                    self.wake()
