# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations and SPC-2's: service actions, permissions, unit attentions, and the state after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.scsi.reservations import persistent_reservation
from target.scsi.reservations.persistent_reservation import ReservationType
from tests.target.scsi.harness import (
    GOOD,
    TEST_UNIT_READY,
    Bench,
    Initiator,
    attention_of,
    cdb10,
    compare_and_write_cdb,
    inquiry_cdb,
    report_luns_cdb,
)
from tests.target.scsi.reservations.requests import (
    APTPL,
    BLOCK,
    CLEAR,
    CONFLICT,
    IGNORE,
    PREEMPT,
    PREEMPT_AND_ABORT,
    READ,
    REGISTER,
    RELEASE,
    RESERVE,
    WRITE,
    generation,
    keys,
    out,
    registered,
    reservation,
)


def test_register_change_and_unregister(one: Initiator, two: Initiator) -> None:
    assert out(one, REGISTER, 0, 0x11).status == GOOD
    assert out(two, IGNORE, 0x99, 0x22).status == GOOD
    assert sorted(keys(one)) == [0x11, 0x22]
    assert out(one, REGISTER, 0x99, 0x33).status == CONFLICT
    assert out(one, REGISTER, 0, 0x33).status == CONFLICT
    assert sorted(keys(one)) == [0x11, 0x22]
    assert out(one, REGISTER, 0x11, 0x33).status == GOOD
    assert sorted(keys(two)) == [0x22, 0x33]
    assert out(one, REGISTER, 0x33, 0).status == GOOD
    assert out(two, IGNORE, 0, 0).status == GOOD
    assert keys(one) == []
    assert generation(one) == 5
    assert out(one, REGISTER, 0, 0).status == GOOD  # nothing to do
    assert out(one, REGISTER, 1, 2).status == CONFLICT  # not registered, so there is no key 1
    assert generation(one) == 5


@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT])
def test_only_a_registered_port_with_its_own_key_is_served(one: Initiator, two: Initiator, action: int) -> None:
    registered(one)
    assert out(two, action, 1, 1, ReservationType.WRITE_EXCLUSIVE).status == CONFLICT
    assert out(one, action, 2, 1, ReservationType.WRITE_EXCLUSIVE).status == CONFLICT
    assert (keys(one), reservation(one)) == ([1], None)


EVERYTHING, READING, NOTHING = "everything", "reading", "nothing"


@pytest.mark.parametrize(
    ("kind", "to_registered", "to_others"),
    [
        (ReservationType.WRITE_EXCLUSIVE, READING, READING),
        (ReservationType.EXCLUSIVE_ACCESS, NOTHING, NOTHING),
        (ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, EVERYTHING, READING),
        (ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, EVERYTHING, NOTHING),
        (ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, EVERYTHING, READING),
        (ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, EVERYTHING, NOTHING),
    ],
)
def test_each_type_leaves_its_permissions(
    bench: Bench,
    one: Initiator,
    two: Initiator,
    three: Initiator,
    kind: ReservationType,
    to_registered: str,
    to_others: str,
) -> None:
    registered(one, two)
    assert out(one, RESERVE, 1, kind=kind).status == GOOD
    assert reservation(three) == (0 if kind.all_registrants else 1, kind)
    late = bench.login("iqn.2026-11.x:late", "000000000004")
    for initiator, may in ((one, EVERYTHING), (two, to_registered), (three, to_others), (late, to_others)):
        before = bytes(bench.device.data)
        assert (initiator.run(READ).status == GOOD) is (may != NOTHING)
        assert (initiator.run(cdb10(0x2F, 0, 1)).status == GOOD) is (may != NOTHING)
        for cdb, data in (
            (compare_and_write_cdb(0, 1), before[:512] + BLOCK),
            (WRITE, BLOCK),
            (cdb10(0x35, 0, 0), b""),
        ):
            status = initiator.run(cdb, data).status
            assert status == (GOOD if may == EVERYTHING else CONFLICT)
        if may != EVERYTHING:
            assert bench.device.data == before
        for cdb in (
            TEST_UNIT_READY,
            inquiry_cdb(),
            report_luns_cdb(),
            cdb10(0x25, 0, 0),
        ):
            assert initiator.run(cdb).status == GOOD
        for cdb in (  # commands that SPC-4's table permits to a nexus that may read
            bytes([0x1A, 0, 0x3F, 0, 255, 0]),  # MODE SENSE
            bytes([0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 255, 0]),
            bytes([0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]),  # REPORT SUPPORTED OPERATION CODES
            bytes([0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]),
        ):
            assert initiator.run(cdb).status == (CONFLICT if may == NOTHING else GOOD)
        # The hot path of a nexus with every permission is as short as without a reservation.
        assert initiator.nexus._itls[0].unusual is (may != EVERYTHING)


