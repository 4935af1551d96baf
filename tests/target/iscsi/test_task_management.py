# SPDX-License-Identifier: Apache-2.0
"""Task management: the commands each function aborts, in which sessions, and its response."""

from __future__ import annotations

from uuid import UUID

import pytest

from target.iscsi.pdu import NO_TAG, Opcode
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.nexus import Reach
from target.scsi.task import Status
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import (
    MIB,
    PATTERN,
    TARGET,
    Connect,
    FakePortal,
    Initiator,
    Reply,
    read10,
    write10,
)


def task_management(initiator: Initiator, function: int, *, referenced: int = NO_TAG, lun: int = 0) -> list[Reply]:
    return initiator.feed(
        initiator.request(
            Opcode.TASK_MANAGEMENT_REQUEST, 0x80 | function, itt=500, word20=referenced, immediate=True, lun=lun << 48
        )
    )


def test_a_running_task_is_aborted_when_it_ends(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    device.blocking = True
    initiator.feed(initiator.command(read10(0, 1), read=512, itt=1) + initiator.command(read10(1, 1), read=512, itt=2))
    assert task_management(initiator, 1, referenced=1) == [], "not before it is quiet"
    replies = initiator.run_blocked()
    assert [(reply.opcode, reply.itt) for reply in replies] == [(0x22, 500), (0x25, 2)]
    assert replies[0].response == 0


def test_a_task_that_waits_for_data_is_aborted_at_once(connect: Connect, device: MemoryDevice) -> None:
    before = bytes(device.data[:1024])
    initiator = connect()
    (r2t,) = initiator.feed(initiator.command(write10(0, 2), write=1024, itt=1))
    (reply,) = task_management(initiator, 1, referenced=1)
    assert (reply.opcode, reply.response) == (0x22, 0)
    assert initiator.feed(initiator.data_out(1, r2t.word20, 0, 0, b"z" * 1024, final=True)) == []
    assert device.data[:1024] == before
    assert initiator.connection.tasks.outstanding == 0


@pytest.mark.parametrize(
    ("function", "lun", "response"),
    [(1, 0, 1), (2, 0, 0), (2, 9, 2), (4, 0, 0), (5, 0, 0), (5, 9, 2), (6, 0, 0), (7, 0, 5), (8, 0, 4), (3, 0, 5)],
)
def test_each_function_has_its_response(connect: Connect, function: int, lun: int, response: int) -> None:
    (reply,) = task_management(connect(), function, referenced=4711, lun=lun)
    assert (reply.opcode, reply.response, reply.itt) == (0x22, response, 500)


@pytest.mark.parametrize(("function", "others"), [(2, False), (4, True), (5, True), (6, True)])
def test_each_function_aborts_the_tasks_of_the_right_sessions(
    connect: Connect, device: MemoryDevice, function: int, others: bool
) -> None:
    one, two = connect(), connect()
    device.blocking = True
    for initiator in (one, two):
        initiator.feed(initiator.command(read10(0, 1), read=512, itt=1))
    assert task_management(one, function) == []
    assert (two.connection.tasks.blocked[0].task.aborted, one.connection.tasks.blocked[0].task.aborted) == (
        others,
        True,
    )
    (answer,) = two.run_blocked()
    assert answer.status == (Status.TASK_ABORTED if others else Status.GOOD)
    (managed,) = one.run_blocked()  # and no answer to the command, which it ended itself
    assert managed.opcode == Opcode.TASK_MANAGEMENT_RESPONSE


@pytest.mark.parametrize("function", [4, 5, 6])
def test_a_unit_is_reset_under_the_lun_of_each_session(
    connect: Connect, portal: FakePortal, device: MemoryDevice, function: int
) -> None:
    """Commands of another session on the same LUN but another unit continue."""
    target = portal.targets[TARGET]
    other_device = MemoryDevice(MIB)
    target.add_lun(
        1, LogicalUnit(other_device, uuid=UUID(int=9), kind=UnitKind.PRIMARY, name="other", commands=table.for_unit)
    )
    one, two = connect(), connect()
    target.change_view(one.nexus, lambda number, unit: [Reach(0)] if number == 0 else [])
    target.change_view(two.nexus, lambda number, unit: [Reach(1 - number)])
    for initiator, luns in ((one, (0,)), (two, (0, 1))):
        for lun in luns:
            for _ in range(4):
                initiator.feed(initiator.command(bytes(6), lun=lun))
    device.blocking = other_device.blocking = True
    two.feed(two.command(read10(0, 1), read=512, itt=10, lun=0))
    two.feed(two.command(read10(0, 1), read=512, itt=11, lun=1))
    for lun in (0, 1):
        assert two.feed(two.command(write10(0, 1), write=512, itt=20 + lun, lun=lun))[0].opcode == Opcode.R2T
    assert task_management(one, function) == []  # it waits for the running command
    assert {command.itt: command.task.aborted for command in two.connection.tasks.blocked} == {10: False, 11: True}
    assert set(two.connection.tasks.commands) == {10, 11, 20}
    assert [(reply.itt, reply.status) for reply in two.run_blocked()] == [
        (21, Status.TASK_ABORTED),
        (10, Status.GOOD),
        (11, Status.TASK_ABORTED),
    ]
    assert [(reply.itt, reply.response) for reply in one.take()] == [(500, 0)]
    device.blocking = False
    (reply,) = two.feed(two.command(bytes(6), lun=1))
    assert (reply.status, reply.data[14:16]) == (2, b"\x2f\0" if function == 4 else b"\x29\x03")
    (fine,) = two.feed(two.command(bytes(6), lun=0))
    assert fine.status == 0


def test_a_session_that_loses_only_waiting_commands_gets_the_attention(connect: Connect) -> None:
    one, two = connect(), connect()
    (r2t,) = two.feed(two.command(write10(0, 1), write=512, itt=1))
    assert r2t.opcode == Opcode.R2T
    assert [reply.response for reply in task_management(one, 4)] == [0]
    assert not two.connection.tasks.commands
    (aborted, reply) = two.feed(two.command(bytes(6)))
    assert (aborted.itt, aborted.status) == (1, Status.TASK_ABORTED)
    assert (reply.status, reply.data[14:16]) == (2, b"\x2f\0")


@pytest.mark.parametrize("function", [1, 2, 5])
def test_a_command_ahead_of_its_turn_is_aborted_too(connect: Connect, device: MemoryDevice, function: int) -> None:
    initiator = connect()
    sn = initiator.cmd_sn
    initiator.feed(initiator.command(write10(0, 1), write=512, data=bytes(512), itt=2, cmd_sn=sn + 1))
    tail = (sn + 1).to_bytes(4) + bytes(12)
    initiator.cmd_sn = sn
    (reply,) = initiator.feed(
        initiator.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x80 | function, itt=500, word20=2, immediate=True, tail=tail)
    )
    assert (reply.itt, reply.response) == (500, 0)
    replies = initiator.feed(initiator.command(read10(0, 1), read=512, itt=1))
    assert [reply.itt for reply in replies] == [1]
    (pong,) = initiator.feed(initiator.request(Opcode.NOP_OUT, itt=3, cmd_sn=sn + 2))
    assert pong.exp_cmd_sn == sn + 3  # it had its turn, and was not executed
    assert pong.max_cmd_sn == sn + 2 + initiator.host.limits.queue_depth
    assert bytes(device.data[:512]) == PATTERN[:512]


