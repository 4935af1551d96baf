# SPDX-License-Identifier: Apache-2.0
"""The full feature phase: an initiator and a connection talk without a network.

(Longer than most modules here: a case for each kind of PDU, all with the same two ends.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lun_backends.copy_on_write import CopyOnWrite
from target.iscsi import pdu
from target.iscsi.connection import State
from target.iscsi.limits import Limits
from target.iscsi.pdu import NO_TAG, Opcode, RejectReason
from target.iscsi.sender import piece_of
from target.iscsi.task_set import AHEAD
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.scsi_target import Reach
from tests.lun_backends.memory_side import MemorySide
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import MIB, TARGET, FakePortal, Initiator, Reply, make_target, read10, write10

PATTERN = random.Random(7).randbytes(MIB)
DIGESTS = (("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"))
UNSOLICITED = ("InitialR2T", "No")


@pytest.fixture
def device() -> MemoryDevice:
    device = MemoryDevice(4 * MIB)
    device.fill(PATTERN)
    return device


@pytest.fixture
def portal(device: MemoryDevice) -> FakePortal:
    return FakePortal({TARGET: make_target(device)})


Connect = Callable[..., Initiator]


@pytest.fixture
def connect(portal: FakePortal) -> Connect:
    def connect(*offers: tuple[str, str]) -> Initiator:
        initiator = Initiator(portal)
        initiator.log_in(*({"MaxRecvDataSegmentLength": "262144"} | dict(offers)).items())
        initiator.clear_attention()
        return initiator

    return connect


def data_of(replies: list[Reply]) -> bytes:
    """The data-in of one command; checks the sequence of its PDUs."""
    parts = [reply for reply in replies if reply.opcode == Opcode.DATA_IN]
    assert [reply.words[0] for reply in parts] == list(range(len(parts)))
    assert [reply.words[1] for reply in parts] == [sum(len(p.data) for p in parts[:n]) for n in range(len(parts))]
    return b"".join(reply.data for reply in parts)


@pytest.mark.parametrize("offers", [(), DIGESTS, DIGESTS[:1], DIGESTS[1:]])
def test_read(connect: Connect, offers: tuple[tuple[str, str], ...]) -> None:
    initiator = connect(*offers)
    (reply,) = initiator.feed(initiator.command(read10(8, 8), read=4096, itt=77))
    assert (reply.opcode, reply.flags, reply.status, reply.itt, reply.word20) == (0x25, 0x81, 0, 77, NO_TAG)
    assert reply.data == PATTERN[4096:8192]
    assert reply.words == (0, 0, 0)
    (after,) = initiator.feed(initiator.command(b"\0" * 6))
    assert after.stat_sn == reply.stat_sn + 1
    assert after.exp_cmd_sn == reply.exp_cmd_sn + 1 == initiator.cmd_sn
    assert after.max_cmd_sn - after.exp_cmd_sn == 127


@pytest.mark.parametrize("offers", [(), DIGESTS])
def test_a_batch_is_answered_in_order(connect: Connect, offers: tuple[tuple[str, str], ...]) -> None:
    initiator = connect(*offers)
    batch = b"".join(initiator.command(read10(n, 1), read=512, itt=n) for n in range(100))
    replies = initiator.feed(batch)
    assert [reply.itt for reply in replies] == list(range(100))
    assert b"".join(reply.data for reply in replies) == PATTERN[:51200]
    assert [reply.stat_sn - replies[0].stat_sn for reply in replies] == list(range(100))


@pytest.mark.parametrize("offers", [(), DIGESTS])
def test_no_sequence_of_data_in_is_longer_than_a_burst(connect: Connect, offers: tuple[tuple[str, str], ...]) -> None:
    initiator = connect(("MaxBurstLength", "1024"), *offers)
    replies = initiator.feed(initiator.command(read10(0, 5), read=2560))
    assert data_of(replies) == PATTERN[:2560]
    assert [(len(reply.data), reply.flags) for reply in replies] == [(1024, 0x80), (1024, 0x80), (512, 0x81)]


def test_more_answers_than_an_arena_holds(connect: Connect) -> None:
    initiator = connect()
    replies = initiator.feed(b"".join(initiator.command(read10(n * 400, 400), read=204800, itt=n) for n in range(12)))
    assert [len(reply.data) for reply in replies] == [204800] * 12
    assert [reply.data[:9] for reply in replies[:5]] == [PATTERN[n * 204800 :][:9] for n in range(5)]


@pytest.mark.parametrize("offers", [(), DIGESTS])
def test_a_long_read_comes_in_several_pdus(connect: Connect, offers: tuple[tuple[str, str], ...]) -> None:
    initiator = connect(("MaxRecvDataSegmentLength", "4096"), ("MaxBurstLength", "8192"), *offers)
    replies = initiator.feed(initiator.command(read10(0, 50), read=25600))
    assert data_of(replies) == PATTERN[:25600]
    assert [reply.flags for reply in replies] == [0, 0x80, 0, 0x80, 0, 0x80, 0x81]


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(
    ("expected", "flags", "residual", "length"),
    [(512, 0x81, 0, 512), (1024, 0x83, 512, 512), (10000, 0x83, 9488, 512), (200, 0x85, 312, 200), (3, 0x85, 509, 3)],
)
def test_residuals_of_reads(
    connect: Connect, device: MemoryDevice, blocking: bool, expected: int, flags: int, residual: int, length: int
) -> None:
    initiator = connect()
    device.blocking = blocking
    replies = initiator.feed(initiator.command(read10(1, 1), read=expected))
    (reply,) = initiator.run_blocked() if blocking else replies
    assert (reply.opcode, reply.flags, reply.words[2], reply.data) == (
        0x25,
        flags,
        residual,
        PATTERN[512 : 512 + length],
    )


@pytest.mark.parametrize("flags", [0x80, 0xC0])
def test_residual_of_a_read_that_announced_nothing(connect: Connect, flags: int) -> None:
    initiator = connect()
    request = initiator.request(Opcode.SCSI_COMMAND, flags, itt=5, word20=0, tail=read10(1, 1).ljust(16, b"\0"))
    (reply,) = initiator.feed(request)
    assert (reply.opcode, reply.flags, reply.words[2], reply.status) == (0x21, 0x84, 512, 0)


def test_residual_of_a_write_that_announced_more(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(write10(0, 1), write=1024, data=b"w" * 1024))
    assert (reply.opcode, reply.flags, reply.words[2], reply.status) == (0x21, 0x82, 512, 0)
    assert device.data[:1024] == b"w" * 512 + PATTERN[512:1024]


def test_check_condition(connect: Connect) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(read10(1 << 20, 1), read=512))
    assert (reply.opcode, reply.status, reply.flags, reply.words[2]) == (0x21, 2, 0x82, 512)
    length = int.from_bytes(reply.data[:2], "big")
    assert len(reply.data) == 2 + length
    assert reply.data[4] & 0x0F == 5
    assert initiator.feed(initiator.command(read10(0, 1), read=512))[0].data == PATTERN[:512]


@pytest.mark.parametrize("offers", [(), DIGESTS])
def test_immediate_data(connect: Connect, device: MemoryDevice, offers: tuple[tuple[str, str], ...]) -> None:
    initiator = connect(*offers)
    (reply,) = initiator.feed(initiator.command(write10(2, 4), write=2048, data=b"x" * 2048, itt=5))
    assert (reply.opcode, reply.flags, reply.status, reply.itt, reply.words) == (0x21, 0x80, 0, 5, (0, 0, 0))
    assert device.data[1024:3072] == b"x" * 2048


@pytest.mark.parametrize("offers", [(), DIGESTS])
@pytest.mark.parametrize("immediate", [0, 4096])
@pytest.mark.parametrize("outstanding", [1, 3])
def test_solicited_data(
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
def test_unsolicited_data(connect: Connect, device: MemoryDevice, split: int | None) -> None:
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


def test_unsolicited_then_solicited(connect: Connect, device: MemoryDevice) -> None:
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


def test_blocked_commands(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    device.blocking = True
    stream = initiator.command(write10(0, 1), write=512, data=b"b" * 512, itt=1) + initiator.command(
        read10(8, 8), read=4096, itt=2
    )
    assert initiator.feed(stream) == []
    assert [command.itt for command in initiator.connection.tasks.blocked] == [1, 2]
    # Others overtake them meanwhile; the window is smaller by what is outstanding.
    (other,) = initiator.feed(initiator.command(b"\0" * 6, itt=3))
    assert other.max_cmd_sn - other.exp_cmd_sn == 125
    write, read = initiator.run_blocked()
    assert (write.itt, write.status, read.itt, read.data) == (1, 0, 2, PATTERN[4096:8192])
    assert read.max_cmd_sn - read.exp_cmd_sn == 127
    assert device.data[:512] == b"b" * 512
    assert initiator.connection.tasks.outstanding == 0


def test_first_writes_are_prepared_together_and_answered_before_the_next_are(device: MemoryDevice) -> None:
    chunk = 65536
    side = MemorySide(MIB * 4)
    side.commits_in_memory = True
    cow = CopyOnWrite(device, chunk)
    cow.arm(side)
    initiator = Initiator(FakePortal({TARGET: make_target(cow)}))
    initiator.log_in()
    initiator.clear_attention()
    stream = b"".join(
        initiator.command(write10(n * chunk // 512, 1), write=512, data=b"b" * 512, itt=n) for n in range(AHEAD + 4)
    )
    assert [reply.itt for reply in initiator.feed(stream)] == list(range(AHEAD))
    assert side.commits == [[0]]
    assert initiator.connection.stalled, "to be called again when these are sent"
    assert [reply.itt for reply in initiator.feed(b"")] == list(range(AHEAD, AHEAD + 4))
    assert side.commits == [[0], [AHEAD * chunk]]
    assert not initiator.connection.stalled
    assert side.data[: 16 * chunk] == PATTERN
    assert device.data[: 16 * chunk] == b"".join(
        b"b" * 512 + PATTERN[n * chunk + 512 : (n + 1) * chunk] for n in range(16)
    )


def test_first_writes_that_cannot_be_prepared_in_place_wait_for_a_worker_each_in_its_turn(device: MemoryDevice) -> None:
    chunk = 65536
    cow = CopyOnWrite(device, chunk)
    cow.arm(MemorySide(MIB * 4))
    initiator = Initiator(FakePortal({TARGET: make_target(cow)}))
    initiator.log_in()
    initiator.clear_attention()
    writes = [initiator.command(write10(n * chunk // 512, 1), write=512, data=b"b" * 512, itt=n) for n in range(3)]
    stream = b"".join(writes) + initiator.command(read10(8, 1), read=512, itt=3)
    assert [reply.itt for reply in initiator.feed(stream)] == [3]
    assert [command.itt for command in initiator.connection.tasks.blocked] == [0, 1, 2]
    assert not initiator.connection.stalled
    assert [reply.status for reply in initiator.run_blocked()] == [0, 0, 0]


def test_the_command_window(connect: Connect, portal: FakePortal, device: MemoryDevice) -> None:
    portal.limits = Limits(queue_depth=4)
    initiator = connect()
    device.blocking = True
    assert initiator.feed(b"".join(initiator.command(read10(0, 1), read=512, itt=n) for n in range(6))) == []
    assert [command.itt for command in initiator.connection.tasks.blocked] == [0, 1, 2, 3], "the others were outside"
    replies = initiator.run_blocked()
    assert [reply.itt for reply in replies] == [0, 1, 2, 3]
    device.blocking = False
    initiator.cmd_sn -= 2
    assert initiator.feed(initiator.command(read10(0, 1), read=512, itt=9))[0].itt == 9
    initiator.cmd_sn -= 1
    assert initiator.feed(initiator.command(read10(0, 1), read=512, itt=9)) == [], "an old CmdSN is ignored"


def test_requests_ahead_of_their_turn_wait(connect: Connect) -> None:
    initiator = connect()
    sn = initiator.cmd_sn
    assert initiator.feed(initiator.command(read10(2, 1), read=512, itt=3, cmd_sn=sn + 2)) == []
    assert initiator.feed(initiator.command(read10(1, 1), read=512, itt=2, cmd_sn=sn + 1)) == []
    replies = initiator.feed(initiator.command(read10(0, 1), read=512, itt=1, cmd_sn=sn))
    assert [reply.itt for reply in replies] == [1, 2, 3]
    assert b"".join(reply.data for reply in replies) == PATTERN[:1536]


def test_cmd_sn_wraps(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    initiator.cmd_sn = 0xFFFFFFF0
    initiator.log_in()
    initiator.clear_attention()
    replies = initiator.feed(b"".join(initiator.command(read10(0, 1), read=512) for _ in range(40)))
    assert len(replies) == 40
    assert replies[-1].exp_cmd_sn == initiator.cmd_sn < 100
    initiator.feed(initiator.request(Opcode.NOP_OUT, itt=5))
    assert initiator.feed(initiator.command(read10(0, 1), read=512))[0].data == PATTERN[:512]


def test_immediate_commands_take_no_number(connect: Connect) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(read10(0, 1), read=512, immediate=True))
    assert reply.data == PATTERN[:512]
    assert reply.exp_cmd_sn == initiator.cmd_sn
    assert reply.max_cmd_sn - reply.exp_cmd_sn == 127


def test_budget_of_solicited_data(connect: Connect, portal: FakePortal) -> None:
    portal.limits = Limits(data_bytes=100_000)
    initiator = connect(("ImmediateData", "No"))
    (first,) = initiator.feed(initiator.command(write10(0, 128), write=65536, itt=1))
    assert initiator.feed(initiator.command(write10(128, 128), write=65536, itt=2)) == [], "no room yet"
    replies = initiator.feed(initiator.data_out(1, first.word20, 0, 0, bytes(65536), final=True))
    assert [(reply.opcode, reply.itt) for reply in replies] == [(0x21, 1), (0x31, 2)]


def test_a_transfer_nobody_would_hold_is_refused(connect: Connect) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(write10(0, 1), write=0xFFFFFFFC))
    assert (reply.opcode, reply.status) == (0x21, 2)
    (reply,) = initiator.feed(initiator.command(read10(0, 1), read=0xFFFFFFFC))
    assert (reply.opcode, reply.status) == (0x21, 2)


def test_nop(connect: Connect) -> None:
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


@pytest.mark.parametrize(("reason", "response", "ends"), [(0, 0, True), (1, 0, True), (2, 2, False)])
def test_logout(connect: Connect, reason: int, response: int, ends: bool) -> None:
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


def task_management(initiator: Initiator, function: int, *, referenced: int = NO_TAG, lun: int = 0) -> list[Reply]:
    return initiator.feed(
        initiator.request(
            Opcode.TASK_MANAGEMENT_REQUEST, 0x80 | function, itt=500, word20=referenced, immediate=True, lun=lun << 48
        )
    )


def test_abort_task_that_runs(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    device.blocking = True
    initiator.feed(initiator.command(read10(0, 1), read=512, itt=1) + initiator.command(read10(1, 1), read=512, itt=2))
    assert task_management(initiator, 1, referenced=1) == [], "not before it is quiet"
    replies = initiator.run_blocked()
    assert [(reply.opcode, reply.itt) for reply in replies] == [(0x22, 500), (0x25, 2)]
    assert replies[0].response == 0


def test_abort_task_that_waits_for_data(connect: Connect, device: MemoryDevice) -> None:
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
def test_task_management_responses(connect: Connect, function: int, lun: int, response: int) -> None:
    (reply,) = task_management(connect(), function, referenced=4711, lun=lun)
    assert (reply.opcode, reply.response, reply.itt) == (0x22, response, 500)


@pytest.mark.parametrize(("function", "others"), [(2, False), (4, True), (5, True), (6, True)])
def test_whose_tasks_are_aborted(connect: Connect, device: MemoryDevice, function: int, others: bool) -> None:
    one, two = connect(), connect()
    device.blocking = True
    for initiator in (one, two):
        initiator.feed(initiator.command(read10(0, 1), read=512, itt=1))
    assert task_management(one, function) == []
    assert (two.connection.tasks.blocked[0].task.aborted, one.connection.tasks.blocked[0].task.aborted) == (
        others,
        True,
    )
    replies = two.run_blocked()
    assert (replies == []) is others
    one.run_blocked()


@pytest.mark.parametrize("function", [4, 5, 6])
def test_a_unit_is_reset_under_whatever_luns_sessions_know_it(
    connect: Connect, portal: FakePortal, device: MemoryDevice, function: int
) -> None:
    """A session's commands on the same LUN but another unit are none of anybody's business."""
    target = portal.targets[TARGET]
    other_device = MemoryDevice(MIB)
    target.add_lun(1, LogicalUnit(other_device, uuid=UUID(int=9), kind=UnitKind.PRIMARY, name="other"))
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
    assert task_management(one, function) == []  # it waits for the one that runs
    assert {command.itt: command.task.aborted for command in two.connection.tasks.blocked} == {10: False, 11: True}
    assert set(two.connection.tasks.commands) == {10, 11, 20}
    assert [reply.itt for reply in two.run_blocked()] == [10]
    assert [(reply.itt, reply.response) for reply in one.take()] == [(500, 0)]
    device.blocking = False
    (told,) = two.feed(two.command(bytes(6), lun=1))
    assert (told.status, told.data[14:16]) == (2, b"\x2f\0" if function == 4 else b"\x29\x03")
    (fine,) = two.feed(two.command(bytes(6), lun=0))
    assert fine.status == 0


def test_who_loses_only_what_had_not_begun_is_told_as_well(connect: Connect) -> None:
    one, two = connect(), connect()
    (r2t,) = two.feed(two.command(write10(0, 1), write=512, itt=1))
    assert r2t.opcode == Opcode.R2T
    assert [reply.response for reply in task_management(one, 4)] == [0]
    assert not two.connection.tasks.commands
    (told,) = two.feed(two.command(bytes(6)))
    assert (told.status, told.data[14:16]) == (2, b"\x2f\0")


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
    assert pong.exp_cmd_sn == sn + 3  # it had its turn, and did nothing
    assert pong.max_cmd_sn == sn + 2 + initiator.host.limits.queue_depth
    assert bytes(device.data[:512]) == PATTERN[:512]


def test_a_rejected_request_does_not_keep_those_behind_it(connect: Connect) -> None:
    initiator = connect()
    sn = initiator.cmd_sn
    initiator.feed(initiator.command(read10(1, 1), read=512, itt=2, cmd_sn=sn + 1))
    reject, answer = initiator.feed(initiator.command(read10(0, 1), read=512, itt=NO_TAG, cmd_sn=sn))
    assert (reject.opcode, reject.response) == (Opcode.REJECT, RejectReason.INVALID_PDU_FIELD)
    assert (answer.itt, answer.data) == (2, PATTERN[512:1024])


def test_asynchronous_logout_request(connect: Connect) -> None:
    initiator = connect()
    initiator.connection.request_logout(7)
    (reply,) = initiator.take()
    assert (reply.opcode, reply.words) == (Opcode.ASYNC_MESSAGE, (1 << 24, 7, 0))


def test_rejects(connect: Connect, device: MemoryDevice) -> None:
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


def test_one_byte_at_a_time(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect(UNSOLICITED)
    stream = initiator.command(write10(0, 2), write=1024, data=b"1" * 512, final=False, itt=1)
    stream += initiator.data_out(1, NO_TAG, 0, 512, b"2" * 512, final=True)
    stream += initiator.command(read10(0, 2), read=1024, itt=2)
    replies = [reply for byte in stream for reply in initiator.feed(bytes([byte]))]
    assert [reply.itt for reply in replies] == [1, 2]
    assert replies[1].data == b"1" * 512 + b"2" * 512


def test_a_peer_that_takes_no_answers_is_not_served_on(connect: Connect, portal: FakePortal) -> None:
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
def test_random_bytes(pieces: list[bytes], logged_in: bool) -> None:
    initiator = Initiator(FakePortal({TARGET: make_target(MemoryDevice())}))
    if logged_in:
        initiator.log_in()
    for piece in pieces:
        initiator.feed(piece)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_requests(data: st.DataObject) -> None:
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
            # The lengths stay: what is tested is the meaning of PDUs, not that their borders are lost.
            position = data.draw(st.integers(0, 47).filter(lambda at: not 4 <= at < 8))
            raw[position] = data.draw(st.integers(0, 255))
        raw[24:28] = initiator.connection.sender.exp_cmd_sn.to_bytes(4, "big")
        for reply in initiator.feed(bytes(raw)):
            assert reply.opcode in list(Opcode)
        initiator.run_blocked()
    assert initiator.connection.tasks.outstanding <= 6


@given(st.lists(st.binary(max_size=9), max_size=5), st.data())
def test_pieces_of_a_scatter_list(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    offset = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - offset))
    assert b"".join(piece_of([memoryview(part) for part in parts], offset, length)) == whole[offset : offset + length]


def test_the_two_formats_of_an_answer_agree() -> None:
    assert pdu.RESPONSE.size == pdu.REQUEST.size == pdu.SCSI_COMMAND.size == pdu.DATA_OUT.size == pdu.BHS_LENGTH
