# SPDX-License-Identifier: Apache-2.0
"""TransportIDs: packing, unpacking, and the pointer at a bad field."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi.reservations import transport_id
from target.scsi.reservations.persistent_reservation import InitiatorPort
from target.scsi.sense import CheckCondition

NAMES = st.from_regex(r"iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9][a-z0-9.-]{0,99}(:[a-z0-9.:_-]{1,99})?", fullmatch=True)
ISIDS = st.just("") | st.integers(0, (1 << 48) - 1).map(lambda number: f"{number:012x}")


def raw(text: bytes, *, code: int = 0x45, length: int | None = None) -> bytes:
    padded = text.ljust(max(20, len(text) + 3 & ~3), b"\0")
    return struct.pack(">BxH", code, len(padded) if length is None else length) + padded


@given(name=NAMES, isid=ISIDS, before=st.binary(max_size=9))
def test_a_port_survives_packing(name: str, isid: str, before: bytes) -> None:
    port = InitiatorPort(name, isid)
    packed = transport_id.pack(port)
    assert len(packed) % 4 == 0
    assert len(packed) >= 24
    assert transport_id.unpack(before + packed + b"more", len(before)) == (port, len(before) + len(packed))


def test_a_short_isid_is_padded_and_in_lower_case() -> None:
    port, _ = transport_id.unpack(raw(b"iqn.2026-11.x,i,0xAB\0"), 0)
    assert port == InitiatorPort("iqn.2026-11.x", "0000000000ab")


def test_a_port_has_the_name_under_which_it_logs_in() -> None:
    port, _ = transport_id.unpack(raw(b"iqn.2026-11.X:HOST,i,0x1\0"), 0)
    assert port.initiator == "iqn.2026-11.x:host"


@pytest.mark.parametrize(
    ("data", "asc", "byte"),
    [
        (raw(b"iqn.2026-11.x,i,0x1\0", code=0x46), 0x2600, 0),  # another protocol
        (raw(b"iqn.2026-11.x,i,0x1\0", code=0x85), 0x2600, 0),  # another format
        (raw(b"iqn.2026-11.x,i,0x1\0", length=18), 0x2600, 2),
        (raw(b"iqn.2026-11.x,i,0x1\0", length=22), 0x2600, 2),
        (raw(b"iqn.2026-11.x,i,0x1\0", length=24), 0x1A00, None),
        (raw(b"iqn.2026-11.x,i,0x1\0")[:20], 0x1A00, None),
        (raw(b"iqn.2026-11.x\0"), 0x2600, 4),  # format 01b without an ISID
        (raw(b"iqn.2026-11.x,i,0x1234567890123\0"), 0x2600, 4),
        (raw(b"iqn.2026-11.x,i,0x1\0", code=0x05), 0x2600, 4),  # format 00b with one
        (raw(b"\0", code=0x05), 0x2600, 4),
        (raw(b"\xff\xfe\0", code=0x05), 0x2600, 4),
        (raw(b"host\0", code=0x05), 0x2600, 4),
        (raw(b"iqn.2026-11.x:a b\0", code=0x05), 0x2600, 4),
        (raw(b"iqn.2026-11.x:\x1b[2J,i,0x1\0"), 0x2600, 4),
        (raw(b"x" * 20, code=0x05), 0x2600, 4),  # no NUL
        (raw(b"x" * 224 + b"\0", code=0x05), 0x2600, 4),
    ],
)
def test_a_bad_transport_id_is_refused_with_a_pointer(data: bytes, asc: int, byte: int | None) -> None:
    with pytest.raises(CheckCondition) as refused:
        transport_id.unpack(bytes(8) + data, 8)
    sense = refused.value.sense
    assert sense.asc == asc
    assert (sense.field and sense.field.byte) == (None if byte is None else 8 + byte)
