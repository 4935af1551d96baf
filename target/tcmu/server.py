# SPDX-License-Identifier: Apache-2.0
"""Serves rings: one event loop for all of them, and workers for what would wait for a disk.

For each batch that a ring holds the loop executes every task with `nowait`, and answers what is done with one kick.  The
rest becomes one job: a worker lets the unit prepare for all its writes at once (copy-on-write commits once for the
batch), then each task is executed, spread over the workers, and answered as it ends.

UIO descriptors are polled edge-triggered and never read: the kernel's counter of events then always differs from ours,
every wake-up of the device is an edge, and a batch costs two system calls, `epoll_wait` and the kick.

An initiator that waits for each answer before it asks again waits for us all the time.  So a command that comes alone is
given to `Served.run` first, which does the plain ones with the least code; and once sleeps have become short, the loop looks
around for a while instead of sleeping, as the portal's does: being woken takes longer than such a command.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lun_backends.block_device import WouldBlock
from target.scsi.task import Executor
from target.tcmu.ring import Ring, RingError, RingTask, Run

log = logging.getLogger(__name__)

WORKERS = 16
DRAIN_POLL = 0.005  # seconds
ROUNDS = 8  # batches that one ring gets before the others have their turn
TURNS = 64  # commands that it gets if they come alone
LOOKS = 64  # at the ring that was busy last, before the others are asked
SPIN_SECONDS = 0.0005  # how long the loop looks around before it sleeps again


@dataclass(eq=False)
class Served:
    """A ring with its executor, while a server serves it."""

    ring: Ring
    descriptor: int
    executor: Executor
    run: Run
    """Does of the commands that come alone what can be done at once; the rest is the executor's."""
    broken: bool = False
    """Whether the server gave it up."""


class Server:
    """Start it with `start`; `add` and `remove` from any thread but the workers."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._epoll = select.epoll()
        self._woken, self._wake = os.pipe()
        self._epoll.register(self._woken, select.EPOLLIN)
        self._served: dict[int, Served] = {}
        self._added: deque[Served] = deque()
        self._removed: dict[int, threading.Event] = {}
        self._again: set[Served] = set()  # rings whose turn was over before they were empty
        self._handed_over = False  # whether the workers got something to do since the loop looked
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tcmu")
        self._thread = threading.Thread(target=self._run, name="tcmu rings", daemon=True)

    def start(self) -> None:
        """Serve rings from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop; every ring was removed before."""
        if self._thread.is_alive():
            os.write(self._wake, b"\0")
            self._thread.join()
        self._pool.shutdown()
        self._epoll.close()
        os.close(self._wake)
        os.close(self._woken)

    def add(self, served: Served) -> None:
        """Serve a ring, beginning with what it holds."""
        self._served[served.descriptor] = served
        self._epoll.register(served.descriptor, select.EPOLLIN | select.EPOLLET)
        self._added.append(served)
        os.write(self._wake, b"\1")  # commands that came before the registration may cause no edge: let the loop look

    def remove(self, served: Served, deadline: float) -> bool:
        """Answer what the ring holds, then leave it; the caller sees to it that nothing more is put in.

        Returns whether it was empty by the `deadline` (`time.monotonic`); if not, it is left as it is.
        """
        while not served.ring.idle and not served.broken and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL)
        gone = self._removed[served.descriptor] = threading.Event()
        os.write(self._wake, b"\2")
        if self._thread.is_alive():
            gone.wait()
        return served.ring.idle

    def _run(self) -> None:
        may_spin = len(os.sched_getaffinity(0)) > 1
        warm: Served | None = None  # while the loop spins: the ring that was busy last
        spin_until = 0.0
        while True:
            again, self._again = self._again, set()
            for unfinished in again:
                self._serve(unfinished)
            began = time.monotonic()
            if warm is not None and warm.ring.answer_alone(warm.run, LOOKS, TURNS):
                began = time.monotonic()
                spin_until = began + SPIN_SECONDS
            events = self._epoll.poll(None if warm is None and not self._again else 0)
            now = time.monotonic()
            if events:
                spin_until = now + SPIN_SECONDS
            elif now > spin_until:
                warm = None
            spins = may_spin and now - began < SPIN_SECONDS
            for descriptor, _ in events:
                if descriptor != self._woken:
                    served = self._served.get(descriptor)
                    if served is not None:
                        self._serve(served)
                        warm = served if spins and not served.broken else None
                    continue
                for order in os.read(self._woken, 4096):
                    if order == 0:
                        return
                    if order == 1:
                        added = self._added.popleft()
                        if self._served.get(added.descriptor) is added:
                            self._serve(added)
                    else:
                        self._forget()
                warm = None
            if self._handed_over:  # the workers need the interpreter's lock, and the ring is not alone with the loop
                self._handed_over = False
                warm = None

    def _forget(self) -> None:
        for descriptor, gone in list(self._removed.items()):
            with contextlib.suppress(FileNotFoundError):  # a ring that broke is out already
                self._epoll.unregister(descriptor)
            self._again = {each for each in self._again if each.descriptor != descriptor}
            self._served.pop(descriptor, None)
            del self._removed[descriptor]
            gone.set()

    def _serve(self, served: Served) -> None:
        ring = served.ring
        try:
            ring.answer_alone(served.run, 0, TURNS)
            # an answer often brings the next command at once: looking again is cheaper than being woken
            for _ in range(ROUNDS):
                tasks = ring.take()
                if not tasks:
                    return
                done, waiting = _without_waiting(served, tasks)
                if waiting and served.executor.prepare(waiting, nowait=True):
                    more, waiting = _without_waiting(served, waiting)
                    done += more
                if waiting:
                    self._handed_over = True
                    self._pool.submit(self._work, served, waiting)
                ring.complete(done)
            self._again.add(served)
        except RingError as error:
            log.error("%s; the device is not served any more", error)
            served.broken = True
            del self._served[served.descriptor]
            self._epoll.unregister(served.descriptor)

    def _work(self, served: Served, tasks: Sequence[RingTask]) -> None:
        waiting = tasks
        if len(tasks) > 1:
            served.executor.prepare(tasks)
            done, waiting = _without_waiting(served, tasks)
            served.ring.complete(done)
        for task in waiting[1:]:
            self._pool.submit(self._finish, served, task)
        for task in waiting[:1]:
            self._finish(served, task)

    def _finish(self, served: Served, task: RingTask) -> None:
        served.executor.execute(task, nowait=False)
        served.ring.complete((task,))


def _without_waiting(served: Served, tasks: Sequence[RingTask]) -> tuple[list[RingTask], Sequence[RingTask]]:
    """Execute what takes no waiting; gives the tasks that are done and those that are not."""
    execute = served.executor.execute
    done: list[RingTask] = []
    waiting: list[RingTask] = []
    for task in tasks:
        try:
            execute(task, nowait=True)
        except WouldBlock:
            waiting.append(task)
        else:
            done.append(task)
    return done, waiting
