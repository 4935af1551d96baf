# SPDX-License-Identifier: Apache-2.0
"""The full feature phase: an initiator and a connection talk without a network."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi.command import Command, private_buffers
from target.iscsi.connection import Connection, State
from target.iscsi.limits import Limits
from target.iscsi.pdu import NO_TAG, Opcode, RejectReason
from target.scsi.task import Task
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import (
    DIGESTS,
    PATTERN,
    TARGET,
    UNSOLICITED,
    Connect,
    FakePortal,
    Initiator,
    make_target,
    read10,
    write10,
)


def test_requests_ahead_of_their_turn_wait(connect: Connect) -> None:
    initiator = connect()
    sn = initiator.cmd_sn
    assert initiator.feed(initiator.command(read10(2, 1), read=512, itt=3, cmd_sn=sn + 2)) == []
    assert initiator.feed(initiator.command(read10(1, 1), read=512, itt=2, cmd_sn=sn + 1)) == []
    replies = initiator.feed(initiator.command(read10(0, 1), read=512, itt=1, cmd_sn=sn))
    assert [reply.itt for reply in replies] == [1, 2, 3]
    assert b"".join(reply.data for reply in replies) == PATTERN[:1536]


def test_a_nop_out_is_answered_with_its_data(connect: Connect) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.request(Opcode.NOP_OUT, itt=6, data=b"ping"))
    assert (reply.opcode, reply.itt, reply.word20, reply.data) == (Opcode.NOP_IN, 6, NO_TAG, b"ping")


def test_idle_sessions_are_pinged_and_dead_ones_dropped(connect: Connect) -> None:
    initiator = connect()
    connection = initiator.connection
    connection.tick(29)
    assert initiator.take() == []
    connection.tick(31)
    (ping,) = initiator.take()
    assert (ping.opcode, ping.itt) == (Opcode.NOP_IN, NO_TAG)
    assert ping.word20 != NO_TAG
    initiator.now = 40
    assert initiator.feed(initiator.request(Opcode.NOP_OUT, word20=ping.word20, immediate=True)) == []
    connection.tick(60)
    assert not connection.finished
    connection.tick(71)
    connection.tick(87)
    assert connection.state is State.CLOSING


def entering(device: MemoryDevice) -> tuple[Initiator, Command]:
    """Return an initiator whose login waits for a command of a lost session, and that command."""
    running = Command(1, Task(private_buffers), 512, reads=False, writes=True, counted=True)

    class Reinstating(FakePortal):
        def reinstate(self, connection: Connection) -> list[Command]:
            return [running]

    initiator = Initiator(Reinstating({TARGET: make_target(device)}))
    names = [("InitiatorName", initiator.name), ("TargetName", TARGET)]
    assert initiator.feed(initiator.login_request(0x87, names)) == []
    return initiator, running


def test_a_login_is_answered_when_the_commands_of_the_replaced_session_have_ended(device: MemoryDevice) -> None:
    initiator, running = entering(device)
    initiator.connection.tick(1e6)  # even if that is late
    assert initiator.take() == []
    running.finish()
    (reply,) = initiator.take()
    assert (reply.opcode, reply.words[0]) == (Opcode.LOGIN_RESPONSE, 0)
    assert initiator.connection.state is State.FULL_FEATURE


@pytest.mark.parametrize("opcode", [Opcode.LOGIN_REQUEST, Opcode.SCSI_COMMAND])
def test_a_request_before_the_login_was_answered_ends_the_connection(device: MemoryDevice, opcode: Opcode) -> None:
    initiator, running = entering(device)
    assert initiator.feed(initiator.request(opcode, 0x87, itt=0, word20=0)) == []
    assert initiator.connection.state is State.CLOSING
    running.finish()
    assert initiator.take() == []
    assert initiator.connection.state is State.CLOSING


@pytest.mark.parametrize(("reason", "response", "ends"), [(0, 0, True), (1, 0, True), (2, 2, False)])
def test_a_logout_is_answered_according_to_its_reason(connect: Connect, reason: int, response: int, ends: bool) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.request(Opcode.LOGOUT_REQUEST, 0x80 | reason, itt=8, word20=0))
    assert (reply.opcode, reply.itt, reply.response) == (Opcode.LOGOUT_RESPONSE, 8, response)
    assert (initiator.connection.state is State.CLOSING) is ends


def test_logout_waits_for_running_commands(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    device.blocking = True
    initiator.feed(initiator.command(write10(0, 1), write=512, data=b"b" * 512))
    assert initiator.feed(initiator.request(Opcode.LOGOUT_REQUEST, 0x80, itt=8, word20=0)) == []
    (reply,) = initiator.run_blocked()
    assert reply.opcode == Opcode.LOGOUT_RESPONSE


def test_a_rejected_request_does_not_keep_those_behind_it(connect: Connect) -> None:
    initiator = connect()
    sn = initiator.cmd_sn
    initiator.feed(initiator.command(read10(1, 1), read=512, itt=2, cmd_sn=sn + 1))
    reject, answer = initiator.feed(initiator.command(read10(0, 1), read=512, itt=NO_TAG, cmd_sn=sn))
    assert (reject.opcode, reject.response) == (Opcode.REJECT, RejectReason.INVALID_PDU_FIELD)
    assert (answer.itt, answer.data) == (2, PATTERN[512:1024])


def test_a_logout_request_is_an_asynchronous_message(connect: Connect) -> None:
    initiator = connect()
    initiator.connection.request_logout(7)
    (reply,) = initiator.take()
    assert (reply.opcode, reply.words) == (Opcode.ASYNC_MESSAGE, (1 << 24, 7, 0))


def test_a_bad_request_is_rejected_and_the_session_goes_on(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    for request, reason in (
        (initiator.request(0x10, itt=1, immediate=True), RejectReason.SNACK_REJECT),
        (initiator.request(0x1C, itt=1, immediate=True), RejectReason.COMMAND_NOT_SUPPORTED),
        (initiator.command(read10(0, 1), read=512, itt=NO_TAG), RejectReason.INVALID_PDU_FIELD),
        (initiator.command(read10(0, 1), read=512, data=b"data"), RejectReason.INVALID_PDU_FIELD),
        (initiator.command(read10(0, 1), read=512, ahs=b"\0\x09\x01\0"), RejectReason.INVALID_PDU_FIELD),
    ):
        (reply,) = initiator.feed(request)
        assert (reply.opcode, reply.response, reply.itt, reply.data) == (0x3F, reason, NO_TAG, request[:48])
    device.blocking = True
    initiator.feed(initiator.command(read10(0, 1), read=512, itt=1))
    (reply,) = initiator.feed(initiator.command(read10(0, 1), read=512, itt=1))
    assert reply.response == RejectReason.TASK_IN_PROGRESS
    initiator.run_blocked()
    (reply,) = initiator.feed(initiator.command(b"\0" * 6))
    assert reply.max_cmd_sn - reply.exp_cmd_sn == 127, "a rejected command gives its place in the window back"


def test_a_wrong_header_digest_drops_the_connection(connect: Connect) -> None:
    initiator = connect(*DIGESTS)
    raw = bytearray(initiator.command(read10(0, 1), read=512))
    raw[33] ^= 1
    assert initiator.feed(bytes(raw)) == []
    assert initiator.connection.state is State.CLOSING


def test_a_wrong_data_digest_is_rejected(connect: Connect, device: MemoryDevice) -> None:
    before = bytes(device.data)
    initiator = connect(*DIGESTS)
    raw = bytearray(initiator.command(write10(0, 1), write=512, data=b"x" * 512))
    raw[-1] ^= 1
    (reply,) = initiator.feed(bytes(raw))
    assert (reply.opcode, reply.response) == (0x3F, RejectReason.DATA_DIGEST_ERROR)
    assert initiator.connection.state is State.CLOSING
    assert device.data == before


def test_requests_may_come_one_byte_at_a_time(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect(UNSOLICITED)
    stream = initiator.command(write10(0, 2), write=1024, data=b"1" * 512, final=False, itt=1)
    stream += initiator.data_out(1, NO_TAG, 0, 512, b"2" * 512, final=True)
    stream += initiator.command(read10(0, 2), read=1024, itt=2)
    replies = [reply for byte in stream for reply in initiator.feed(bytes([byte]))]
    assert [reply.itt for reply in replies] == [1, 2]
    assert replies[1].data == b"1" * 512 + b"2" * 512


def test_no_requests_are_read_from_a_peer_that_takes_no_answers(connect: Connect, portal: FakePortal) -> None:
    portal.limits = Limits(output_bytes=600_000)
    initiator = connect()
    stream = b"".join(initiator.command(read10(0, 256), read=131072) for _ in range(98))
    connection = initiator.connection
    handled = connection.receive(memoryview(bytearray(stream)), len(stream), 0.0)
    assert handled < len(stream)
    assert connection.tasks.congested
    assert len(connection.output) < 1_200_000
    done = len(initiator.take())
    assert done * 48 == handled
    assert not connection.tasks.congested
    while handled < len(stream):
        assert connection.stalled
        rest = memoryview(bytearray(stream[handled:]))
        handled += connection.receive(rest, len(rest), 0.0)
        done += len(initiator.take())
    assert done == 98
    assert not connection.stalled, "or the loop would never sleep again"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=120), st.binary(min_size=48, max_size=48)), max_size=4), st.booleans())
def test_random_bytes_never_raise(pieces: list[bytes], logged_in: bool) -> None:
    initiator = Initiator(FakePortal({TARGET: make_target(MemoryDevice())}))
    if logged_in:
        initiator.log_in()
    for piece in pieces:
        initiator.feed(piece)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_requests_never_raise(data: st.DataObject) -> None:
    device = MemoryDevice()
    initiator = Initiator(FakePortal({TARGET: make_target(device)}))
    initiator.log_in(UNSOLICITED)
    for _ in range(data.draw(st.integers(1, 6))):
        raw = bytearray(
            data.draw(
                st.sampled_from(
                    [
                        initiator.command(read10(0, 1), read=512),
                        initiator.command(write10(0, 1), write=512, data=b"d" * 512),
                        initiator.command(write10(0, 4), write=2048, itt=1),
                        initiator.data_out(1, 1, 0, 0, b"d" * 512, final=True),
                        initiator.request(Opcode.TEXT_REQUEST, itt=5, data=b"SendTargets=\0"),
                        initiator.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x81, itt=6, word20=1),
                        initiator.request(Opcode.NOP_OUT, itt=7),
                    ]
                )
            )
        )
        for _ in range(data.draw(st.integers(0, 3))):
            # The lengths stay: the test is about the meaning of PDUs, not about lost borders.
            position = data.draw(st.integers(0, 47).filter(lambda at: not 4 <= at < 8))
            raw[position] = data.draw(st.integers(0, 255))
        raw[24:28] = initiator.connection.sender.exp_cmd_sn.to_bytes(4, "big")
        for reply in initiator.feed(bytes(raw)):
            assert reply.opcode in list(Opcode)
        initiator.run_blocked()
    assert initiator.connection.tasks.outstanding <= 6


def test_a_flood_of_requests_has_its_turn_and_then_others(connect: Connect, portal: FakePortal) -> None:
    initiator = connect()
    turn = portal.limits.turn_pdus
    flood = b"".join(initiator.request(Opcode.NOP_OUT, itt=n, immediate=True) for n in range(2 * turn + 1))
    connection, rest, turns = initiator.connection, memoryview(bytearray(flood)), []
    while len(rest):
        handled = connection.receive(rest, len(rest), 0.0)
        rest = rest[handled:]
        turns.append((len(initiator.take()), connection.stalled))
    assert turns == [(turn, True), (turn, True), (1, False)]
