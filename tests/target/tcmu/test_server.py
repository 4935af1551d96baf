# SPDX-License-Identifier: Apache-2.0
"""The loop over rings and its workers, with rings in memory and an eventfd in the place of each UIO device."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from lun_backends import in_place
from lun_backends.block_device import WouldBlock
from target.scsi.task import Task
from target.tcmu import server as module
from target.tcmu.ring import Ring, RingTask, Run
from target.tcmu.server import Served, Server
from tests.target.tcmu import kernel_side
from tests.target.tcmu.kernel_side import KernelSide

QUICK, SLOW, PREPARED, PLAIN = 0x12, 0x35, 0x2A, 0x28


class Executor:
    """Runs commands by their opcode: QUICK at once, SLOW on a worker once `let` is set, PREPARED after `prepare`."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.executed: list[tuple[int, str]] = []
        self.prepared: list[list[int]] = []
        self.prepares_at_once = False
        self.running = 0
        self.fails = self.prepare_fails = False
        self.disk: Disk | None = None
        self._ready: set[int] = set()

    def execute(self, task: Task, *, nowait: bool) -> None:
        assert isinstance(task, RingTask)
        opcode = task.cdb[0]
        if nowait and (opcode == SLOW or (opcode == PREPARED and task.command_id not in self._ready)):
            raise WouldBlock
        if self.fails:
            raise RuntimeError("the test's fault")
        if self.disk is not None:
            self.disk.call()
        if opcode == SLOW:
            self.running += 1
            assert self.let.wait(60)
        self.executed.append((task.command_id, threading.current_thread().name.split("_")[0]))
        task.status, task.sense = 0, b""

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        if nowait and not self.prepares_at_once:
            return False
        if self.prepare_fails:
            raise RuntimeError("the test's fault")
        ids = [task.command_id for task in tasks if isinstance(task, RingTask)]
        self.prepared.append(ids)
        self._ready.update(ids)
        return True


class Device:
    """A ring with the kernel's side of it, and the event that wakes the server."""

    def __init__(self) -> None:
        self.kernel = KernelSide(4096)
        self.executor = Executor()
        self.ran_alone: list[int] = []
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.ring = Ring(self.kernel.descriptor, self.kernel.length)
        self.served = Served(self.ring, self.event, self.executor, self._run)
        self.answers: list[int] = []

    def _run(self, memory: memoryview, at: int, buffers: Sequence[memoryview], length: int) -> bool:
        if memory[at] != PLAIN:
            return False
        if self.executor.disk is not None:
            self.executor.disk.call()
        if self.executor.fails:
            raise RuntimeError("the test's fault")
        self.ran_alone.append(memory[at + 1])
        return True

    def put(self, *commands: tuple[int, int]) -> None:
        """Add these (command id, opcode), and wake the server."""
        for command_id, opcode in commands:
            self.kernel.put(command_id, bytes((opcode, command_id)).ljust(16, b"\0"), (512 * command_id, 512))
        os.eventfd_write(self.event, 1)

    def wait(self, number: int) -> list[int]:
        """Wait until that many commands are answered in all, and return their ids in the order of the answers."""
        wait_for(lambda: len(self._collect()) >= number)
        return self.answers

    def _collect(self) -> list[int]:
        self.answers += [response.command_id for response in self.kernel.responses()]
        return self.answers

    def close(self) -> None:
        self.ring.close()
        self.kernel.close()
        os.close(self.event)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():  # the test's own time limit ends this
        time.sleep(0.001)


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server(workers=4)
    started.start()
    yield started
    started.close()


@pytest.fixture
def make(server: Server) -> Iterator[Callable[[], Device]]:
    """Return a function that makes devices; at the end they let their commands go, and leave the server."""
    with contextlib.ExitStack() as stack:

        def one() -> Device:
            device = Device()
            stack.callback(device.close)
            stack.callback(lambda: server.remove(device.served, time.monotonic() + 30))
            stack.callback(device.executor.let.set)
            return device

        yield one


@pytest.fixture
def device(make: Callable[[], Device], server: Server) -> Device:
    made = make()
    server.add(made.served)
    return made


def test_commands_are_answered_when_the_device_wakes_the_loop(device: Device) -> None:
    device.put((1, QUICK))
    assert device.wait(1) == [1]
    device.put((2, QUICK), (3, QUICK))
    assert device.wait(3) == [1, 2, 3]
    assert device.executor.executed == [(number, "tcmu rings") for number in (1, 2, 3)]


