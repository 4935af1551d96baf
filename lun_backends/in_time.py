# SPDX-License-Identifier: Apache-2.0
"""Calls that are given up after a time.

A thread that waits for a disk cannot be called back.  So the work is done by a helper thread, and the caller stops waiting
for it; the work goes on, and ends when it can.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class TimedOut(Exception):
    """The work has not ended; it goes on."""


class _Call:
    __slots__ = ("done", "error", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.done = threading.Event()


class Helpers:
    """As many threads as there were calls at once; they stay for the next ones."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[queue.SimpleQueue[_Call]] = []  # append and pop are atomic

    def run(self, work: Callable[[], None], seconds: float) -> None:
        """Return when `work` has ended, or raise what it raised; TimedOut if it takes longer than `seconds`."""
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
            finally:  # or the frames of its traceback, buffers and all, would live until the garbage collector comes by
                del error

    def _serve(self, calls: queue.SimpleQueue[_Call]) -> None:
        while True:
            call = calls.get()
            try:
                call.work()
            except BaseException as error:  # noqa: BLE001 - raised where the work was asked for, unless nobody waits any more
                call.error = error
            call.done.set()
            del call  # the work, with all it refers to, is not kept until the next one
            self._idle.append(calls)
