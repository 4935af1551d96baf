# SPDX-License-Identifier: Apache-2.0
"""Calls with a time limit: results, errors, and threads that are used again."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from lun_backends import in_time


def test_the_work_is_done_on_another_thread_and_its_error_raised_here() -> None:
    helpers = in_time.Helpers("helper")
    names: list[str] = []
    helpers.run(lambda: names.append(threading.current_thread().name), 60)
    assert names == ["helper"]

    def fail() -> None:
        raise LookupError("of the work")

    with pytest.raises(LookupError, match="of the work"):
        helpers.run(fail, 60)


def test_late_work_continues() -> None:
    helpers = in_time.Helpers("helper")
    go_on, ended = threading.Event(), threading.Event()

    def slow() -> None:
        assert go_on.wait(60)
        ended.set()

    with pytest.raises(in_time.TimedOut):
        helpers.run(slow, 0.01)
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(60)


def test_a_thread_is_used_again_and_none_waits_for_another() -> None:
    helpers = in_time.Helpers("helper")
    threads: set[int] = set()
    busy, go_on = threading.Event(), threading.Event()

    def note() -> None:
        threads.add(threading.get_ident())

    def hold() -> None:
        note()
        busy.set()
        assert go_on.wait(60)

    with pytest.raises(in_time.TimedOut):
        helpers.run(hold, 0.01)
    assert busy.wait(60)
    for _ in range(10):  # a second thread does these, while the first one is stuck
        helpers.run(note, 60)
        while not helpers._idle:  # the thread is free a moment after the answer
            pass
    go_on.set()
    assert len(threads) == 2


def test_no_reference_to_the_work_is_kept() -> None:
    class Buffer:
        """A stand-in for the buffers that the work refers to."""

    helpers = in_time.Helpers("helper")
    buffer = Buffer()
    kept = weakref.ref(buffer)

    def fail(held: Buffer) -> None:
        raise ValueError(held)

    gc.disable()
    try:
        with pytest.raises(ValueError, match="Buffer"):
            helpers.run(lambda held=buffer: fail(held), 60)  # type: ignore[misc]  # mypy wants the default typed
        while not helpers._idle:
            pass
        del buffer
        assert kept() is None
    finally:
        gc.enable()
