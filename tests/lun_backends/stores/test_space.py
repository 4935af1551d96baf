# SPDX-License-Identifier: Apache-2.0
"""The count of space: the limit is never passed, and the warning comes once per crossing."""

from __future__ import annotations

import threading

from lun_backends.stores.space import Space


def test_the_limit_is_never_passed() -> None:
    space = Space(100)
    assert space.take(60)
    assert not space.take(41)
    assert space.used == 60
    assert space.take(40)
    assert space.full
    assert not space.take(1)


def test_without_a_limit_any_space_may_be_taken() -> None:
    space = Space()
    assert space.take(1 << 60)
    assert not space.full
    assert not space.low


def test_the_warning_comes_whenever_the_threshold_is_passed_upwards() -> None:
    warnings: list[tuple[int, int]] = []
    space = Space(100, 80, lambda used, limit: warnings.append((used, limit)))
    space.take(79)
    assert warnings == []
    space.take(1)
    space.take(10)
    assert warnings == [(80, 100)]
    space.add(-50)
    assert not space.low
    space.take(45)
    assert warnings == [(80, 100), (85, 100)]


def test_new_bounds_hold_at_once_and_keep_the_count() -> None:
    space = Space(100)
    space.take(90)
    space.allow(50, 50)
    assert space.full
    assert not space.take(1)
    space.allow(None, 100)
    assert space.take(1000)
    assert space.used == 1090


def test_only_the_thread_that_moves_chunks_may_pass_the_limit() -> None:
    space = Space(10)
    space.take(10)
    others: list[bool] = []
    with space.unlimited():
        thread = threading.Thread(target=lambda: others.append(space.take(1)))
        thread.start()
        thread.join()
        assert space.take(5)
    assert others == [False]
    assert space.used == 15
    assert not space.take(1)


def test_threads_never_pass_the_limit_together() -> None:
    space = Space(1000)
    taken: list[int] = []

    def work() -> None:
        taken.append(sum(space.take(1) for _ in range(400)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == space.used == 1000
