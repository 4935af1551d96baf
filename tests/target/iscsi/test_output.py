# SPDX-License-Identifier: Apache-2.0
"""The send queue of a connection: arenas, views, and partial sends."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi import pdu
from target.iscsi.output import ARENA_LENGTH, ArenaPool, Output
from tests.target.iscsi.initiator import (
    PATTERN,
    Connect,
    read10,
)


def test_answers_may_take_more_than_one_arena(connect: Connect) -> None:
    initiator = connect()
    replies = initiator.feed(b"".join(initiator.command(read10(n * 400, 400), read=204800, itt=n) for n in range(12)))
    assert [len(reply.data) for reply in replies] == [204800] * 12
    assert [reply.data[:9] for reply in replies[:5]] == [PATTERN[n * 204800 :][:9] for n in range(5)]


@pytest.fixture
def pool() -> ArenaPool:
    return ArenaPool(keep=2)


@pytest.fixture
def output(pool: ArenaPool) -> Output:
    return Output(pool)


def sent_by(output: Output, step: int = 1 << 30) -> bytes:
    """Take all that waits, at most `step` bytes at a time, as a socket would.

    A queue that does not shrink fails the test.
    """
    stream = b""
    while waiting := len(output):
        piece = b"".join(output.gather(2))[:step]
        output.sent(len(piece))
        assert len(output) < waiting
        stream += piece
    return stream


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.booleans()), max_size=20), st.integers(1, 64))
def test_copies_and_views_are_sent_in_order(pieces: list[tuple[bytes, bool]], step: int) -> None:
    output = Output(ArenaPool())
    for piece, copied in pieces:
        if copied:
            output.append(piece)
        else:
            output.append_view(memoryview(piece))
    total = sum(len(piece) for piece, _ in pieces)
    assert len(output) == total
    assert sent_by(output, step) == b"".join(piece for piece, _ in pieces)
    assert (output.taken, len(output)) == (total, 0)


def test_allocated_room_stays_free_until_fill_is_advanced(output: Output) -> None:
    (abandoned,) = output.allocate(100)
    abandoned[:] = b"a" * 100
    assert len(output) == 0
    (used,) = output.allocate(100)
    used[:] = b"u" * 100
    output.fill += pdu.BHS_LENGTH + 100
    assert sent_by(output)[pdu.BHS_LENGTH :] == b"u" * 100


def test_a_full_arena_is_kept_until_it_was_sent(output: Output, pool: ArenaPool) -> None:
    output.append(b"1" * ARENA_LENGTH)
    output.append(b"2" * 10)
    assert not pool._free
    assert sent_by(output, ARENA_LENGTH // 2) == b"1" * ARENA_LENGTH + b"2" * 10
    assert len(pool._free) == 1


def test_an_idle_output_holds_no_arena(output: Output, pool: ArenaPool) -> None:
    output.append(b"waits")
    output.release()
    assert output.room == ARENA_LENGTH, "bytes wait in it"
    sent_by(output)
    output.release()
    assert (output.room, len(output.arena), len(pool._free)) == (0, 0, 1)


def test_discarded_bytes_are_never_sent(output: Output, pool: ArenaPool) -> None:
    output.append(b"old")
    output.append_view(memoryview(b"older"))
    output.discard()
    assert (len(output), output.room, len(pool._free)) == (0, 0, 1)
    output.append(b"new")
    assert sent_by(output) == b"new"


def test_the_pool_keeps_a_bounded_number_of_arenas(pool: ArenaPool) -> None:
    for _ in range(5):
        pool.give(memoryview(bytearray(ARENA_LENGTH)))
    pool.give(memoryview(bytearray(10)))
    assert [len(arena) for arena in pool._free] == [ARENA_LENGTH] * 2


def test_a_socket_takes_as_much_as_it_has_room_for(output: Output) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        output.append(b"begin")
        output.append_view(memoryview(bytes(8 << 20)))
        output.append(b"end")
        assert 0 < output.send(ours) == len(output) < (8 << 20) + 8
        received = bytearray()
        theirs.setblocking(False)  # if nothing was sent, the test fails and does not wait
        while len(output):
            assert len(received) < (8 << 20) + 8
            received += theirs.recv(1 << 20)
            output.send(ours)
        while len(received) < (8 << 20) + 8:
            piece = theirs.recv(1 << 20)
            assert piece
            received += piece
        assert received == b"begin" + bytes(8 << 20) + b"end"
        output.append(b"one run")
        assert output.send(ours) == len(output) == 0
        assert theirs.recv(100) == b"one run"
