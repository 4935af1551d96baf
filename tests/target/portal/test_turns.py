# SPDX-License-Identifier: Apache-2.0
"""A limited LUN behind a real portal: commands wait, sessions take turns, and nothing waits for ever."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from target.iscsi.pdu import NO_TAG, Opcode
from target.portal.portal import Portal
from target.scsi.limits import Bucket, Rate
from target.scsi.logical_unit import LogicalUnit
from target.scsi.task import Status
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, make_target, read10, write10
from tests.target.portal.test_portal import Client, wait_for
from tests.target.scsi.test_limits import Clock

MIB = 1 << 20


class Limited:
    """A portal with a LUN that takes two commands per second of a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        target = make_target(MemoryDevice(MIB))
        self.unit: LogicalUnit = target.luns[0]
        self.portal = Portal("127.0.0.1", 0, {TARGET: target}, workers=2)
        self.portal.start()
        self.clients: list[Client] = []

    def client(self, isid: int) -> Client:
        """Log in, before the limit is set."""
        client = Client(self.portal, isid=isid)
        client.settle()
        self.clients.append(client)
        return client

    def limit(self, iops: int = 2) -> Bucket:
        bucket = Bucket(Rate(iops, None, 1.0), self.clock)
        self.unit.limit(bucket)
        return bucket


@pytest.fixture
def limited() -> Iterator[Limited]:
    limited = Limited()
    yield limited
    limited.unit.limit(None)
    limited.portal.close(0)


def read(client: Client, count: int = 1) -> None:
    client.send(b"".join(client.make.command(read10(0, 1), read=512) for _ in range(count)))


def answers(client: Client, count: int) -> None:
    """Wait for so many answers."""
    for _ in range(count):
        reply = client.reply()
        assert reply.opcode in (Opcode.DATA_IN, Opcode.SCSI_RESPONSE)
        assert reply.status == Status.GOOD


def _waits(bucket: Bucket, commands: int) -> bool:
    return bucket.waiting == commands


def test_commands_beyond_the_limit_wait_for_the_clock(limited: Limited) -> None:
    client = limited.client(1)
    bucket = limited.limit()
    read(client, 3)
    client.send(client.make.command(write10(0, 1), write=512, data=b"n" * 512))
    answers(client, 2)
    wait_for(lambda: bucket.waiting == 2)
    limited.clock.now += 0.5
    answers(client, 1)
    assert bucket.waiting == 1
    limited.clock.now += 10
    answers(client, 1)
    assert bucket.waiting == 0
    assert bucket.limited == 2
    assert bucket.seconds == pytest.approx(0.5 + 10.5)


def test_sessions_take_turns(limited: Limited) -> None:
    """One asks for twelve commands, then another one for three: after six, both have had three."""
    many, few = limited.client(1), limited.client(2)
    bucket = limited.limit(iops=1)
    read(many, 1)
    answers(many, 1)
    read(many, 12)
    wait_for(lambda: bucket.waiting == 12)
    read(few, 3)
    wait_for(lambda: bucket.waiting == 15)
    for left in range(14, 8, -1):
        limited.clock.now += 1.0
        wait_for(functools.partial(_waits, bucket, left))
    answers(few, 3)
    answers(many, 3)


def test_limit_that_is_lifted_lets_all_go(limited: Limited) -> None:
    client = limited.client(1)
    bucket = limited.limit()
    read(client, 8)
    wait_for(lambda: bucket.waiting == 6)
    limited.unit.limit(None)
    answers(client, 8)
    assert bucket.waiting == 0


def test_aborted_commands_wait_no_longer(limited: Limited) -> None:
    client = limited.client(1)
    bucket = limited.limit()
    read(client, 6)
    answers(client, 2)
    wait_for(lambda: bucket.waiting == 4)
    client.send(client.make.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x82, itt=500, word20=NO_TAG, immediate=True))
    assert client.reply().opcode == Opcode.TASK_MANAGEMENT_RESPONSE
    assert bucket.waiting == 0


def test_session_that_ends_leaves_nothing_behind(limited: Limited) -> None:
    lost, other = limited.client(1), limited.client(2)
    bucket = limited.limit()
    read(lost, 6)
    answers(lost, 2)
    wait_for(lambda: bucket.waiting == 4)
    lost.sock.close()
    wait_for(lambda: bucket.waiting == 0)
    limited.clock.now += 1.0
    read(other)
    answers(other, 1)
