# SPDX-License-Identifier: Apache-2.0
"""Peers that are slow on purpose, or greedy: they cost a bounded amount of memory, and are cut off with a reason in the log."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import weakref

import pytest

from target.iscsi import pdu
from target.iscsi.connection import State
from target.iscsi.limits import Limits
from target.iscsi.pdu import NO_TAG, Opcode
from target.portal.portal import LOGIN_CONNECTIONS, Portal
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, FakePortal, Initiator, make_target, read10, write10
from tests.target.portal.test_portal import Client, wait_for

MIB = 1 << 20
LIMITS = Limits()


@pytest.fixture
def peer() -> Initiator:
    peer = Initiator(FakePortal({TARGET: make_target(MemoryDevice(4 * MIB))}))
    peer.log_in(("InitialR2T", "Yes"), ("ImmediateData", "No"))
    peer.clear_attention()
    return peer


def pass_time(peer: Initiator, seconds: float) -> None:
    """Time passes, one second after the other; pings are answered, so that nobody is held for dead."""
    for _ in range(int(seconds)):
        if peer.connection.finished:
            return
        peer.now += 1.0
        peer.connection.tick(peer.now)
        peer.take()


def keep_alive(peer: Initiator, seconds: float) -> None:
    """The same, with a NOP-Out every second."""
    for _ in range(int(seconds)):
        if not peer.connection.finished:
            pass_time(peer, 1)
            peer.feed(peer.request(Opcode.NOP_OUT, itt=7, immediate=True))


def test_one_byte_a_second(peer: Initiator, caplog: pytest.LogCaptureFixture) -> None:
    request = peer.command(read10(0, 1), read=512)
    for byte in request[:-1]:
        peer.feed(bytes([byte]))
        pass_time(peer, 1)
    assert peer.connection.state is State.FULL_FEATURE
    for _ in range(int(LIMITS.stall_seconds) - len(request) + 3):
        pass_time(peer, 1)
        peer.connection.receive(memoryview(bytearray(request[:-1])), len(request) - 1, peer.now)  # still that one
    assert peer.connection.finished
    assert "a PDU was not finished within 60 s" in caplog.text


def test_large_data_one_byte_a_second(peer: Initiator, caplog: pytest.LogCaptureFixture) -> None:
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


def test_answers_never_taken(peer: Initiator, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on talking, and does not ask for so much that it would not be read from any more."""
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
def test_data_out_never_finished(peer: Initiator, caplog: pytest.LogCaptureFixture, sent: int) -> None:
    (r2t,) = peer.feed(peer.command(write10(0, 16), write=8192, itt=9))
    for number in range(sent):
        peer.feed(peer.data_out(9, r2t.word20, number, number * 512, bytes(512), final=False))
    keep_alive(peer, LIMITS.stall_seconds - 1)
    assert peer.connection.state is State.FULL_FEATURE
    keep_alive(peer, 3)
    assert peer.connection.finished
    assert "a command's data did not come within 60 s" in caplog.text


def test_data_out_that_gets_on_slowly_is_waited_for(peer: Initiator) -> None:
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


def test_commands_without_their_data_cost_no_more_than_the_budget(peer: Initiator) -> None:
    limits = peer.host.limits
    for number in range(limits.queue_depth + 50):
        peer.feed(peer.command(write10(0, 2048), write=MIB, itt=1000 + number))
    tasks = peer.connection.tasks
    assert tasks.outstanding <= limits.queue_depth
    assert sum(len(command.solicited) for command in tasks.commands.values()) <= limits.data_bytes


def test_a_thousand_connections(caplog: pytest.LogCaptureFixture) -> None:
    portal = Portal("127.0.0.1", 0, {TARGET: make_target(MemoryDevice(MIB))}, max_connections=128)
    portal.start()
    try:
        with contextlib.ExitStack() as stack:
            refused = 0
            sockets = []
            for _ in range(1000):
                sock = stack.enter_context(socket.create_connection(portal.address, timeout=20))
                with contextlib.suppress(OSError):  # refused already
                    sock.sendall(b"\x43")
                sockets.append(sock)
            for sock in sockets[LOGIN_CONNECTIONS:]:
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
                refused += 1
            assert refused == 1000 - LOGIN_CONNECTIONS
            assert len(portal._channels) == LOGIN_CONNECTIONS
            assert caplog.messages[0] == "127.0.0.1: too many connections, refused"
            assert len(caplog.records) < refused / 10  # one a minute
    finally:
        portal.close(0)


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


def test_a_session_leaves_nothing_behind() -> None:
    """Not even for the garbage collector, which a daemon runs seldom: sessions that come and go must not pile up."""
    portal = Portal("127.0.0.1", 0, {TARGET: make_target(MemoryDevice(MIB))})
    portal.start()
    gc.collect()
    gc.disable()
    try:
        seen = []
        for number in range(1, 6):
            client = Client(portal, isid=number)
            client.settle()
            client.send(client.make.command(read10(0, 1), read=512)[:20])  # it leaves in the middle of a PDU
            wait_for(lambda: len(portal._channels) == 1)
            seen += [weakref.ref(channel.connection) for channel in portal._channels.values()]
            client.sock.close()
            wait_for(lambda: not portal._channels)
        assert len(seen) == 5
        # The loop's own variables may still name the last one.
        wait_for(lambda: sum(each() is not None for each in seen) <= 1)
        assert len(portal._buffers) <= 2
    finally:
        gc.enable()
        portal.close(0)
