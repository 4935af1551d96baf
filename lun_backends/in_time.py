# SPDX-License-Identifier: Apache-2.0
"""Calls with a time limit.

A thread that waits for a disk cannot be interrupted.  So a helper thread does the work, and the caller stops waiting for it.
The work goes on, and ends when it can.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class TimedOut(Exception):
    """The work has not ended in time; it goes on."""


class _Call:
    __slots__ = ("done", "error", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.done = threading.Event()


class Helpers:
    """A pool of threads that grows to the peak number of concurrent calls."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[queue.SimpleQueue[_Call]] = []  # append and pop are atomic

    def run(self, work: Callable[[], None], seconds: float) -> None:
        """Return when `work` has ended, or raise its error; raise TimedOut if it takes longer than `seconds`."""
        call = _Call(work)
        try:
            calls = self._idle.pop()
        except IndexError:
            calls = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(calls,), name=self._name, daemon=True).start()
        calls.put(call)
        if not call.done.wait(seconds):
            raise TimedOut
        error, call.error = call.error, None
        if error is not None:
            try:
                raise error
            finally:  # or the frames of its traceback, with all buffers, would live until the garbage collector runs
                del error

    def _serve(self, calls: queue.SimpleQueue[_Call]) -> None:
        while True:
            call = calls.get()
            try:
                call.work()
            except BaseException as error:  # noqa: BLE001 - `run` raises it, unless it no longer waits
                call.error = error
            call.done.set()
            del call  # so that the work, and all it refers to, is not kept until the next call
            self._idle.append(calls)
