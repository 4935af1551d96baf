# SPDX-License-Identifier: Apache-2.0
"""Slow and greedy peers: they cost a bounded amount of memory, and are dropped with a reason in the log."""

from __future__ import annotations

import logging

import pytest

from target.iscsi import pdu
from target.iscsi.connection import State
from target.iscsi.limits import Limits
from target.iscsi.pdu import NO_TAG, Opcode
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, FakePortal, Initiator, make_target, read10, write10

MIB = 1 << 20
LIMITS = Limits()


@pytest.fixture
def peer() -> Initiator:
    peer = Initiator(FakePortal({TARGET: make_target(MemoryDevice(4 * MIB))}))
    peer.log_in(("InitialR2T", "Yes"), ("ImmediateData", "No"))
    peer.clear_attention()
    return peer


def pass_time(peer: Initiator, seconds: float) -> None:
    """Let time pass in steps of one second; answer pings, so that the session counts as alive."""
    for _ in range(int(seconds)):
        if peer.connection.finished:
            return
        peer.now += 1.0
        peer.connection.tick(peer.now)
        peer.take()


def keep_alive(peer: Initiator, seconds: float) -> None:
    """Let time pass like `pass_time`, with a NOP-Out every second."""
    for _ in range(int(seconds)):
        if not peer.connection.finished:
            pass_time(peer, 1)
            peer.feed(peer.request(Opcode.NOP_OUT, itt=7, immediate=True))


def test_a_pdu_at_one_byte_a_second_ends_the_session(peer: Initiator, caplog: pytest.LogCaptureFixture) -> None:
    request = peer.command(read10(0, 1), read=512)
    for byte in request[:-1]:
        peer.feed(bytes([byte]))
        pass_time(peer, 1)
    assert peer.connection.state is State.FULL_FEATURE
    for _ in range(int(LIMITS.stall_seconds) - len(request) + 3):
        pass_time(peer, 1)
        peer.connection.receive(memoryview(bytearray(request[:-1])), len(request) - 1, peer.now)  # still the same PDU
    assert peer.connection.finished
    assert "a PDU was not finished within 60 s" in caplog.text