def test_batch_is_answered_with_one_kick(make: Callable[[], Device], server: Server) -> None:
    device = make()
    device.put(*((number, QUICK) for number in range(8)))
    server.add(device.served)
    device.wait(8)
    wait_for(lambda: device.kernel.kicks > 0)  # the answers are there a moment before the kick
    assert device.kernel.kicks == 1


def test_commands_from_before_the_ring_was_added_are_answered(make: Callable[[], Device], server: Server) -> None:
    device = make()
    device.put((1, QUICK))
    assert os.eventfd_read(device.event) == 1  # no edge will come for it
    server.add(device.served)
    assert device.wait(1) == [1]


def test_plain_command_that_comes_alone_does_not_reach_the_executor(device: Device) -> None:
    for number in (1, 2, 3):
        device.put((number, PLAIN))
        device.wait(number)
    assert device.ran_alone == [1, 2, 3]
    assert device.executor.executed == []


def test_slow_command_does_not_hold_up_others(device: Device, make: Callable[[], Device], server: Server) -> None:
    other = make()
    server.add(other.served)
    device.put((1, SLOW), (2, QUICK))
    assert device.wait(1) == [2]
    other.put((3, QUICK))
    assert other.wait(1) == [3]
    device.put((4, QUICK))
    assert device.wait(2) == [2, 4]
    device.executor.let.set()
    assert device.wait(3) == [2, 4, 1]
    assert (1, "tcmu") in device.executor.executed


def test_slow_commands_of_a_batch_run_beside_each_other(make: Callable[[], Device], server: Server) -> None:
    device = make()
    device.put((1, SLOW), (2, SLOW), (3, SLOW))
    server.add(device.served)
    wait_for(lambda: device.executor.running == 3)
    assert device.executor.prepared == [[1, 2, 3]]
    device.executor.let.set()
    assert sorted(device.wait(3)) == [1, 2, 3]


def test_writes_of_a_batch_are_prepared_together_on_a_worker(make: Callable[[], Device], server: Server) -> None:
    device = make()
    device.put((1, PREPARED), (2, QUICK), (3, PREPARED))
    server.add(device.served)
    assert sorted(device.wait(3)) == [1, 2, 3]
    assert device.executor.prepared == [[1, 3]]
    assert [thread for number, thread in device.executor.executed if number != 2] == ["tcmu", "tcmu"]


def test_writes_that_can_be_prepared_at_once_stay_on_the_loop(device: Device) -> None:
    device.executor.prepares_at_once = True
    device.put((1, PREPARED), (2, PREPARED))
    assert device.wait(2) == [1, 2]
    assert device.executor.executed == [(1, "tcmu rings"), (2, "tcmu rings")]


def test_removed_ring_is_empty_and_no_longer_served(device: Device, server: Server) -> None:
    device.put((1, QUICK))
    assert server.remove(device.served, time.monotonic() + 60)
    assert device.wait(1) == [1]
    device.put((2, QUICK))
    server.add(Served(device.ring, device.event, device.executor, device.served.run))
    assert device.wait(2) == [1, 2]  # only the new registration has served it


def test_removal_waits_for_running_commands(device: Device, server: Server) -> None:
    device.put((1, SLOW))
    wait_for(lambda: device.executor.running == 1)
    threading.Timer(0.05, device.executor.let.set).start()
    assert server.remove(device.served, time.monotonic() + 60)
    assert device.wait(1) == [1]


def test_ring_that_does_not_become_empty_is_left_at_the_deadline(device: Device, server: Server) -> None:
    device.put((1, SLOW))
    wait_for(lambda: not device.ring.idle)
    assert not server.remove(device.served, time.monotonic() + 0.05)
    device.executor.let.set()
    assert device.wait(1) == [1]