def test_reserve_again_and_release(one: Initiator, two: Initiator, three: Initiator) -> None:
    registered(one, two)
    assert out(one, RESERVE, 1, kind=0x2).asc == 0x2400  # no such type
    assert out(one, RESERVE, 1, kind=0x11).asc == 0x2400  # no such scope
    assert out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == GOOD
    assert out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == GOOD
    assert out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE).status == CONFLICT
    assert out(two, RESERVE, 2, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == CONFLICT
    # A port that is not the holder releases nothing.
    assert out(two, RELEASE, 2, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == GOOD
    assert reservation(one) == (1, 5)
    assert out(one, RELEASE, 1, kind=ReservationType.WRITE_EXCLUSIVE).asc == 0x2604
    assert out(one, RELEASE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == GOOD
    assert reservation(one) is None
    assert [attention_of(initiator) for initiator in (one, two, three)] == [0, 0x2A04, 0]


def test_unregistering_the_holder_ends_its_reservation(one: Initiator, two: Initiator) -> None:
    registered(one, two)
    out(one, RESERVE, 1, kind=ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)
    assert out(one, REGISTER, 1, 0).status == GOOD
    assert reservation(one) is None
    assert attention_of(two) == 0x2A04
    assert one.run(WRITE, BLOCK).status == GOOD


def test_all_registrants_hold_until_the_last_is_gone(one: Initiator, two: Initiator, three: Initiator) -> None:
    registered(one, two)
    out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS)
    assert out(one, REGISTER, 1, 0).status == GOOD
    assert reservation(one) == (0, 7)
    assert one.run(WRITE, BLOCK).status == CONFLICT
    assert two.run(WRITE, BLOCK).status == GOOD
    assert out(two, REGISTER, 2, 0).status == GOOD
    assert reservation(one) is None
    assert three.run(WRITE, BLOCK).status == GOOD


def test_clear(one: Initiator, two: Initiator, three: Initiator) -> None:
    registered(one, two)
    out(one, RESERVE, 1, kind=ReservationType.EXCLUSIVE_ACCESS)
    before = generation(one)
    assert out(two, CLEAR, 2).status == GOOD
    assert attention_of(one) == 0x2A03
    assert (keys(one), reservation(one), generation(one)) == ([], None, before + 1)
    assert attention_of(three) == 0


def test_preempt_takes_the_reservation(one: Initiator, two: Initiator, three: Initiator) -> None:
    registered(one, two, three)
    out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    assert out(two, PREEMPT, 2, 1, ReservationType.EXCLUSIVE_ACCESS).status == GOOD
    assert [attention_of(initiator) for initiator in (one, two, three)] == [0x2A05, 0, 0x2A04]
    assert reservation(two) == (2, 3)
    assert sorted(keys(two)) == [2, 3]
    assert one.run(READ).status == CONFLICT
    assert two.run(WRITE, BLOCK).status == GOOD


def test_preempt_of_a_registration_leaves_the_reservation(one: Initiator, two: Initiator, three: Initiator) -> None:
    registered(one, two, three)
    out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    assert out(two, PREEMPT, 2, 3, ReservationType.WRITE_EXCLUSIVE).status == GOOD
    assert (reservation(one), sorted(keys(one))) == ((1, 5), [1, 2])
    assert attention_of(three) == 0x2A05
    assert three.run(WRITE, BLOCK).status == CONFLICT
    assert out(two, PREEMPT, 2, 3, ReservationType.WRITE_EXCLUSIVE).status == CONFLICT  # gone already
    assert out(two, PREEMPT, 2, 0, ReservationType.WRITE_EXCLUSIVE).asc == 0x2600  # 0 is for all registrants only


def test_preempt_of_all_registrants(one: Initiator, two: Initiator, three: Initiator) -> None:
    registered(one, two, three)
    out(one, RESERVE, 1, kind=ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS)
    assert out(two, PREEMPT, 2, 3, ReservationType.WRITE_EXCLUSIVE).status == GOOD  # a registration only
    assert (reservation(two), sorted(keys(two))) == ((0, 8), [1, 2])
    assert out(two, PREEMPT, 2, 0, ReservationType.WRITE_EXCLUSIVE).status == GOOD
    assert (reservation(two), keys(two)) == ((2, 1), [2])


def test_preempt_and_abort_with_the_epochs_key(one: Initiator, two: Initiator, three: Initiator) -> None:
    """All nodes of a cluster have the old epoch's key; one node changes to the new key and preempts the old one."""
    for node in (one, two, three):
        assert out(node, REGISTER, 0, 0x0E1).status == GOOD
    out(one, RESERVE, 0x0E1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    assert out(two, REGISTER, 0x0E1, 0x0E2).status == GOOD
    assert out(two, PREEMPT_AND_ABORT, 0x0E2, 0x0E1, ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == GOOD
    assert (keys(two), reservation(two)) == ([0x0E2], (0x0E2, 5))
    for node in (one, three):
        assert attention_of(node) == 0x2A05
        assert node.run(WRITE, BLOCK).status == CONFLICT
        assert node.run(READ).status == GOOD
    # The second taker finds the old key gone; a node that catches up writes again.
    assert (
        out(three, PREEMPT_AND_ABORT, 0x0E1, 0x0E1, ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == CONFLICT
    )
    assert out(three, REGISTER, 0, 0x0E2).status == GOOD
    assert three.run(WRITE, BLOCK).status == GOOD


def test_registrations_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations outlive sessions, and each session may have a new ISID: without a bound, memory would grow for ever."""
    monkeypatch.setattr(persistent_reservation, "MAX_REGISTRATIONS", 3)
    ports = [bench.login("iqn.2026-11.x:many", f"{number:012x}") for number in range(4)]
    for port in ports[:3]:
        assert out(port, REGISTER, 0, 7).status == GOOD
    before = bench.unit.reservations.state
    assert out(ports[3], REGISTER, 0, 7).asc == 0x5504
    assert out(ports[3], IGNORE, 0, 7).asc == 0x5504
    assert bench.unit.reservations.state is before
    assert out(ports[0], REGISTER, 7, 8).status == GOOD  # a registered port may change its key, or unregister
    assert out(ports[0], REGISTER, 8, 0).status == GOOD
    assert out(ports[3], REGISTER, 0, 7).status == GOOD


def test_registrations_of_one_initiator_leave_room_for_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [bench.login("iqn.2026-11.x:many", f"{number:012x}") for number in range(4)]
    for port in ports[:3]:
        assert out(port, REGISTER, 0, 7).status == GOOD
    monkeypatch.setattr(persistent_reservation, "MAX_REGISTRATIONS_EACH", 2)  # a file of an older version may have more
    assert out(ports[3], REGISTER, 0, 7).asc == 0x5504
    assert out(ports[0], REGISTER, 7, 8).status == GOOD
    assert out(bench.login("iqn.2026-11.x:other", "000000000001"), REGISTER, 0, 7).status == GOOD


def again(bench: Bench, tmp_path: Path) -> Bench:
    return Bench(state_dir=tmp_path, device=bench.device)


def test_aptpl_survives_a_restart(bench: Bench, one: Initiator, two: Initiator, tmp_path: Path) -> None:
    registered(one, two)
    assert not (tmp_path / "reservations.json").exists()
    out(one, REGISTER, 1, 0xFEDCBA9876543210, flags=APTPL)
    out(one, RESERVE, 0xFEDCBA9876543210, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    restarted = again(bench, tmp_path)
    late = restarted.login("iqn.2026-11.x:three", "000000000003")
    assert sorted(keys(late)) == [2, 0xFEDCBA9876543210]
    assert reservation(late) == (0xFEDCBA9876543210, 5)
    assert late.run(WRITE, BLOCK).status == CONFLICT
    assert restarted.login("iqn.2026-11.x:two", "000000000002").run(WRITE, BLOCK).status == GOOD
    assert (
        restarted.login("iqn.2026-11.x:two", "000000000009").run(WRITE, BLOCK).status == CONFLICT
    )  # another port of that name
    holder = restarted.login("iqn.2026-11.x:one", "000000000001")
    assert out(holder, REGISTER, 0xFEDCBA9876543210, 5).status == GOOD  # without APTPL the file goes
    assert not (tmp_path / "reservations.json").exists()
    assert keys(again(bench, tmp_path).initiator) == []


def test_a_state_that_cannot_be_stored_is_not_in_force(bench: Bench, one: Initiator, tmp_path: Path) -> None:
    (tmp_path / "reservations.json.new").mkdir()
    assert out(one, REGISTER, 0, 1, flags=APTPL).asc == 0x5504
    assert keys(one) == []
    (tmp_path / "reservations.json.new").rmdir()
    assert out(one, REGISTER, 0, 1, flags=APTPL).status == GOOD


# -- SPC-2 -------------------------------------------------------------------------------------------------------

RESERVE_6, RELEASE_6 = bytes([0x16, 0, 0, 0, 0, 0]), bytes([0x17, 0, 0, 0, 0, 0])
RESERVE_10, RELEASE_10 = bytes([0x56]) + bytes(9), bytes([0x57]) + bytes(9)


@pytest.mark.parametrize(("reserve", "release"), [(RESERVE_6, RELEASE_10), (RESERVE_10, RELEASE_6)])
def test_spc2_reserve(one: Initiator, two: Initiator, reserve: bytes, release: bytes) -> None:
    assert one.run(reserve).status == GOOD
    assert one.run(reserve).status == GOOD
    assert two.run(reserve).status == CONFLICT
    assert two.run(release).status == GOOD  # nothing happens
    for cdb in (READ, TEST_UNIT_READY, bytes([0x1A, 0, 0x3F, 0, 255, 0])):
        assert two.run(cdb).status == CONFLICT
        assert one.run(cdb).status == GOOD
    for cdb in (inquiry_cdb(), report_luns_cdb(), bytes([0x03, 0, 0, 0, 252, 0])):
        assert two.run(cdb).status == GOOD
    assert out(one, REGISTER, 0, 1).status == CONFLICT  # the two kinds exclude each other
    assert one.run(release).status == GOOD
    assert two.run(WRITE, BLOCK).status == GOOD


def test_spc2_reservation_ends_with_a_reset_and_with_the_session(bench: Bench, one: Initiator, two: Initiator) -> None:
    one.run(RESERVE_6)
    bench.unit.reset()
    assert attention_of(two) == 0x2903
    assert two.run(RESERVE_6).status == GOOD
    bench.target.close_nexus(two.nexus)
    assert attention_of(one) == 0x2903
    assert one.run(WRITE, BLOCK).status == GOOD


def test_spc2_under_a_persistent_reservation(one: Initiator, two: Initiator, three: Initiator) -> None:
    registered(one, two)
    assert one.run(RESERVE_6).status == CONFLICT
    assert three.run(RELEASE_6).status == CONFLICT
    out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    assert one.run(RESERVE_6).status == GOOD  # compatible reservation handling: the port has as much already
    assert two.run(RELEASE_6).status == GOOD
    assert three.run(RESERVE_6).status == CONFLICT
    assert two.run(WRITE, BLOCK).status == GOOD


def test_an_administrator_removes_the_registrations_of_one_initiator(
    bench: Bench, one: Initiator, two: Initiator, three: Initiator
) -> None:
    for number, initiator in enumerate((one, two, three), 1):
        assert out(initiator, REGISTER, 0, number, flags=APTPL).status == GOOD
    assert out(one, RESERVE, 1, kind=ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY).status == GOOD
    removed = bench.unit.reservations.remove(lambda port: port == one.nexus.port)
    assert removed == {one.nexus.port}
    assert attention_of(one) == 0x2A05
    assert (attention_of(two), attention_of(three)) == (0x2A04, 0x2A04)
    assert (sorted(keys(two)), reservation(two)) == ([2, 3], None)
    assert one.run(WRITE, BLOCK).status == GOOD
    assert bench.unit.reservations.remove(lambda port: port == one.nexus.port) == frozenset()


def test_what_an_administrator_removed_does_not_come_back(bench: Bench, one: Initiator, tmp_path: Path) -> None:
    registered(one)
    assert out(one, REGISTER, 1, 1, flags=APTPL).status == GOOD
    assert out(one, RESERVE, 1, kind=ReservationType.EXCLUSIVE_ACCESS).status == GOOD
    assert Bench(state_dir=tmp_path).unit.reservations.state.keys
    bench.unit.reservations.remove(lambda port: True)
    after = Bench(state_dir=tmp_path).unit.reservations.state
    assert (dict(after.keys), after.reservation) == ({}, None)


def test_an_administrator_ends_a_reserve_of_spc2(bench: Bench, one: Initiator, two: Initiator) -> None:
    assert one.run(b"\x16" + bytes(5)).status == GOOD
    assert two.run(WRITE, BLOCK).status == CONFLICT
    assert bench.unit.reservations.remove(lambda port: port == two.nexus.port) == frozenset()
    assert two.run(WRITE, BLOCK).status == CONFLICT
    assert bench.unit.reservations.remove(lambda port: True) == {one.nexus.port}
    assert two.run(WRITE, BLOCK).status == GOOD
    assert attention_of(one) == 0x2A03
