# SPDX-License-Identifier: Apache-2.0
"""Logins and task management wait for the commands that run, even if the sessions of these commands were lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from lun_backends.block_device import BlockDevice
from lun_backends.copy_on_write import CopyOnWrite
from target.iscsi.limits import Limits
from target.iscsi.pdu import NO_TAG, Opcode, TaskManagementFunction
from target.portal.portal import Portal
from target.scsi.nexus import sees_nothing
from tests.lun_backends.memory_side import MemorySide
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, make_target, read10, write10
from tests.target.portal.test_portal import Client, wait_for

MIB = 1 << 20
OLD, NEW = b"o" * 512, b"n" * 512
SLOW = 8  # the LBA that is slow to write
LOGIN_SECONDS = 0.5


class SlowBlock:
    """A disk that holds each write of the block `SLOW` with data OLD until `answer` is set."""

    def __init__(self, device: MemoryDevice) -> None:
        self.reached, self.answer = threading.Semaphore(0), threading.Event()
        device.before = self

    def __call__(self, method: str, offset: int, length: int) -> bool:
        if method == "writev" and offset == SLOW * 512 and not self.answer.is_set():
            if threading.current_thread().name == "iscsi-portal":
                return False  # it would wait
            self.reached.release()
            assert self.answer.wait(20)
        return True


class Lab:
    """A portal with one LUN on a slow disk."""

    def __init__(self, portal: Portal, primary: MemoryDevice, slow: SlowBlock) -> None:
        self.portal, self.primary, self.slow = portal, primary, slow

    def lose_a_write(self, isid: int = 1) -> None:
        """Log in, write, and hang up while a worker waits for the disk."""
        others = len(self.portal.sessions())
        client = Client(self.portal, isid=isid)
        client.settle()
        client.send(client.make.command(write10(SLOW, 1), write=512, data=OLD))
        assert self.slow.reached.acquire(timeout=20)
        client.sock.close()
        wait_for(lambda: len(self.portal.sessions()) == others)

    def content(self) -> bytes:
        return bytes(self.primary.data[SLOW * 512 : SLOW * 512 + 512])


def plain(primary: MemoryDevice) -> BlockDevice:
    return primary


def with_a_snapshot(primary: MemoryDevice) -> BlockDevice:
    device = CopyOnWrite(primary, 4096)
    device.arm(MemorySide(MIB))
    return device


@pytest.fixture(params=[plain, with_a_snapshot])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    primary = MemoryDevice(MIB)
    slow = SlowBlock(primary)
    stack: Callable[[MemoryDevice], BlockDevice] = request.param
    portal = Portal(
        "127.0.0.1", 0, {TARGET: make_target(stack(primary))}, limits=Limits(login_seconds=LOGIN_SECONDS), workers=4
    )
    portal.start()
    with ExitStack() as closing:
        closing.callback(portal.close, 0)
        closing.callback(slow.answer.set)
        yield Lab(portal, primary, slow)


def log_in(lab: Lab, isid: int = 1) -> Client:
    """Send a login request, and do not wait for the answer."""
    client = Client(lab.portal, log_in=False)
    client.send(
        client.make.login_request(0x87, [("InitiatorName", client.make.name), ("TargetName", TARGET)], isid=isid)
    )
    return client


def silent(client: Client, seconds: float = 0.2) -> bool:
    """Return whether no answer comes for that long."""
    client.sock.settimeout(seconds)
    try:
        client.reply()
    except TimeoutError:
        return True
    finally:
        client.sock.settimeout(20)
    return False


def write(client: Client, data: bytes) -> int:
    return client.ask(client.make.command(write10(SLOW, 1), write=512, data=data)).status


def test_the_login_after_a_lost_session_waits_for_its_write(lab: Lab) -> None:
    other = Client(lab.portal, isid=9)
    other.settle()
    lab.lose_a_write()
    again = log_in(lab)
    assert silent(again, LOGIN_SECONDS + 1.5), "not even the time limit of logins answers it"
    assert other.ask(other.make.command(read10(0, 1), read=512)).status == 0, "the other sessions are served"
    assert len(lab.portal.sessions()) == 1
    lab.slow.answer.set()
    assert again.reply().words[0] == 0
    again.settle()
    assert lab.content() == OLD
    assert write(again, NEW) == 0
    assert lab.content() == NEW
    assert not lab.portal._lost


def test_a_login_that_waits_is_replaced_by_the_next_one(lab: Lab) -> None:
    """An initiator that abandons a login tries again.  In the end it has one session."""
    lab.lose_a_write()
    first, second = log_in(lab), log_in(lab)
    assert first.hung_up()
    assert silent(second)
    gone = log_in(lab)
    assert second.hung_up()
    gone.sock.close()
    third = log_in(lab)
    lab.slow.answer.set()
    assert third.reply().words[0] == 0
    third.settle()
    assert len(lab.portal.sessions()) == 1
    wait_for(lambda: len(lab.portal.targets[TARGET].nexuses) == 1)


def test_another_port_need_not_wait(lab: Lab) -> None:
    lab.lose_a_write(isid=1)
    Client(lab.portal, isid=2).settle()


@pytest.mark.parametrize(
    "function",
    [
        TaskManagementFunction.CLEAR_TASK_SET,
        TaskManagementFunction.LOGICAL_UNIT_RESET,
        TaskManagementFunction.TARGET_WARM_RESET,
    ],
)
def test_task_management_waits_for_the_write_of_a_lost_session(lab: Lab, function: int) -> None:
    fencer = Client(lab.portal, isid=2)
    fencer.settle()
    lab.lose_a_write(isid=1)
    fencer.send(
        fencer.make.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x80 | function, itt=500, word20=NO_TAG, immediate=True)
    )
    assert silent(fencer)
    lab.slow.answer.set()
    answer = fencer.reply()
    assert (answer.opcode, answer.response) == (Opcode.TASK_MANAGEMENT_RESPONSE, 0)
    assert lab.content() == OLD
    fencer.settle()
    assert write(fencer, NEW) == 0
    assert lab.content() == NEW


def test_a_reset_waits_for_a_command_on_a_unit_that_its_session_sees_no_longer(lab: Lab) -> None:
    fencer, writer = Client(lab.portal, isid=2), Client(lab.portal, isid=1)
    fencer.settle()
    writer.settle()
    writer.send(writer.make.command(write10(SLOW, 1), write=512, data=OLD))
    assert lab.slow.reached.acquire(timeout=20)
    target = lab.portal.targets[TARGET]
    nexus = next(nexus for nexus in target.nexuses if nexus.tag.endswith("1"))
    change = threading.Thread(target=target.change_view, args=(nexus, sees_nothing))
    change.start()
    wait_for(lambda: not nexus.units)
    fencer.send(fencer.make.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x85, itt=500, word20=NO_TAG, immediate=True))
    assert silent(fencer)
    lab.slow.answer.set()
    assert fencer.reply().response == 0
    change.join(20)
    assert not change.is_alive()