def test_ring_that_breaks_the_rules_is_given_up_and_others_are_served(
    device: Device, make: Callable[[], Device], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    other = make()
    server.add(other.served)
    device.kernel.put_header(kernel_side.COMMAND, 64, claimed=8192)
    device.put()
    wait_for(lambda: device.served.broken)
    assert "entry of 8192 bytes at 0 in a ring of 4096; the device is no longer served" in caplog.text
    other.put((1, QUICK))
    assert other.wait(1) == [1]
    assert not server.remove(device.served, time.monotonic() + 60)  # at once: a broken ring is not waited for


@pytest.mark.parametrize("opcode", [QUICK, SLOW])
def test_error_ends_the_service_of_its_ring_and_of_no_other(
    make: Callable[[], Device], server: Server, caplog: pytest.LogCaptureFixture, opcode: int
) -> None:
    """It comes up on the loop, or on a worker."""
    device, other = make(), make()
    server.add(device.served)
    server.add(other.served)
    device.executor.let.set()
    device.executor.fails = True
    device.put((1, opcode))
    wait_for(lambda: device.served.broken)
    assert "a device is no longer served, because of an error" in caplog.text
    other.put((2, QUICK))
    assert other.wait(1) == [2]


def test_error_in_a_ring_that_is_looked_at_first_ends_its_service(
    make: Callable[[], Device], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loop does not sleep, it looks at the ring that was busy last in a way of its own."""
    monkeypatch.setattr(module, "SPIN_SECONDS", 600)
    device, other = make(), make()
    server.add(device.served)
    server.add(other.served)
    for number in (1, 2, 3):
        device.put((number, PLAIN))
        device.wait(number)
    answer_alone = device.ring.answer_alone

    def fails_while_it_looks(run: Run, looks: int, turns: int) -> int:
        if looks:
            raise RuntimeError("the test's fault")
        return answer_alone(run, looks, turns)

    monkeypatch.setattr(device.ring, "answer_alone", fails_while_it_looks)
    wait_for(lambda: device.served.broken)
    other.put((5, QUICK))
    assert other.wait(1) == [5]


def test_error_while_writes_are_prepared_together_fails_none_of_them(
    make: Callable[[], Device], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    device = make()
    device.executor.prepare_fails = True
    device.put((1, SLOW), (2, SLOW))
    server.add(device.served)
    device.executor.let.set()
    assert sorted(device.wait(2)) == [1, 2]
    assert "writes could not be prepared together" in caplog.text


def test_loop_beats_though_nothing_comes(server: Server) -> None:
    first = server.pulse._last
    wait_for(lambda: server.pulse._last > first)
    second = server.pulse._last
    wait_for(lambda: server.pulse._last > second)


class Disk:
    """A disk that makes a call in place wait until it answers; the `in_place.Caller` of that call."""

    executes = True

    def __init__(self) -> None:
        self.began = 0.0
        self.trusted = True
        self.answer = threading.Event()

    def distrust(self) -> None:
        self.trusted = False

    def call(self) -> None:
        """Make a call in place, if the calling thread may."""
        loop = in_place.current()
        if not self.trusted or not loop.open:
            return
        self.began = time.monotonic()
        loop.enter(self)
        try:
            assert self.answer.wait(60)
        finally:
            loop.leave()


@pytest.mark.parametrize("alone", [True, False])
def test_disk_that_makes_the_loop_wait_holds_up_its_own_ring_only(
    make: Callable[[], Device], server: Server, alone: bool
) -> None:
    """Another thread goes on as the loop, and has the ring again when the disk has answered."""
    device, other, disk = make(), make(), Disk()
    server.add(device.served)
    server.add(other.served)
    device.executor.disk = disk
    if alone:
        device.put((1, PLAIN))
    else:
        device.put((1, QUICK), (2, QUICK))
    wait_for(lambda: not disk.trusted)
    for number in range(1, 4):
        other.put((number, QUICK))
        other.wait(number)
    late = make()
    late.put((1, QUICK))
    server.add(late.served)
    assert late.wait(1) == [1]
    device.put((3, QUICK))
    other.put((4, QUICK))
    other.wait(4)
    assert device._collect() == []  # the thread in the call keeps the ring
    disk.answer.set()
    assert sorted(device.wait(2 if alone else 3)) == ([1, 3] if alone else [1, 2, 3])
    wait_for(lambda: not device.served.lent and not server._relieved)
    device.put((4, QUICK))
    device.wait(3 if alone else 4)


def test_closing_waits_for_a_thread_that_was_relieved() -> None:
    server, device, disk = Server(), Device(), Disk()
    server.start()
    server.add(device.served)
    device.executor.disk = disk
    device.put((1, QUICK))
    wait_for(lambda: not disk.trusted)
    server.remove(device.served, 0.0)
    closing = threading.Thread(target=server.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    disk.answer.set()
    closing.join(60)
    assert not closing.is_alive()
    device.close()
