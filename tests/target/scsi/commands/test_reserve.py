# SPDX-License-Identifier: Apache-2.0
"""The parameters of PERSISTENT RESERVE IN and OUT."""

from __future__ import annotations

import struct

import pytest

from target.scsi.reservations import persistent_reservation, transport_id
from target.scsi.reservations.persistent_reservation import InitiatorPort, ReservationType
from tests.target.scsi.harness import (
    GOOD,
    Bench,
    Initiator,
    Result,
)
from tests.target.scsi.reservations.requests import (
    ALL_TG_PT,
    APTPL,
    BLOCK,
    CAPABILITIES,
    CONFLICT,
    FULL_STATUS,
    IGNORE,
    MOVE,
    REGISTER,
    RESERVE,
    SPEC_I_PT,
    WRITE,
    keys,
    out,
    read_in,
    registered,
    reservation,
)


def move_list(key: int, new_key: int, to: InitiatorPort, *, unregister: bool = False, target_port: int = 1) -> bytes:
    name = transport_id.pack(to)
    return struct.pack(">QQxBHI", key, new_key, 2 if unregister else 0, target_port, len(name)) + name


def move(initiator: Initiator, data: bytes) -> Result:
    return initiator.run(struct.pack(">BBB2xIB", 0x5F, MOVE, 0, len(data), 0), data)


def test_register_and_move(one: Initiator, two: Initiator) -> None:
    registered(one)
    out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE)
    to = two.nexus.port
    assert move(one, move_list(2, 9, to)).status == CONFLICT
    assert move(one, move_list(1, 0, to)).asc == 0x2600
    assert move(one, move_list(1, 9, one.nexus.port)).asc == 0x2600
    assert move(one, move_list(1, 9, to, target_port=2)).asc == 0x2600
    assert move(one, move_list(1, 9, to)[:-4]).asc == 0x1A00
    assert move(two, move_list(1, 9, to)).status == CONFLICT
    assert move(one, move_list(1, 9, to, unregister=True)).status == GOOD
    assert (keys(one), reservation(one)) == ([9], (9, 1))
    assert one.run(WRITE, BLOCK).status == CONFLICT
    assert two.run(WRITE, BLOCK).status == GOOD


def test_spec_i_pt_registers_other_ports(bench: Bench, one: Initiator, two: Initiator) -> None:
    absent = InitiatorPort("iqn.2026-11.x:absent", "0000000000aa")
    names = transport_id.pack(InitiatorPort("iqn.2026-11.x:two", "")) + transport_id.pack(absent)
    more = len(names).to_bytes(4) + names
    assert out(one, REGISTER, 0, 7, flags=SPEC_I_PT | ALL_TG_PT, more=more).status == GOOD
    assert set(bench.unit.reservations.state.keys) == {one.nexus.port, two.nexus.port, absent}
    assert out(one, REGISTER, 7, 8, flags=SPEC_I_PT, more=more).asc == 0x2600  # registered already
    assert out(one, IGNORE, 7, 8, flags=SPEC_I_PT, more=more).asc == 0x2600
    assert out(bench.login("iqn.2026-11.x:x", "00"), REGISTER, 0, 8, flags=SPEC_I_PT, more=more[:-1]).asc == 0x1A00
    unknown = transport_id.pack(InitiatorPort("iqn.2026-11.x:nobody", ""))
    refused = out(
        bench.login("iqn.2026-11.x:y", "00"), REGISTER, 0, 8, flags=SPEC_I_PT, more=len(unknown).to_bytes(4) + unknown
    )
    assert refused.asc == 0x2600
    assert keys(one) == [7, 7, 7]


def test_parameter_lists_of_other_lengths_are_refused(one: Initiator) -> None:
    assert out(one, REGISTER, 0, 1, more=bytes(4)).asc == 0x1A00
    assert one.run(struct.pack(">BBB2xIB", 0x5F, REGISTER, 0, 23, 0), bytes(23)).asc == 0x1A00
    assert one.run(struct.pack(">BBB2xIB", 0x5F, REGISTER, 0, 24, 0), bytes(20)).asc == 0x0E03
    assert keys(one) == []


