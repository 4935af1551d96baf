# SPDX-License-Identifier: Apache-2.0
"""Answers as they are packed: sequences of Data-In, residuals, pieces of scatter lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi.pdu import Opcode
from target.iscsi.sender import piece_of
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import (
    DIGESTS,
    PATTERN,
    Connect,
    Reply,
    read10,
    write10,
)


def data_of(replies: list[Reply]) -> bytes:
    """Return the data-in of one command, after checking the sequence of its PDUs."""
    parts = [reply for reply in replies if reply.opcode == Opcode.DATA_IN]
    assert [reply.words[0] for reply in parts] == list(range(len(parts)))
    assert [reply.words[1] for reply in parts] == [sum(len(p.data) for p in parts[:n]) for n in range(len(parts))]
    return b"".join(reply.data for reply in parts)


@pytest.mark.parametrize("offers", [(), DIGESTS])
def test_no_sequence_of_data_in_is_longer_than_a_burst(connect: Connect, offers: tuple[tuple[str, str], ...]) -> None:
    initiator = connect(("MaxBurstLength", "1024"), *offers)
    replies = initiator.feed(initiator.command(read10(0, 5), read=2560))
    assert data_of(replies) == PATTERN[:2560]
    assert [(len(reply.data), reply.flags) for reply in replies] == [(1024, 0x80), (1024, 0x80), (512, 0x81)]


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
def test_a_read_reports_its_residual(
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
def test_a_read_that_announced_no_data_has_an_overflow(connect: Connect, flags: int) -> None:
    initiator = connect()
    request = initiator.request(Opcode.SCSI_COMMAND, flags, itt=5, word20=0, tail=read10(1, 1).ljust(16, b"\0"))
    (reply,) = initiator.feed(request)
    assert (reply.opcode, reply.flags, reply.words[2], reply.status) == (0x21, 0x84, 512, 0)


def test_a_write_that_announced_more_has_an_underflow(connect: Connect, device: MemoryDevice) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(write10(0, 1), write=1024, data=b"w" * 1024))
    assert (reply.opcode, reply.flags, reply.words[2], reply.status) == (0x21, 0x82, 512, 0)
    assert device.data[:1024] == b"w" * 512 + PATTERN[512:1024]


@given(st.lists(st.binary(max_size=9), max_size=5), st.data())
def test_a_piece_of_a_scatter_list_has_its_bytes(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    offset = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - offset))
    assert b"".join(piece_of([memoryview(part) for part in parts], offset, length)) == whole[offset : offset + length]
