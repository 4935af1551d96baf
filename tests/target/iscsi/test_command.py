# SPDX-License-Identifier: Apache-2.0
"""One command: the stages of its data-out buffer, and the barriers that wait for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi.command import Barrier, Command, OutOfOrder, ReadyToTransfer, Stage, private_buffers
from target.iscsi.errors import PeerError
from target.scsi.task import Task


def write_of(expected: int) -> Command:
    return Command(1, Task(private_buffers), expected, reads=False, writes=True, counted=True)


def test_a_buffer_of_immediate_data_alone_is_ready() -> None:
    command = write_of(8)
    command.begin_data_out(memoryview(b"12345678"), 64, more=False)
    assert command.stage is Stage.READY
    assert (command.budget, b"".join(command.gathered())) == (0, b"12345678")


@given(st.binary(min_size=1, max_size=200), st.integers(0, 200), st.integers(0, 200), st.integers(1, 50), st.data())
def test_data_of_all_three_ways_ends_up_in_its_place(
    source: bytes, immediate: int, first_burst: int, max_burst: int, data: st.DataObject
) -> None:
    first_burst = min(first_burst, len(source))
    immediate = min(immediate, first_burst)
    command = write_of(len(source))
    command.begin_data_out(memoryview(source)[:immediate], first_burst, more=True)
    assert command.stage is Stage.UNSOLICITED
    position, number = immediate, 0
    while position < first_burst and data.draw(st.booleans()):
        length = data.draw(st.integers(1, first_burst - position))
        command.unsolicited_place(number, position, length)[:] = source[position : position + length]
        position, number = position + length, number + 1
    command.end_unsolicited()
    assert command.stage is (Stage.READY if position == len(source) else Stage.WAITING)
    assert command.budget == len(source) - position
    command.begin_solicited()
    r2ts: list[ReadyToTransfer] = []
    while (r2t := command.next_r2t(len(r2ts) + 1, max_burst)) is not None:
        r2ts.append(r2t)
    for r2t in data.draw(st.permutations(r2ts)):
        assert r2t.length <= max_burst
        for number, start in enumerate(range(r2t.offset, r2t.offset + r2t.length, 7)):
            length = min(7, r2t.offset + r2t.length - start)
            command.solicited_place(r2t, number, start, length)[:] = source[start : start + length]
        assert r2t.received == r2t.length
    assert b"".join(command.gathered()) == source


def test_data_that_skips_a_number_or_an_offset_is_out_of_order() -> None:
    command = write_of(100)
    command.begin_data_out(memoryview(b""), 50, more=True)
    for number, offset in ((1, 0), (0, 10)):
        with pytest.raises(OutOfOrder):
            command.unsolicited_place(number, offset, 10)
    command.end_unsolicited()
    command.begin_solicited()
    r2t = command.next_r2t(1, 100)
    assert r2t is not None
    for number, offset in ((1, 0), (0, 10)):
        with pytest.raises(OutOfOrder):
            command.solicited_place(r2t, number, offset, 10)
    assert (command.progress, r2t.received) == (100, 0)


def test_more_data_than_announced_is_the_peers_error() -> None:
    with pytest.raises(PeerError):
        write_of(4).begin_data_out(memoryview(b"12345"), 64, more=False)
    with pytest.raises(PeerError):
        write_of(64).begin_data_out(memoryview(b"12345"), 4, more=False)
    command = write_of(64)
    command.begin_data_out(memoryview(b""), 16, more=True)
    with pytest.raises(PeerError):
        command.unsolicited_place(0, 0, 17)
    command.end_unsolicited()
    with pytest.raises(PeerError):
        command.unsolicited_place(0, 0, 16)
    command.begin_solicited()
    r2t = command.next_r2t(1, 8)
    assert r2t is not None
    with pytest.raises(PeerError):
        command.solicited_place(r2t, 0, 0, 9)


def test_a_barrier_calls_once_after_the_last_command() -> None:
    commands = [write_of(1) for _ in range(3)]
    calls: list[str] = []
    Barrier(commands, lambda: calls.append("done"))
    for command in commands[:2]:
        command.finish()
    assert not calls
    commands[0].finish()
    assert not calls, "a command counts once"
    commands[2].finish()
    assert (calls, commands[2].stage) == (["done"], Stage.DONE)


def test_a_barrier_without_commands_calls_at_once() -> None:
    calls: list[str] = []
    Barrier([], lambda: calls.append("done"))
    assert calls == ["done"]
