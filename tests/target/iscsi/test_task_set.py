# SPDX-License-Identifier: Apache-2.0
"""The commands of a session: executed at once, by workers, or refused; the command window."""

from __future__ import annotations

import pytest

from lun_backends.copy_on_write import CopyOnWrite
from lun_backends.tracking import GRAIN
from target.iscsi.limits import Limits
from target.iscsi.pdu import NO_TAG, Opcode
from target.iscsi.task_set import AHEAD
from tests.lun_backends.memory_side import MemorySide
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import (
    DIGESTS,
    MIB,
    PATTERN,
    TARGET,
    Connect,
    FakePortal,
    Initiator,
    make_target,
    read10,
    write10,
)


@pytest.mark.parametrize("offers", [(), DIGESTS, DIGESTS[:1], DIGESTS[1:]])
def test_a_read_is_answered_with_its_data(connect: Connect, offers: tuple[tuple[str, str], ...]) -> None:
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


def test_check_condition_carries_sense_data(connect: Connect) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(read10(1 << 20, 1), read=512))
    assert (reply.opcode, reply.status, reply.flags, reply.words[2]) == (0x21, 2, 0x82, 512)
    length = int.from_bytes(reply.data[:2], "big")
    assert len(reply.data) == 2 + length
    assert reply.data[4] & 0x0F == 5
    assert initiator.feed(initiator.command(read10(0, 1), read=512))[0].data == PATTERN[:512]


@pytest.mark.parametrize("offers", [(), DIGESTS])
def test_immediate_data_is_written(connect: Connect, device: MemoryDevice, offers: tuple[tuple[str, str], ...]) -> None:
    initiator = connect(*offers)
    (reply,) = initiator.feed(initiator.command(write10(2, 4), write=2048, data=b"x" * 2048, itt=5))
    assert (reply.opcode, reply.flags, reply.status, reply.itt, reply.words) == (0x21, 0x80, 0, 5, (0, 0, 0))
    assert device.data[1024:3072] == b"x" * 2048


def test_blocked_commands_are_answered_out_of_order(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    device.blocking = True
    stream = initiator.command(write10(0, 1), write=512, data=b"b" * 512, itt=1) + initiator.command(
        read10(8, 8), read=4096, itt=2
    )
    assert initiator.feed(stream) == []
    assert [command.itt for command in initiator.connection.tasks.blocked] == [1, 2]
    # Others overtake them meanwhile; the window is smaller by the outstanding commands.
    (other,) = initiator.feed(initiator.command(b"\0" * 6, itt=3))
    assert other.max_cmd_sn - other.exp_cmd_sn == 125
    write, read = initiator.run_blocked()
    assert (write.itt, write.status, read.itt, read.data) == (1, 0, 2, PATTERN[4096:8192])
    assert read.max_cmd_sn - read.exp_cmd_sn == 127
    assert device.data[:512] == b"b" * 512
    assert initiator.connection.tasks.outstanding == 0


def test_first_writes_are_prepared_together_and_answered_before_the_next_ones(device: MemoryDevice) -> None:
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
    assert side.commits == [[n * chunk for n in range(AHEAD)]]
    assert initiator.connection.stalled, "to be called again when these are sent"
    assert [reply.itt for reply in initiator.feed(b"")] == list(range(AHEAD, AHEAD + 4))
    assert side.commits[1:] == [[n * chunk for n in range(AHEAD, AHEAD + 4)]]
    assert not initiator.connection.stalled
    for place in range(0, 16 * chunk, chunk):
        assert side.data[place : place + GRAIN] == PATTERN[place : place + GRAIN]
    assert device.data[: 16 * chunk] == b"".join(
        b"b" * 512 + PATTERN[n * chunk + 512 : (n + 1) * chunk] for n in range(16)
    )


def test_first_writes_that_cannot_be_prepared_in_place_wait_for_workers(device: MemoryDevice) -> None:
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


def test_the_command_window_moves_with_answers(connect: Connect, portal: FakePortal, device: MemoryDevice) -> None:
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


def test_cmd_sn_wraps_to_zero(portal: FakePortal) -> None:
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


def test_a_transfer_beyond_the_limit_is_refused(connect: Connect) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(write10(0, 1), write=0xFFFFFFFC))
    assert (reply.opcode, reply.status) == (0x21, 2)
    (reply,) = initiator.feed(initiator.command(read10(0, 1), read=0xFFFFFFFC))
    assert (reply.opcode, reply.status) == (0x21, 2)