def test_large_data_at_one_byte_a_second_ends_the_session(peer: Initiator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (r2t,) = peer.feed(peer.command(write10(0, 256), write=131072, itt=9))
    bhs = pdu.DATA_OUT.pack(Opcode.DATA_OUT, pdu.FINAL, 0, 131072, 0, 9, r2t.word20, 0, 0, 0, 0, 0)
    peer.feed(bhs)
    assert len(peer.connection.tasks.direct) == 131072
    for _ in range(int(LIMITS.stall_seconds) + 2):
        if not peer.connection.finished:
            peer.connection.tasks.direct[:1] = b"x"
            peer.connection.received_direct(1, peer.now)
            pass_time(peer, 1)
    assert peer.connection.finished
    assert "a PDU was not finished" in caplog.text


def test_answers_that_are_never_taken_end_the_session(peer: Initiator, caplog: pytest.LogCaptureFixture) -> None:
    """The peer keeps sending requests, but too few to congest the session."""
    connection = peer.connection
    stream = peer.command(read10(0, 8), read=4096)
    nop = peer.request(Opcode.NOP_OUT, immediate=True)
    for second in range(int(LIMITS.stall_seconds) + 3):
        if not connection.finished:
            connection.receive(memoryview(bytearray(stream)), len(stream), peer.now)
            stream = nop
            peer.now += 1
            connection.tick(peer.now)
            assert connection.finished is (second > LIMITS.stall_seconds)
    assert connection.finished
    assert "no answer was taken within 60 s" in caplog.text


def test_answers_taken_slowly_are_waited_for(peer: Initiator) -> None:
    connection = peer.connection
    request = peer.command(read10(0, 8), read=4096)
    connection.receive(memoryview(bytearray(request)), len(request), peer.now)
    for _ in range(3 * int(LIMITS.stall_seconds)):
        connection.output.gather(1)
        connection.output.sent(1)
        peer.now += 1
        connection.tick(peer.now)
        nop = peer.request(Opcode.NOP_OUT, immediate=True)
        connection.receive(memoryview(bytearray(nop)), len(nop), peer.now)
    assert connection.state is State.FULL_FEATURE


@pytest.mark.parametrize("sent", [0, 1])
def test_data_out_that_never_ends_ends_the_session(
    peer: Initiator, caplog: pytest.LogCaptureFixture, sent: int
) -> None:
    (r2t,) = peer.feed(peer.command(write10(0, 16), write=8192, itt=9))
    for number in range(sent):
        peer.feed(peer.data_out(9, r2t.word20, number, number * 512, bytes(512), final=False))
    keep_alive(peer, LIMITS.stall_seconds - 1)
    assert peer.connection.state is State.FULL_FEATURE
    keep_alive(peer, 3)
    assert peer.connection.finished
    assert "a command's data did not come within 60 s" in caplog.text


def test_slow_data_out_is_waited_for(peer: Initiator) -> None:
    (r2t,) = peer.feed(peer.command(write10(0, 4), write=2048, itt=9))
    for number in range(4):
        keep_alive(peer, LIMITS.stall_seconds - 5)
        replies = peer.feed(peer.data_out(9, r2t.word20, number, number * 512, bytes(512), final=number == 3))
    assert [reply.status for reply in replies] == [0]


def test_data_that_waits_for_room_is_not_the_peers_fault() -> None:
    peer = Initiator(FakePortal({TARGET: make_target(MemoryDevice(4 * MIB))}, limits=Limits(data_bytes=4096)))
    peer.log_in(("InitialR2T", "Yes"), ("ImmediateData", "No"))
    peer.clear_attention()
    (first,) = peer.feed(peer.command(write10(0, 8), write=4096, itt=8))
    assert not peer.feed(peer.command(write10(8, 8), write=4096, itt=9))
    keep_alive(peer, LIMITS.stall_seconds - 5)
    answers = peer.feed(peer.data_out(8, first.word20, 0, 0, bytes(4096), final=True))
    assert [reply.opcode for reply in answers] == [Opcode.SCSI_RESPONSE, Opcode.R2T] or len(answers) == 2
    keep_alive(peer, LIMITS.stall_seconds - 5)
    assert peer.connection.state is State.FULL_FEATURE


def test_commands_without_their_data_cost_at_most_the_budget(peer: Initiator) -> None:
    limits = peer.host.limits
    for number in range(limits.queue_depth + 50):
        peer.feed(peer.command(write10(0, 2048), write=MIB, itt=1000 + number))
    tasks = peer.connection.tasks
    assert tasks.outstanding <= limits.queue_depth
    assert sum(len(command.solicited) for command in tasks.commands.values()) <= limits.data_bytes


def test_immediate_commands_are_bounded_too(peer: Initiator) -> None:
    limits = peer.host.limits
    rejected = 0
    for number in range(3 * limits.queue_depth):
        replies = peer.feed(peer.command(write10(0, 1), write=512, itt=1000 + number, immediate=True))
        rejected += any(reply.opcode == Opcode.REJECT for reply in replies)
    assert peer.connection.tasks.outstanding <= 2 * limits.queue_depth
    assert rejected
    assert NO_TAG not in peer.connection.tasks.commands


def test_task_management_that_waits_is_bounded_too(caplog: pytest.LogCaptureFixture) -> None:
    device = MemoryDevice(MIB)
    peer = Initiator(FakePortal({TARGET: make_target(device)}))
    peer.log_in()
    peer.clear_attention()
    device.blocking = True
    peer.feed(peer.command(read10(0, 1), read=512, itt=1))
    (running,) = peer.connection.tasks.blocked
    answers = []
    for number in range(3 * LIMITS.managed):
        answers += peer.feed(
            peer.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x81, itt=1000 + number, word20=1, immediate=True)
        )
    assert len(running.barriers) == LIMITS.managed
    assert [answer.response for answer in answers] == [255] * (2 * LIMITS.managed)
    assert [answer.response for answer in peer.run_blocked()] == [0] * LIMITS.managed
    (late,) = peer.feed(peer.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x81, itt=1, word20=1, immediate=True))
    assert late.response == 1


def test_requests_ahead_of_their_turn_are_bounded() -> None:
    peer = Initiator(FakePortal({TARGET: make_target(MemoryDevice(MIB))}, limits=Limits(held_bytes=2000)))
    peer.log_in()
    ahead = [peer.request(Opcode.NOP_OUT, itt=n, cmd_sn=peer.cmd_sn + n, data=bytes(900)) for n in range(1, 4)]
    assert peer.feed(ahead[0]) == peer.feed(ahead[1]) == []
    assert peer.feed(ahead[1]) == [], "the same one again takes no room"
    assert sum(map(len, peer.connection.held.values())) <= 2000
    (reply,) = peer.feed(ahead[2])
    assert reply.opcode == Opcode.REJECT
    assert peer.connection.finished


def test_a_transfer_is_bounded() -> None:
    peer = Initiator(FakePortal({TARGET: make_target(MemoryDevice(MIB))}, limits=Limits(transfer_bytes=4096)))
    peer.log_in()
    peer.clear_attention()
    for blocks, status in ((8, 0), (9, 2)):
        replies = peer.feed(peer.command(read10(0, blocks), read=blocks * 512, itt=1, immediate=True))
        assert replies[-1].status == status