def test_capabilities(bench: Bench, one: Initiator, primary: Bench) -> None:
    assert read_in(one, CAPABILITIES).hex() == "00081d80ea010000"
    assert read_in(primary.initiator, CAPABILITIES).hex() == "00081c80ea010000"
    out(one, REGISTER, 0, 1, flags=APTPL)
    assert read_in(one, CAPABILITIES)[3] == 0x81
    assert out(primary.initiator, REGISTER, 0, 1, flags=APTPL).asc == 0x2600


def test_full_status(one: Initiator, two: Initiator) -> None:
    registered(one, two)
    out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    data = read_in(one, FULL_STATUS)
    assert int.from_bytes(data[4:8]) == len(data) - 8
    registrations, position = [], 8
    while position < len(data):
        key, flags, kind, target_port, length = struct.unpack_from(">Q4xBB4xHI", data, position)
        port, end = transport_id.unpack(data, position + 24)
        assert end == position + 24 + length
        registrations.append((key, flags, kind, target_port, port))
        position = end
    assert registrations == [(1, 1, 5, 1, one.nexus.port), (2, 0, 0, 1, two.nexus.port)]


@pytest.mark.parametrize("action", range(4))
def test_persistent_reserve_in_is_cut_to_the_allocation_length(one: Initiator, action: int) -> None:
    registered(one)
    out(one, RESERVE, 1, kind=1)
    whole = read_in(one, action)
    for length in (0, 4, 8, 11, len(whole)):
        assert read_in(one, action, length) == whole[:length]


def fakes(name: str, count: int) -> bytes:
    """Return the list of SPEC_I_PT with ports of that name that never log in."""
    ports = b"".join(transport_id.pack(InitiatorPort(name, f"{number:012x}")) for number in range(count))
    return len(ports).to_bytes(4) + ports


def test_registrations_for_others_count_for_the_initiator_that_makes_them(
    bench: Bench, one: Initiator, two: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the room of all nor that of a victim can be filled with ports that do not exist."""
    monkeypatch.setattr(persistent_reservation, "MAX_REGISTRATIONS_EACH", 4)
    victim = two.nexus.port.initiator
    assert out(one, REGISTER, 0, 7, flags=SPEC_I_PT, more=fakes(victim, 4)).asc == 0x5504
    assert out(one, REGISTER, 0, 7, flags=SPEC_I_PT, more=fakes(victim, 3)).status == GOOD
    assert out(one, REGISTER, 7, 0).status == GOOD
    assert out(one, REGISTER, 0, 8, flags=SPEC_I_PT, more=fakes("iqn.2026-11.x:fake", 1)).asc == 0x5504
    for number in range(8, 12):
        port = bench.login(victim, f"{number:012x}")
        assert out(port, REGISTER, 0, 9).status == GOOD
    assert out(bench.login(victim, f"{12:012x}"), REGISTER, 0, 9).asc == 0x5504


def test_a_port_that_registers_itself_counts_for_itself_again(
    one: Initiator, two: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistent_reservation, "MAX_REGISTRATIONS_EACH", 2)
    name = transport_id.pack(two.nexus.port)
    assert out(one, REGISTER, 0, 7, flags=SPEC_I_PT, more=len(name).to_bytes(4) + name).status == GOOD
    assert out(two, REGISTER, 7, 9).status == GOOD
    assert out(one, REGISTER, 7, 0).status == GOOD
    assert out(one, REGISTER, 0, 7, flags=SPEC_I_PT, more=fakes("iqn.2026-11.x:fake", 1)).status == GOOD


def test_a_move_to_another_port_counts_for_the_initiator_that_moves(
    one: Initiator, two: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistent_reservation, "MAX_REGISTRATIONS_EACH", 1)
    registered(one)
    out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE)
    assert move(one, move_list(1, 9, two.nexus.port)).asc == 0x5504
    assert move(one, move_list(1, 9, two.nexus.port, unregister=True)).status == GOOD
