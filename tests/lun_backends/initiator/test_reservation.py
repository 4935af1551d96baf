# SPDX-License-Identifier: Apache-2.0
"""PERSISTENT RESERVE over iSCSI, against wolun's portal."""

from __future__ import annotations

from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.initiator import reservation, unit
from lun_backends.initiator.reservation import Held, Type
from tests.lun_backends.initiator.serving import NAME, Served
from tests.memory_device import MemoryDevice

ALL = Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
WRITE = b"\x8a\0" + bytes(8) + (1).to_bytes(4) + b"\0\0"
READ = b"\x88\0" + bytes(8) + (1).to_bytes(4) + b"\0\0"


def conflicts(lun: unit.Unit, cdb: bytes) -> bool:
    try:
        lun.execute(cdb, bytes(512)) if cdb is WRITE else lun.execute(cdb, in_length=512)
    except block_device.ReservationConflict:
        return True
    return False


@pytest.fixture
def nodes(served: Served, tmp_path: Path) -> list[unit.Unit]:
    served.add(0, MemoryDevice(), reservations=tmp_path / "reservations.json")
    return [served.unit(0, port=number) for number in range(3)]


def test_fence_lets_registered_nodes_alone_read_and_write(nodes: list[unit.Unit]) -> None:
    first, second, stranger = nodes
    assert reservation.fence_type(first) is ALL
    for node in (first, second):
        assert reservation.own_key(node) is None
        reservation.register_and_ignore(node, 0xA)
        assert reservation.own_key(node) == 0xA
    reservation.reserve(first, 0xA, ALL)
    reservation.reserve(second, 0xA, ALL)  # it holds that reservation already
    assert reservation.read_reservation(second) == Held(0, ALL)
    assert reservation.read_keys(stranger).keys == (0xA, 0xA)
    assert reservation.own_key(stranger) is None
    assert [conflicts(node, cdb) for node in nodes for cdb in (READ, WRITE)] == [False] * 4 + [True] * 2
    reservation.preempt_and_abort(second, 0xA, 0, ALL)
    assert [conflicts(node, cdb) for node in nodes for cdb in (READ, WRITE)] == [True] * 2 + [False] * 2 + [True] * 2
    assert unit.REGISTRATIONS_PREEMPTED in first.take_attentions()
    reservation.register(second, 0xA, 0xB)
    with pytest.raises(block_device.ReservationConflict):
        reservation.register(first, 0xA, 0xB)
    with pytest.raises(block_device.ReservationConflict):
        reservation.preempt_and_abort(first, 0xA, 0, ALL)
    reservation.register(first, 0, 0xB)
    assert reservation.read_keys(first).keys == (0xB, 0xB)
    assert not conflicts(first, WRITE)
    assert reservation.report_capabilities(first) == reservation.Capabilities(True, True, frozenset(Type))
    reservation.clear(first, 0xB)
    assert reservation.read_reservation(first) is None
    assert reservation.read_keys(first).keys == ()


def test_full_status_names_the_nodes(nodes: list[unit.Unit]) -> None:
    first, second, _ = nodes
    reservation.register_and_ignore(first, 0xA)
    reservation.register_and_ignore(second, 0xB)
    reservation.reserve(second, 0xB, Type.WRITE_EXCLUSIVE)
    status = {entry.key: entry for entry in reservation.read_full_status(first)}
    assert {entry.initiator for entry in status.values()} == {NAME}
    assert (status[0xA].holds, status[0xB].holds) == (False, True)
    assert status[0xA].isid != status[0xB].isid
    assert reservation.read_reservation(first) == Held(0xB, Type.WRITE_EXCLUSIVE)
    with pytest.raises(block_device.ReservationConflict):
        reservation.reserve(first, 0xA, ALL)


def test_each_of_several_keys_is_tried(nodes: list[unit.Unit]) -> None:
    for number, node in enumerate(nodes):
        reservation.register_and_ignore(node, 0x10 + number)
    assert [reservation.own_key(node) for node in nodes] == [0x10, 0x11, 0x12]
    assert sorted(reservation.read_keys(nodes[0]).keys) == [0x10, 0x11, 0x12]


def test_unit_that_forgets_its_reservations_is_refused(served: Served) -> None:
    served.add(0, MemoryDevice())
    lun = served.unit(0)
    with pytest.raises(reservation.Unsuitable, match="PTPL_C"):
        reservation.fence_type(lun)
    with pytest.raises(reservation.Unsuitable):
        reservation.register_and_ignore(lun, 1)


class Scripted(unit.Unit):
    """A unit that answers each command with the same bytes."""

    def __init__(self, answer: bytes | unit.Answer) -> None:
        super().__init__("/dev/scripted")
        self._answer = answer

    def reset_logical_unit(self, timeout: float = 0.0) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _send(
        self, cdb: bytes, data_out: block_device.Buffers, data_in: block_device.Buffers, timeout: float
    ) -> unit.Answer:
        if isinstance(self._answer, unit.Answer):
            return self._answer
        (into,) = data_in
        length = min(len(into), len(self._answer))
        into[:length] = self._answer[:length]
        return unit.Answer(unit.GOOD, length)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param("0008 01 81 EA01", ALL, id="all types"),
        pytest.param("0008 01 80 EA00", Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, id="LIO before 8h, and many arrays"),
    ],
)
def test_best_type_is_chosen(answer: str, kind: Type) -> None:
    assert reservation.fence_type(Scripted(bytes.fromhex(answer).ljust(8, b"\0"))) is kind


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(bytes.fromhex("000800 80EA010000"), "PTPL_C", id="no power loss"),
        pytest.param(bytes.fromhex("00080180 6A000000"), "8h and 7h", id="no types for all registrants"),
        pytest.param(bytes.fromhex("00080100 00000000"), "8h and 7h", id="the types are not told"),
        pytest.param(
            unit.Answer(unit.CHECK_CONDITION, 0, bytes.fromhex("700005000000000a000000002000")),
            "use a primary",
            id="no reservations",
        ),
    ],
)
def test_arrays_that_cannot_fence_are_refused(answer: bytes | unit.Answer, reason: str) -> None:
    with pytest.raises(reservation.Unsuitable, match=reason):
        reservation.fence_type(Scripted(answer))


def test_names_of_other_transports_are_kept(served: Served) -> None:
    name = bytes.fromhex("06") + bytes(3) + bytes.fromhex("5000c50012345678") + bytes(12)
    entry = (7).to_bytes(8) + bytes(4) + b"\x01\x08" + bytes(6) + len(name).to_bytes(4) + name
    (status,) = reservation.read_full_status(Scripted(bytes(4) + len(entry).to_bytes(4) + entry))
    assert status == reservation.Registration(7, True, name.hex(), "")
