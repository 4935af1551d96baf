# SPDX-License-Identifier: Apache-2.0
"""PREEMPT AND ABORT waits for running commands and ends long ones early, and two that preempt each other both end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from target.scsi.reservations.persistent_reservation import ReservationType
from target.scsi.task import Task
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import CHECK, GOOD, Bench, Initiator, attention_of, cdb10, cdb16, result_of
from tests.target.scsi.reservations.requests import (
    BLOCK,
    CONFLICT,
    PREEMPT,
    PREEMPT_AND_ABORT,
    RESERVE,
    out,
    registered,
)

WERO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
SECONDS = 30


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(state_dir=tmp_path, device=MemoryDevice(256 << 20))


class Stop:
    """A stop that holds the device's first operation of a kind until `let_go` is set."""

    def __init__(self, bench: Bench, method: str) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()
        self._method, self._device = method, bench.device
        bench.device.before = self

    def __call__(self, method: str, offset: int, length: int) -> None:
        if method == self._method and not self.reached.is_set():
            self.reached.set()
            assert self.let_go.wait(SECONDS)


def started(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def begin(initiator: Initiator, cdb: bytes, data: bytes) -> tuple[Task, threading.Thread]:
    task = initiator.task(cdb, data)
    return task, started(lambda: initiator.nexus.execute(task, nowait=False))


def two_nodes(bench: Bench) -> tuple[Initiator, Initiator]:
    one, two = bench.login("iqn.2026-11.x:one", "01"), bench.login("iqn.2026-11.x:two", "02")
    registered(one, two)
    assert out(one, RESERVE, 1, kind=WERO).status == GOOD
    return one, two


def test_preempt_and_abort_waits_for_a_running_write(bench: Bench) -> None:
    one, two = two_nodes(bench)
    stop = Stop(bench, "writev")
    task, writing = begin(one, cdb10(0x2A, 0, 1), BLOCK)
    assert stop.reached.wait(SECONDS)
    done = threading.Event()

    def preempt() -> None:
        assert out(two, PREEMPT_AND_ABORT, 2, 1, WERO).status == GOOD
        assert bench.device.data[:512] == BLOCK
        done.set()

    preempting = started(preempt)
    while not task.cleared:
        assert preempting.is_alive()
    # In force at once for every command but those that already run.
    assert attention_of(one) == 0x2A05
    assert one.run(cdb10(0x2A, 8, 1), BLOCK).status == CONFLICT
    assert not done.is_set()
    stop.let_go.set()
    preempting.join(SECONDS)
    writing.join(SECONDS)
    assert done.is_set()
    assert result_of(task).status == GOOD
    assert not task.cleared  # because the fabric may use the task again
    assert attention_of(one) == 0x2F00
    assert bench.device.data[8 * 512 : 9 * 512] == bytes(512)


def test_plain_preempt_does_not_wait(bench: Bench) -> None:
    one, two = two_nodes(bench)
    stop = Stop(bench, "writev")
    task, writing = begin(one, cdb10(0x2A, 0, 1), BLOCK)
    assert stop.reached.wait(SECONDS)
    assert out(two, PREEMPT, 2, 1, WERO).status == GOOD
    stop.let_go.set()
    writing.join(SECONDS)
    assert result_of(task).status == GOOD


def test_preempt_and_abort_ends_a_long_command_early(bench: Bench) -> None:
    one, two = two_nodes(bench)
    stop = Stop(bench, "write_zeroes")
    blocks = bench.unit.blocks
    task, writing = begin(one, cdb16(0x93, 0, blocks), bytes(512))  # in steps of 64 MiB
    assert stop.reached.wait(SECONDS)
    preempting = started(lambda: out(two, PREEMPT_AND_ABORT, 2, 1, WERO))
    while not task.cleared:
        assert preempting.is_alive()
    stop.let_go.set()
    preempting.join(SECONDS)
    writing.join(SECONDS)
    result = result_of(task)
    assert (result.status, result.key, result.asc) == (CHECK, 0xB, 0x2F00)  # its initiator tries again, and is refused
    assert bench.device.calls["write_zeroes"] == 1


def test_two_ports_that_preempt_each_other_both_end(bench: Bench) -> None:
    for number in range(200):
        one, two = (
            bench.login("iqn.2026-11.x:one", f"{number:012x}"),
            bench.login("iqn.2026-11.x:two", f"{number:012x}"),
        )
        registered(one, two)
        barrier = threading.Barrier(2)
        statuses: list[int] = []

        def preempt(
            initiator: Initiator, own: int, other: int, barrier: threading.Barrier, statuses: list[int]
        ) -> None:
            barrier.wait(SECONDS)
            result = out(initiator, PREEMPT_AND_ABORT, own, other, WERO)
            statuses.append(result.status)

        threads = [
            started(lambda barrier=barrier, statuses=statuses, one=one: preempt(one, 1, 2, barrier, statuses)),  # type: ignore[misc]  # mypy cannot infer defaults of a lambda
            started(lambda barrier=barrier, statuses=statuses, two=two: preempt(two, 2, 1, barrier, statuses)),  # type: ignore[misc]  # likewise
        ]
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert statuses.count(GOOD) == 1  # the other one was no longer registered, or was cleared
        assert len(bench.unit.reservations.state.keys) == 1
        survivor = one if one.nexus.port in bench.unit.reservations.state.keys else two
        assert out(survivor, 3, 1 if survivor is one else 2).status == GOOD
        bench.target.close_nexus(one.nexus)
        bench.target.close_nexus(two.nexus)


def test_an_administrator_that_removes_a_registration_waits_for_its_running_write(bench: Bench) -> None:
    one, _ = two_nodes(bench)
    stop = Stop(bench, "writev")
    task, writing = begin(one, cdb10(0x2A, 0, 1), BLOCK)
    assert stop.reached.wait(SECONDS)
    done = threading.Event()

    def remove() -> None:
        bench.unit.reservations.remove(lambda port: port == one.nexus.port)
        assert bench.device.data[:512] == BLOCK
        done.set()

    removing = started(remove)
    while not task.cleared:
        assert removing.is_alive()
    assert not done.is_set()
    stop.let_go.set()
    removing.join(SECONDS)
    writing.join(SECONDS)
    assert done.is_set()
