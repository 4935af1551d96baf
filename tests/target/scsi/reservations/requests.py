# SPDX-License-Identifier: Apache-2.0
"""PERSISTENT RESERVE IN and OUT as an initiator sends them."""

from __future__ import annotations

import struct

from target.scsi.task import Status
from tests.target.scsi.harness import (
    GOOD,
    Initiator,
    Result,
    cdb10,
)

CONFLICT = Status.RESERVATION_CONFLICT


REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, IGNORE, MOVE = range(8)


KEYS, RESERVATION, CAPABILITIES, FULL_STATUS = range(4)


APTPL, ALL_TG_PT, SPEC_I_PT = 0x01, 0x04, 0x08


READ, WRITE = cdb10(0x28, 0, 1), cdb10(0x2A, 0, 1)


BLOCK = b"w" * 512


def out(
    initiator: Initiator,
    action: int,
    key: int = 0,
    service_key: int = 0,
    kind: int = 0,
    flags: int = 0,
    more: bytes = b"",
) -> Result:
    data = struct.pack(">QQ4xB3x", key, service_key, flags) + more
    return initiator.run(struct.pack(">BBB2xIB", 0x5F, action, kind, len(data), 0), data)


def read_in(initiator: Initiator, action: int, length: int = 4096) -> bytes:
    result = initiator.run(struct.pack(">BB5xHB", 0x5E, action, length, 0))
    assert result.status == GOOD
    return result.data


def keys(initiator: Initiator) -> list[int]:
    data = read_in(initiator, KEYS)
    assert int.from_bytes(data[4:8]) == len(data) - 8
    return [key for (key,) in struct.iter_unpack(">Q", data[8:])]


def generation(initiator: Initiator) -> int:
    return int.from_bytes(read_in(initiator, KEYS)[:4])


def reservation(initiator: Initiator) -> tuple[int, int] | None:
    data = read_in(initiator, RESERVATION)
    if not int.from_bytes(data[4:8]):
        return None
    assert len(data) == 24
    return int.from_bytes(data[8:16]), data[21]


def registered(*initiators: Initiator) -> None:
    for number, initiator in enumerate(initiators, 1):
        assert out(initiator, REGISTER, 0, number).status == GOOD
