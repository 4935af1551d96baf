# SPDX-License-Identifier: Apache-2.0
"""Data-out of the right, a shorter and a longer length, data-in, and the cutting and comparing of buffers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import transfer
from target.scsi.sense import CheckCondition
from target.scsi.task import Status, Task
from tests.target.scsi.harness import allocate

DATA = random.Random(7).randbytes(1024)


def task_with(*pieces: bytes) -> Task:
    task = Task(allocate)
    task.data_out = [memoryview(piece) for piece in pieces]
    return task


@pytest.mark.parametrize("offset", [0, 1, 511, 512, 700, 1023])
def test_first_difference(offset: int) -> None:
    changed = bytearray(DATA)
    changed[offset] ^= 0x40
    assert transfer.first_difference(DATA, DATA) is None
    assert transfer.first_difference(bytes(changed), DATA) == offset
    other = bytes(byte ^ 1 for byte in DATA[offset:])
    assert transfer.first_difference(DATA[:offset] + other, DATA) == offset


@given(pieces=st.lists(st.binary(max_size=9), max_size=5), length=st.integers(0, 50))
def test_trim_and_skip_cut_a_scatter_list_like_a_string(pieces: list[bytes], length: int) -> None:
    whole, buffers = b"".join(pieces), [memoryview(piece) for piece in pieces]
    assert b"".join(transfer.trim(buffers, length)) == whole[:length]
    assert b"".join(transfer.skip(buffers, length)) == whole[length:]
    assert all(transfer.skip(buffers, length))


def test_data_out_of_the_right_length_is_not_copied() -> None:
    task = task_with(b"ab", b"cd")
    assert transfer.data_out(task, 4, exact=True) is task.data_out
    assert task.residual_out == 0
    assert transfer.joined(task, 4) == b"abcd"


def test_surplus_data_out_is_a_residual_underflow() -> None:
    task = task_with(b"ab", b"cd")
    assert b"".join(transfer.data_out(task, 3)) == b"abc"
    assert task.residual_out == -1
    with pytest.raises(CheckCondition) as refused:
        transfer.data_out(task, 3, exact=True)
    assert refused.value.sense.asc == 0x0E03


def test_missing_data_out_is_a_residual_overflow_and_refused() -> None:
    task = task_with(b"ab")
    with pytest.raises(CheckCondition) as refused:
        transfer.data_out(task, 3)
    assert refused.value.sense.asc == 0x0E03
    assert task.residual_out == 1


@pytest.mark.parametrize(
    ("given_bytes", "asked", "taken", "residual"),
    [(1024, 1024, 1024, 0), (1536, 1024, 1024, -512), (512, 1024, 512, 512)],
)
def test_blocks_out_takes_fewer_whole_blocks(given_bytes: int, asked: int, taken: int, residual: int) -> None:
    task = task_with(bytes(given_bytes))
    assert sum(map(len, transfer.blocks_out(task, asked, 512))) == taken
    assert task.residual_out == residual


def test_blocks_out_refuses_a_part_of_a_block() -> None:
    with pytest.raises(CheckCondition):
        transfer.blocks_out(task_with(bytes(700)), 1024, 512)


@pytest.mark.parametrize("allocation_length", [0, 1, 5, 9, 4096])
def test_reply_is_cut_to_the_allocation_length(allocation_length: int) -> None:
    task = task_with()
    transfer.reply(task, b"012345678", allocation_length)
    assert (task.status, task.sense) == (Status.GOOD, b"")
    assert b"".join(task.data_in) == b"012345678"[:allocation_length]


def test_go_on_says_who_aborted_the_task() -> None:
    task = task_with()
    transfer.go_on(task)
    task.cleared = True
    with pytest.raises(transfer.Aborted) as cleared:
        transfer.go_on(task)
    assert cleared.value.cleared
    task.aborted = True  # task management wins: the initiator expects no answer
    with pytest.raises(transfer.Aborted) as aborted:
        transfer.go_on(task)
    assert not aborted.value.cleared
