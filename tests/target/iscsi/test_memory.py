# SPDX-License-Identifier: Apache-2.0
"""The memory that all sessions of a portal share: it is never exceeded, each session gets a part, and no session waits for ever."""

from __future__ import annotations

import pytest

from target.iscsi import pdu
from target.iscsi.command import Command
from target.iscsi.memory import LARGE, PATIENCE, SHORT_SECONDS, Account, Memory
from target.iscsi.pdu import NO_TAG, Opcode
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, FakePortal, Initiator, Reply, make_target, read10, write10

MIB = 1 << 20
TASK_SET_FULL = 0x28


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(4 * MIB)


@pytest.fixture
def portal(device: MemoryDevice) -> FakePortal:
    return FakePortal({TARGET: make_target(device)}, memory=Memory(16 * MIB, sessions=16))


def session(portal: FakePortal, *offers: tuple[str, str]) -> Initiator:
    initiator = Initiator(portal)
    initiator.log_in(("InitialR2T", "No"), ("FirstBurstLength", "262144"), *offers)
    initiator.clear_attention()
    return initiator


def kept(portal: FakePortal) -> int:
    """Return the bytes of data-out that the sessions really hold."""
    commands = [command for one in portal.connections for command in one.tasks.commands.values()]
    return sum(len(command.unsolicited) + len(command.solicited) for command in commands)


def greedy(initiator: Initiator) -> None:
    """Ask for as much memory as one session can: writes of which some data never comes."""
    for number in range(16):
        initiator.feed(initiator.command(write10(0, 2048), write=MIB, itt=1000 + number))
    for number in range(100):
        initiator.feed(initiator.command(write10(0, 512), write=262144, itt=2000 + number, final=False))


def exhausted(initiator: Initiator) -> Account:
    """Leave no memory to an initiator, and return the account that has borrowed all that can be borrowed."""
    memory = initiator.host.memory
    initiator.connection.account.take(memory.own)
    other = Account(memory)
    other.take(memory.own + memory.loans)
    return other


def write(initiator: Initiator, blocks: int) -> Reply:
    """Write with data that is asked for, and return the status."""
    length = blocks * 512
    replies = initiator.feed(initiator.command(write10(0, blocks), write=length, itt=5))
    while replies and replies[0].opcode == Opcode.R2T:
        _, offset, burst = replies[0].words
        replies = initiator.feed(initiator.data_out(5, replies[0].word20, 0, offset, bytes(burst), final=True))
    return replies[0]


# -- the accounts ------------------------------------------------------------------------------------------------


def fill(account: Account, piece: int = 1000) -> None:
    while account.take(piece):
        pass


