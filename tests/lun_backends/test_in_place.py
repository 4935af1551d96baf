# SPDX-License-Identifier: Apache-2.0
"""Either the thread in a call in place or its watcher takes the call off the list, and never both."""

from __future__ import annotations

import threading
import time

from lun_backends import in_place


class Call:
    """A caller that does nothing."""

    began = 0.0
    executes = True

    def distrust(self) -> None:
        raise AssertionError


def test_call_that_ends_by_itself_relieves_nobody() -> None:
    loop = in_place.LoopThread()
    loop.enter(Call())
    loop.leave()
    assert loop.take_over() is None
    assert not loop.relieved


def test_thread_whose_call_was_taken_over_is_relieved() -> None:
    loop, call = in_place.LoopThread(), Call()
    loop.enter(call)
    assert loop.take_over() is call
    assert loop.take_over() is None
    loop.leave()
    assert loop.relieved


def test_call_wakes_a_watcher_that_sleeps() -> None:
    loop = in_place.LoopThread()
    loop.enter(Call())
    assert not loop.stirred.is_set()
    loop.leave()
    loop.asleep = True
    loop.enter(Call())
    assert loop.stirred.is_set()
    assert not loop.asleep


def test_each_call_is_ended_by_one_side_however_both_race() -> None:
    loop, call = in_place.LoopThread(), Call()
    taken = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal taken
        while not ended.is_set():
            taken += loop.take_over() is call

    watcher = threading.Thread(target=watch)
    watcher.start()
    relieved = 0
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        loop.enter(call)
        loop.leave()
        relieved += loop.relieved
        loop.relieved = False
    ended.set()
    watcher.join()
    assert taken == relieved > 0


def test_other_threads_are_no_loops() -> None:
    loop = in_place.begin()
    assert in_place.current() is loop
    other: list[in_place.LoopThread] = []
    thread = threading.Thread(target=lambda: other.append(in_place.current()))
    thread.start()
    thread.join()
    in_place.end(threading.get_ident())
    assert other[0] is not loop
    assert in_place.current() is not loop
