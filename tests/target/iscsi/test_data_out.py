# SPDX-License-Identifier: Apache-2.0
"""Data-out in all its ways: solicited and unsolicited, lost, contradictory, and within its budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.iscsi import pdu
from target.iscsi.command import Command, Stage, private_buffers
from target.iscsi.connection import State
from target.iscsi.data_out import DataOut
from target.iscsi.keys import Parameters
from target.iscsi.limits import Limits
from target.iscsi.memory import Account, Memory
from target.iscsi.output import ArenaPool, Output
from target.iscsi.pdu import NO_TAG, Opcode, RejectReason
from target.iscsi.sender import Sender
from target.scsi.task import Task
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import (
    DIGESTS,
    PATTERN,
    UNSOLICITED,
    Connect,
    FakePortal,
    Initiator,
    write10,
)


@pytest.mark.parametrize("offers", [(), DIGESTS])
@pytest.mark.parametrize("immediate", [0, 4096])
@pytest.mark.parametrize("outstanding", [1, 3])
def test_solicited_data_is_requested_in_bursts(
    connect: Connect, device: MemoryDevice, offers: tuple[tuple[str, str], ...], immediate: int, outstanding: int
) -> None:
    initiator = connect(("MaxBurstLength", "16384"), ("MaxOutstandingR2T", str(outstanding)), *offers)
    total = 102400
    source = PATTERN[-total:]
    replies = initiator.feed(initiator.command(write10(0, total // 512), write=total, data=source[:immediate], itt=9))
    r2t_sn, at = 0, immediate
    while replies[0].opcode == Opcode.R2T:
        waiting, replies = replies, []
        assert len(waiting) <= outstanding
        for r2t in waiting:
            sn, offset, length = r2t.words
            assert (sn, offset, r2t.itt, length) == (r2t_sn, at, 9, min(16384, total - at))
            r2t_sn, at = r2t_sn + 1, at + length
            for number, start in enumerate(range(offset, offset + length, 8192)):
                end = min(start + 8192, offset + length)
                piece = initiator.data_out(
                    9, r2t.word20, number, start, source[start:end], final=end == offset + length
                )
                replies += initiator.feed(piece)
    (reply,) = replies
    assert (reply.opcode, reply.status, reply.words[0]) == (0x21, 0, r2t_sn)
    assert at == total
    assert device.data[:total] == source


@pytest.mark.parametrize("split", [None, 48, 50, 70000])
def test_unsolicited_data_needs_no_r2t(connect: Connect, device: MemoryDevice, split: int | None) -> None:
    initiator = connect(UNSOLICITED, ("FirstBurstLength", "262144"))
    source = PATTERN[-131072:]
    stream = initiator.command(write10(0, 256), write=131072, data=source[:1024], final=False, itt=3)
    assert initiator.feed(stream) == []
    stream = initiator.data_out(3, NO_TAG, 0, 1024, source[1024:99328], final=False)
    stream += initiator.data_out(3, NO_TAG, 1, 99328, source[99328:], final=True)
    # Cut inside the first Data-Out: the rest of a large one is received in place.
    replies = initiator.feed(stream[:split]) + initiator.feed(stream[split:]) if split else initiator.feed(stream)
    (reply,) = replies
    assert (reply.opcode, reply.status) == (0x21, 0)
    assert device.data[:131072] == source


def test_solicited_data_follows_unsolicited_data(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect(UNSOLICITED, ("FirstBurstLength", "8192"))
    source = PATTERN[-65536:]
    initiator.feed(initiator.command(write10(0, 128), write=65536, data=source[:512], final=False, itt=3))
    (r2t,) = initiator.feed(initiator.data_out(3, NO_TAG, 0, 512, source[512:8192], final=True))
    assert r2t.words == (0, 8192, 57344)
    (reply,) = initiator.feed(initiator.data_out(3, r2t.word20, 0, 8192, source[8192:], final=True))
    assert reply.status == 0
    assert device.data[:65536] == source


def test_data_out_of_order_fails_its_command_only(connect: Connect, device: MemoryDevice) -> None:
    before = bytes(device.data[:4096])
    initiator = connect(UNSOLICITED)
    for numbers in ((1, 0), (0, 0), (27, 28)):
        assert initiator.feed(initiator.command(write10(0, 2), write=1024, final=False, itt=3)) == []
        assert initiator.feed(initiator.data_out(3, NO_TAG, numbers[0], 0, b"n" * 512, final=False)) == []
        (reply,) = initiator.feed(initiator.data_out(3, NO_TAG, numbers[1], 512, b"n" * 512, final=True))
        assert (reply.opcode, reply.status) == (0x21, 2)
        assert reply.data[4] & 0x0F == 0x0B
    assert device.data[:4096] == before
    (r2t,) = initiator.feed(initiator.command(write10(0, 2), write=1024, itt=4))
    (reply,) = initiator.feed(initiator.data_out(4, r2t.word20, 5, 0, b"n" * 1024, final=True))
    assert reply.status == 2
    assert device.data[:4096] == before


@pytest.mark.parametrize(
    "stream",
    [
        lambda i: i.command(write10(0, 2), write=1024, data=b"x" * 2048),
        lambda i: i.command(write10(0, 2), write=1024, final=False) + i.data_out(1000, NO_TAG, 0, 0, b"x" * 2048, final=True),
        lambda i: i.data_out(50, i.feed(i.command(write10(0, 2), write=1024, itt=50))[0].word20, 0, 0, b"x" * 512, final=True),
        lambda i: i.data_out(51, i.feed(i.command(write10(0, 2), write=1024, itt=50))[0].word20, 0, 0, b"x" * 512, final=True),
    ],
)  # fmt: skip
def test_data_that_contradicts_its_command_ends_the_session(
    connect: Connect, stream: Callable[[Initiator], bytes]
) -> None:
    initiator = connect(UNSOLICITED)
    initiator.tags = iter([1000])  # type: ignore[assignment] # the one tag the second case speaks of
    replies = initiator.feed(stream(initiator))
    assert replies[-1].opcode == Opcode.REJECT
    assert replies[-1].response == RejectReason.PROTOCOL_ERROR
    assert initiator.connection.state is State.CLOSING


def test_solicited_data_is_requested_within_the_budget(connect: Connect, portal: FakePortal) -> None:
    portal.limits = Limits(data_bytes=100_000)
    initiator = connect(("ImmediateData", "No"))
    (first,) = initiator.feed(initiator.command(write10(0, 128), write=65536, itt=1))
    assert initiator.feed(initiator.command(write10(128, 128), write=65536, itt=2)) == [], "no room yet"
    replies = initiator.feed(initiator.data_out(1, first.word20, 0, 0, bytes(65536), final=True))
    assert [(reply.opcode, reply.itt) for reply in replies] == [(0x21, 1), (0x31, 2)]


@pytest.fixture
def data_out() -> DataOut:
    data_out = DataOut(Sender(Output(ArenaPool())), Limits(data_bytes=1000), Account(Memory()))
    data_out.open("iqn.2026-11.io.wolun:initiator", Parameters(max_outstanding_r2t=2, max_burst_length=512))
    return data_out


def waiting(itt: int, length: int) -> Command:
    """Return a write that has sent none of its data yet."""
    command = Command(itt, Task(private_buffers), length, reads=False, writes=True, counted=True)
    command.begin_data_out(memoryview(b""), 0, more=False)
    return command


def test_a_single_command_may_exceed_the_budget_but_no_second_one(data_out: DataOut) -> None:
    large, small = waiting(1, 5000), waiting(2, 1)
    data_out.solicit(large)
    data_out.solicit(small)
    assert (large.stage, small.stage, data_out.used) == (Stage.SOLICITED, Stage.WAITING, 5000)
    assert len(large.r2ts) == 2
    data_out.forget(large)
    data_out.admit()
    assert (small.stage, data_out.used, len(large.r2ts)) == (Stage.SOLICITED, 1, 0)


def test_a_command_forgotten_while_it_waits_leaves_the_queue(data_out: DataOut) -> None:
    commands = [waiting(itt, 1000) for itt in range(3)]
    for command in commands:
        data_out.solicit(command)
    data_out.forget(commands[1])
    data_out.forget(commands[0])
    data_out.admit()
    assert [command.stage for command in commands] == [Stage.SOLICITED, Stage.WAITING, Stage.SOLICITED]
    data_out.forget(commands[2])
    assert data_out.used == 0


def test_the_command_is_returned_with_its_last_piece_only(data_out: DataOut) -> None:
    command = waiting(7, 600)
    data_out.solicit(command)
    for r2t, expected in zip(list(command.r2ts.values()), (None, command), strict=True):
        bhs = pdu.DATA_OUT.pack(Opcode.DATA_OUT, 0x80, 0, r2t.length, 0, 7, r2t.ttt, 0, 0, 0, 0, r2t.offset)
        place = data_out.place(memoryview(bhs), {7: command})
        assert place is not None
        assert place.memory is not None
        assert len(place.memory) == r2t.length
        assert data_out.placed(command, place.r2t, final=True) is expected
    assert command.stage is Stage.READY


def test_data_of_an_unknown_command_has_no_place(data_out: DataOut) -> None:
    for ttt in (NO_TAG, 1):
        bhs = pdu.DATA_OUT.pack(Opcode.DATA_OUT, 0x80, 0, 512, 0, 7, ttt, 0, 0, 0, 0, 0)
        assert data_out.place(memoryview(bhs), {}) is None