@pytest.mark.parametrize("sessions", [1, 3, 9])
def test_busy_sessions_share_and_leave_a_part_for_the_next_one(sessions: int) -> None:
    memory = Memory(10_000_000, sessions=10)
    accounts = [Account(memory) for _ in range(sessions)]
    for _ in range(10_000_000 // 1000):
        for account in accounts:
            account.take(1000)
    part = memory.loans // (sessions + 1)
    assert all(abs(account.held - memory.own - part) < 3000 for account in accounts)
    assert abs(memory.unlent - part) < 3000
    assert memory.used == sum(account.held for account in accounts)
    assert Account(memory).take(memory.own + part // 2)


def test_nobody_takes_the_own_part_of_a_session_that_comes_later() -> None:
    memory = Memory(10_000_000, sessions=10)
    for _ in range(9):  # one after the other: each borrows half of the rest
        fill(Account(memory))
    assert memory.unlent < memory.own // 10
    last = Account(memory)
    assert last.take(memory.own)
    assert not last.take(memory.own // 10)
    assert memory.used <= memory.total


def test_what_one_session_gives_back_another_gets() -> None:
    memory = Memory(1_000_000, sessions=10)
    first, second = Account(memory), Account(memory)
    fill(first)
    before = first.held
    first.give(before)
    fill(second)
    assert second.held == before
    assert memory.used == before


def test_a_single_command_gets_its_memory_if_no_other_holds_any() -> None:
    memory = Memory(1000, sessions=10)
    account = Account(memory)
    assert account.take(5000)
    assert not account.take(1)
    account.give(5000)
    assert (account.held, memory.used, memory.unlent) == (0, 0, memory.loans)


def test_answers_that_wait_count_and_are_forgotten_with_the_peer() -> None:
    memory = Memory(1000, sessions=10)
    account, other = Account(memory), Account(memory)
    account.count_answers(900)
    assert not other.take(200)
    account.close()
    assert memory.used == 0
    assert other.take(200)


def test_the_account_that_waits_longest_goes_first_after_a_while() -> None:
    memory = Memory(32 * MIB, sessions=64)
    busy, large, other = Account(memory), Account(memory), Account(memory)
    fill(busy, MIB)
    assert not large.take(12 * MIB)
    large.wait()
    for _ in range(PATIENCE + 1):
        assert other.take(MIB)
        memory.second()
        other.give(MIB)
    assert not other.take(MIB), "the free memory is kept for the one that waits"
    assert other.take(memory.own), "but each session goes on"
    busy.give(busy.held)
    assert memory.released
    assert large.take(12 * MIB)
    large.stop_waiting()
    other.give(memory.own)
    assert other.take(MIB)


def test_a_lasting_shortage_is_noticed_and_a_short_one_is_not() -> None:
    memory = Memory(1000, sessions=10)
    account, other = Account(memory), Account(memory)
    account.take(900)
    for _ in range(SHORT_SECONDS - 1):
        other.take(200)
        assert not memory.second()
    assert not memory.second()
    for _ in range(SHORT_SECONDS - 1):
        other.take(200)
        assert not memory.second()
    other.take(200)
    assert memory.second()


# -- sessions ----------------------------------------------------------------------------------------------------


def test_greedy_sessions_stay_within_the_memory_and_a_new_one_is_served(portal: FakePortal) -> None:
    for _ in range(12):
        greedy(session(portal))
    assert MIB < kept(portal) <= portal.memory.total
    assert write(session(portal), 512).status == 0
    for connection in portal.connections:
        connection.close()
    assert kept(portal) == 0
    assert portal.memory.used == 0
    assert portal.memory.unlent == portal.memory.loans
    assert not portal.memory.waiting


def test_a_write_whose_data_comes_unasked_ends_with_task_set_full_and_can_be_repeated(
    portal: FakePortal, device: MemoryDevice
) -> None:
    initiator = session(portal)
    other = exhausted(initiator)
    refusals = portal.memory.refusals
    request = initiator.command(write10(0, 16), write=8192, data=b"a" * 512, final=False, itt=7)
    assert initiator.feed(request) == [], "the rest of its data is taken first"
    assert kept(portal) == 0
    (reply,) = initiator.feed(initiator.data_out(7, NO_TAG, 0, 512, b"a" * 7680, final=True))
    assert (reply.opcode, reply.status, reply.flags & 0x7F, reply.words[2]) == (0x21, TASK_SET_FULL, 0x02, 8192)
    assert portal.memory.refusals == refusals + 1
    assert device.data[:8192] == bytes(8192)
    other.give(other.held)
    again = initiator.command(write10(0, 16), write=8192, data=b"a" * 8192, itt=7)
    assert [answer.status for answer in initiator.feed(again)] == [0]
    assert device.data[:8192] == b"a" * 8192


def test_a_write_that_would_wait_for_the_disk_takes_memory(portal: FakePortal, device: MemoryDevice) -> None:
    initiator = session(portal)
    device.blocking = True
    held = initiator.connection.account
    exhausted(initiator)
    held.give(3000)
    writes = [initiator.command(write10(n, 2), write=1024, data=bytes(1024), itt=n) for n in range(4)]
    full = initiator.feed(b"".join(writes))
    assert [reply.status for reply in full] == [TASK_SET_FULL] * len(full)
    assert 0 < len(full) < 4
    assert [reply.status for reply in initiator.run_blocked()] == [0] * (4 - len(full))
    assert held.held == portal.memory.own - 3000


def test_a_large_read_takes_memory_until_it_is_answered(portal: FakePortal) -> None:
    other = Account(portal.memory)
    other.take(portal.memory.total - 2 * MIB)
    initiator = session(portal)
    blocks = 2 * LARGE // 512 + 1
    (reply,) = initiator.feed(initiator.command(read10(0, blocks), read=blocks * 512))
    assert reply.status == TASK_SET_FULL
    other.give(other.held)
    replies = initiator.feed(initiator.command(read10(0, blocks), read=blocks * 512))
    assert sum(len(one.data) for one in replies) == blocks * 512
    assert portal.memory.used == 0


def test_a_write_waits_and_goes_on_once_there_is_memory(portal: FakePortal) -> None:
    initiator = session(portal)
    other = exhausted(initiator)
    assert initiator.feed(initiator.command(write10(0, 16), write=8192, itt=7)) == []
    assert list(portal.memory.waiting) == [initiator.connection.account]
    other.give(other.held)
    assert portal.memory.released
    initiator.connection.tasks.data_out.admit()
    (r2t,) = initiator.take()
    assert r2t.opcode == Opcode.R2T
    assert not portal.memory.waiting


def test_an_aborted_command_that_waits_no_longer_waits(portal: FakePortal) -> None:
    initiator = session(portal)
    exhausted(initiator)
    initiator.feed(initiator.command(write10(0, 16), write=8192, itt=7))
    assert portal.memory.waiting
    initiator.feed(initiator.request(Opcode.TASK_MANAGEMENT_REQUEST, 0x81, itt=8, word20=7, immediate=True))
    assert not portal.memory.waiting


def test_requests_ahead_of_their_turn_take_memory(portal: FakePortal) -> None:
    initiator = session(portal)
    ahead = initiator.request(Opcode.NOP_OUT, itt=1, cmd_sn=initiator.cmd_sn + 1, data=bytes(900))
    initiator.feed(ahead)
    assert portal.memory.used > 900
    initiator.feed(initiator.request(Opcode.NOP_OUT, itt=2))
    assert portal.memory.used == 0


def test_a_running_command_of_a_lost_session_gives_its_memory_back_when_it_ends(
    portal: FakePortal, device: MemoryDevice
) -> None:
    initiator = session(portal)
    device.blocking = True
    initiator.feed(initiator.command(write10(0, 2), write=1024, data=bytes(1024)))
    (running,) = initiator.connection.tasks.blocked
    initiator.connection.close()
    assert portal.memory.used == 1024
    initiator.connection.tasks.complete(running)
    assert portal.memory.used == 0


# -- refused before the data is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cdb", "lun", "asc"),
    [
        pytest.param(write10(0, 2048), 9, 0x25, id="no such LUN"),
        pytest.param(write10(8000, 2048), 0, 0x21, id="out of range"),
        pytest.param(b"\x2a\x80" + write10(0, 2048)[2:], 0, 0x24, id="a bit that is not in use"),
        pytest.param(b"\xc1" + bytes(9), 0, 0x20, id="unknown"),
    ],
)
def test_a_write_that_is_sure_to_fail_is_refused_before_its_data_is_asked_for(
    portal: FakePortal, cdb: bytes, lun: int, asc: int
) -> None:
    initiator = session(portal)
    (reply,) = initiator.feed(initiator.command(cdb, write=MIB, data=bytes(512), lun=lun, itt=7))
    assert (reply.opcode, reply.status, reply.data[14]) == (0x21, 2, asc)
    assert reply.words == (0, 0, MIB), "nothing was transferred"
    assert not initiator.connection.tasks.commands
    assert portal.memory.used == 0
    assert initiator.feed(initiator.command(bytes(6)))[0].status == 0


def test_unsolicited_data_of_a_refused_write_is_thrown_away(portal: FakePortal) -> None:
    initiator = session(portal)
    assert initiator.feed(initiator.command(write10(0, 256), write=131072, lun=9, itt=7, final=False)) == []
    (command,) = initiator.connection.tasks.commands.values()
    assert portal.memory.used == 0
    piece = initiator.data_out(7, NO_TAG, 0, 0, bytes(65536), final=False)
    assert initiator.feed(piece[:30_000]) + initiator.feed(piece[30_000:]) == []
    assert kept_by(command) == 0
    (reply,) = initiator.feed(initiator.data_out(7, NO_TAG, 1, 65536, bytes(65536), final=True))
    assert (reply.status, reply.data[14]) == (2, 0x25)


def kept_by(command: Command) -> int:
    return len(command.unsolicited) + len(command.solicited)


def test_a_unit_attention_comes_before_the_data_is_asked_for(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    initiator.log_in()
    initiator.nexus.reached[0].add_attention(0x2900)
    (reply,) = initiator.feed(initiator.command(write10(0, 2048), write=MIB, itt=7))
    assert (reply.opcode, reply.status, reply.data[4] & 0x0F) == (0x21, 2, 6)
    (r2t,) = initiator.feed(initiator.command(write10(0, 2048), write=MIB, itt=7))
    assert r2t.opcode == Opcode.R2T


def test_a_transfer_that_is_too_long_is_refused_without_its_data(portal: FakePortal) -> None:
    initiator = session(portal)
    (reply,) = initiator.feed(initiator.command(write10(0, 1), write=65 * MIB, itt=7))
    assert (reply.opcode, reply.status) == (Opcode.SCSI_RESPONSE, 2)
    assert initiator.connection.sender.digests == pdu.NO_DIGESTS