@pytest.mark.parametrize(("function", "response"), [(2, 0), (4, 6), (5, 6), (6, 6)])
def test_an_initiator_that_may_only_read_ends_no_command_of_others(
    portal: FakePortal, connect: Connect, device: MemoryDevice, function: int, response: int
) -> None:
    owner, reader = connect(), connect()
    target = portal.targets[TARGET]
    target.change_view(reader.nexus, lambda number, unit: (Reach(number, read_only=True),))
    reader.clear_attention()
    assert owner.feed(owner.command(b"\x16" + bytes(5)))[0:] == []
    assert [reply.status for reply in owner.run_blocked()] == [0]
    device.blocking = True
    owner.feed(owner.command(write10(0, 1), write=512, data=bytes(512), itt=1))
    (reply,) = task_management(reader, function)
    assert reply.response == response
    assert [answer.status for answer in owner.run_blocked()] == [0]
    (conflict,) = reader.feed(reader.command(read10(0, 1), read=512))
    assert conflict.status == 0x18, "the owner's RESERVE is still there"


def test_target_reset_resets_the_units_that_the_initiator_may_write(connect: Connect, portal: FakePortal) -> None:
    owner, other = connect(), connect()
    target = portal.targets[TARGET]
    target.add_lun(
        1, LogicalUnit(MemoryDevice(), uuid=UUID(int=9), kind=UnitKind.PRIMARY, name="b", commands=table.for_unit)
    )
    target.change_view(other.nexus, lambda number, unit: (Reach(number, read_only=number == 0),))
    for _ in range(4):
        owner.clear_attention()
    (reply,) = task_management(other, 6)
    assert reply.response == 0
    attentions = [itl.attentions for itl in owner.nexus.reached]
    assert [0x2903 in pending for pending in attentions] == [False, True]
