# SPDX-License-Identifier: Apache-2.0
"""The event loop over all rings, and the workers for commands that would wait for a disk.

The loop takes a batch of commands from a ring, executes each task with `nowait`, and answers the finished ones with one
kick.  The rest becomes one job.  A worker lets the unit prepare for all its writes together (copy-on-write commits once
for the batch).  Then each task is executed, spread over the workers, and answered as it ends.

UIO descriptors are polled edge-triggered and never read.  So the kernel's counter of events always differs from ours,
and each wake-up of the device is an edge.  A batch costs two system calls: `epoll_wait` and the kick.

An initiator that waits for each answer before its next command always waits for this process.  So a command that comes
alone goes to `Served.run` first, which runs the plain commands with the least code.  When sleeps have become short, the
loop polls for a while instead of sleeping, as the portal's loop does, because a wake-up takes longer than such a
command.

An unforeseen error ends the service of the ring in which it came up, with a line in the log; the loop continues.  An
error of the loop itself ends the process (`target.ending`), and the next process takes the devices over.
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

from lun_backends import in_place
from lun_backends.block_device import WouldBlock
from target import liveness
from target.scsi.task import Executor
from target.shift import Shift
from target.tcmu.ring import Ring, RingError, RingTask, Run

log = logging.getLogger(__name__)

WORKERS = 16
DRAIN_POLL = 0.005  # seconds
ROUNDS = 8  # batches that one ring gets before the others have their turn
TURNS = 64  # commands that one ring gets if they come alone
LOOKS = 64  # looks at the ring that was busy last, before the others are polled
SPIN_SECONDS = 0.0005  # how long the loop polls before it sleeps again
BEAT_SECONDS = 1.0  # the longest sleep
LOOP_NAME = "tcmu rings"
GIVEN_UP = "a device is no longer served, because of an error"


@dataclass(eq=False)
class Served:
    """A ring with its executor, while a server serves it."""

    ring: Ring
    descriptor: int
    executor: Executor
    run: Run
    """The function that runs commands which come alone and need not wait; the executor runs the others."""
    lent: bool = False
    """Whether a thread that was relieved of the loop still serves it, and no other thread does."""
    broken: bool = False
    """Whether the server has given the ring up."""


class Server:
    """The loop and its workers, from `start` on.  Any thread except the workers may call `add` and `remove`."""

    def __init__(self, workers: int = WORKERS) -> None:
        self.pulse = liveness.Pulse(LOOP_NAME, BEAT_SECONDS)
        self._epoll = select.epoll()
        self._woken, self._wake = os.pipe()
        self._epoll.register(self._woken, select.EPOLLIN)
        self._served: dict[int, Served] = {}
        self._added: deque[Served] = deque()
        self._removed: dict[int, threading.Event] = {}
        self._failed: deque[Served] = deque()
        self._due: deque[Served] = deque()  # rings that the loop has to look at
        self._handed_over = False  # whether the workers got a task since the loop last checked
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tcmu")
        self._current: Served | None = None
        self._relieved: set[Shift] = set()
        self._thread = threading.Thread(target=self._run_shift, name=LOOP_NAME, daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def close(self) -> None:
        """Stop the loop and the workers.  The caller has removed all rings before."""
        if self._thread.is_alive():
            os.write(self._wake, b"\0")
        while (thread := self._thread).is_alive():  # the loop may have been relieved meanwhile
            thread.join(0.1)
        for shift in list(self._relieved):
            shift.finished.wait()
        self._pool.shutdown()
        self._epoll.close()
        os.close(self._wake)
        os.close(self._woken)

    def add(self, served: Served) -> None:
        """Serve a ring, beginning with the commands that it holds."""
        self._served[served.descriptor] = served
        self._epoll.register(served.descriptor, select.EPOLLIN | select.EPOLLET)
        self._added.append(served)
        os.write(self._wake, b"\1")  # earlier commands may cause no edge, so make the loop look

    def remove(self, served: Served, deadline: float) -> bool:
        """Answer the commands in the ring, then stop serving it.  The caller makes sure that no more come.

        Return whether the ring was empty by the `deadline` (`time.monotonic`).  If not, it is left as it is.
        """
        while not served.ring.idle and not served.broken and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL)
        forgotten = self._removed[served.descriptor] = threading.Event()
        os.write(self._wake, b"\2")
        if self._thread.is_alive():
            forgotten.wait()
        return served.ring.idle

    def _run_shift(self) -> None:
        """Run the loop until it ends, or until the calling thread is relieved."""
        shift = Shift(LOOP_NAME, self._relieve)
        ring = self._run(shift.loop)
        if ring is None:
            shift.end()
            return
        shift.handed_over.wait()
        ring.lent = False
        self._added.append(ring)
        os.write(self._wake, b"\1")
        shift.finished.set()
        self._relieved.discard(shift)

    def _relieve(self, shift: Shift, _: in_place.Caller) -> None:
        """Go on as the loop, because its thread waits in a call in place.  That thread keeps the ring until then."""
        ring = self._current
        assert ring is not None  # a call in place belongs to a command in a ring
        ring.lent = True
        self._relieved.add(shift)
        self._thread = threading.current_thread()
        shift.handed_over.set()
        self._run_shift()

    def _run(self, loop: in_place.LoopThread) -> Served | None:
        """Run the loop to its end, or return the ring with which the thread was relieved."""
        may_spin = len(os.sched_getaffinity(0)) > 1
        due = self._due
        warm: Served | None = None  # the ring that was busy last, while the loop spins
        spin_until = 0.0
        next_beat = 0.0
        while True:
            began = time.monotonic()
            if warm is not None:
                self._current = warm
                loop.open = True
                try:
                    answered = warm.ring.answer_alone(warm.run, LOOKS, TURNS)
                except Exception:
                    log.exception(GIVEN_UP)
                    self._broken(warm, loop)
                    answered = 0
                loop.open = False
                if loop.relieved:
                    return warm
                if warm.broken:
                    warm = None
                elif answered:
                    began = time.monotonic()
                    spin_until = began + SPIN_SECONDS
            events = self._epoll.poll(BEAT_SECONDS if warm is None and not due else 0)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT_SECONDS
                self.pulse.beat()
            if events:
                spin_until = now + SPIN_SECONDS
            elif now > spin_until:
                warm = None
            spins = may_spin and now - began < SPIN_SECONDS
            # All that is due is noted before any of it is done: a relief finds the rest there.  No event comes twice.
            last: Served | None = None
            cold = False
            for descriptor, _ in events:
                if descriptor == self._woken:
                    cold = True
                    if self._take_orders():
                        return None
                elif (served := self._served.get(descriptor)) is not None:
                    due.append(served)
                    last = served
            for _ in range(len(due)):  # those that come again have their turn behind another look at the others
                served = due.popleft()
                self._serve(served, loop)
                if loop.relieved:
                    return served
            if last is not None:
                warm = last if spins and not last.broken else None
            if (
                cold or self._handed_over
            ):  # the workers need the interpreter's lock, and no command is alone beside theirs
                self._handed_over = False
                warm = None

    def _take_orders(self) -> bool:
        """Take the orders of other threads; return whether the loop shall end."""
        for order in os.read(self._woken, 4096):
            if order == 0:
                return True
            if order == 1:
                added = self._added.popleft()
                if self._served.get(added.descriptor) is added:
                    self._due.append(added)
            elif order == 3:
                self._give_up(self._failed.popleft())
            else:
                self._forget()
        return False

    def _forget(self) -> None:
        for descriptor, forgotten in list(self._removed.items()):
            with contextlib.suppress(FileNotFoundError):  # a broken ring is no longer registered
                self._epoll.unregister(descriptor)
            left = [served for served in self._due if served.descriptor != descriptor]
            self._due.clear()
            self._due.extend(left)
            self._served.pop(descriptor, None)
            del self._removed[descriptor]
            forgotten.set()

    def _serve(self, served: Served, loop: in_place.LoopThread) -> None:
        if served.lent or served.broken:
            return
        ring = served.ring
        self._current = served
        loop.open = True
        try:
            ring.answer_alone(served.run, 0, TURNS)
            # An answer often brings the next command at once, and another look is cheaper than a wake-up.
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
            if not loop.relieved:  # or it becomes due when this thread gives it back
                self._due.append(served)
        except RingError as error:
            log.error("%s; the device is no longer served", error)
            self._broken(served, loop)
        except Exception:
            log.exception(GIVEN_UP)
            self._broken(served, loop)
        finally:
            loop.open = False

    def _broken(self, served: Served, loop: in_place.LoopThread) -> None:
        """Give a ring up, or let the loop do that if the calling thread is the loop no longer."""
        if loop.relieved:
            self._failed.append(served)
            os.write(self._wake, b"\3")
        else:
            self._give_up(served)

    def _give_up(self, served: Served) -> None:
        served.broken = True
        if self._served.get(served.descriptor) is served:
            del self._served[served.descriptor]
            self._epoll.unregister(served.descriptor)

    def _work(self, served: Served, tasks: Sequence[RingTask]) -> None:
        waiting = tasks
        if len(tasks) > 1:
            try:
                served.executor.prepare(tasks)
            except Exception:
                log.exception("writes could not be prepared together, so each is prepared by itself")
            try:
                done, waiting = _without_waiting(served, tasks)
                served.ring.complete(done)
            except Exception:  # noqa: BLE001 - `_worker_failed` logs it
                self._worker_failed(served)
                return
        for task in waiting[1:]:
            self._pool.submit(self._finish, served, task)
        for task in waiting[:1]:
            self._finish(served, task)

    def _finish(self, served: Served, task: RingTask) -> None:
        try:
            served.executor.execute(task, nowait=False)
            served.ring.complete((task,))
        except Exception:  # noqa: BLE001 - `_worker_failed` logs it
            self._worker_failed(served)

    def _worker_failed(self, served: Served) -> None:
        """Let the loop give up the ring.  A worker calls this while it handles the error."""
        log.exception(GIVEN_UP)
        self._failed.append(served)
        os.write(self._wake, b"\3")


def _without_waiting(served: Served, tasks: Sequence[RingTask]) -> tuple[list[RingTask], Sequence[RingTask]]:
    """Execute the tasks that need not wait; return the finished ones and the others."""
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
