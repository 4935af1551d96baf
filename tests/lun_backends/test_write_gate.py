# SPDX-License-Identifier: Apache-2.0
"""The gate: while it is held, no write is inside; afterwards, none is kept outside."""

from __future__ import annotations

import threading

import pytest

from lun_backends.write_gate import WriteGate


def test_a_writer_that_must_not_wait_is_refused_while_held_and_leaves_no_trace() -> None:
    gate = WriteGate()
    with gate.hold():
        assert not gate.enter_now()
    assert gate.enter_now()
    gate.leave()
    with gate.hold():
        pass
    assert gate.holds == 2
    assert gate.held_seconds > 0


def test_an_error_while_holding_opens_the_gate() -> None:
    gate = WriteGate()
    with pytest.raises(RuntimeError), gate.hold():
        raise RuntimeError
    assert gate.enter_now()
    gate.leave()


def test_holders_and_writers_never_overlap() -> None:
    gate = WriteGate()
    inside = [0, 0, 0]  # per writer, so that no counter is shared
    seen: list[list[int]] = []
    stop = threading.Event()

    def write(number: int) -> None:
        while not stop.is_set():
            gate.enter()
            inside[number] = 1
            inside[number] = 0
            gate.leave()

    def hold() -> None:
        for _ in range(200):
            with gate.hold():
                before = list(inside)
                seen.extend([before, list(inside)])

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    holders = [threading.Thread(target=hold) for _ in range(2)]
    for thread in writers + holders:
        thread.start()
    for thread in holders:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert len(seen) == 800
    assert all(state == [0, 0, 0] for state in seen)
