# SPDX-License-Identifier: Apache-2.0
"""The views of nexuses: LUNs of their own, read-only ones, and changes of both during a session."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import pytest

from lun_backends import block_device
from target.scsi.commands.table import COMMANDS
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.nexus import Reach, View, sees_all, sees_nothing
from target.scsi.scsi_target import ScsiTarget
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    TARGET_NAME,
    TEST_UNIT_READY,
    Initiator,
    attention_of,
    cdb10,
    compare_and_write_cdb,
    make_unit,
    report_luns_cdb,
    unmap_cdb,
    unmap_list,
)

READ, WRITE = cdb10(0x28, 0, 1), cdb10(0x2A, 0, 1)
BLOCK = b"\x5a" * 512


def mapping(luns: Mapping[str, tuple[Reach, ...]]) -> View:
    """Return a view by the units' names."""

    def view(number: int, unit: LogicalUnit) -> Iterable[Reach]:
        return luns.get(unit.name, ())

    return view


@pytest.fixture
def target() -> ScsiTarget:
    """Make a target with three units, LUNs 0 to 2."""
    target = ScsiTarget(TARGET_NAME)
    for number, name in enumerate("abc"):
        target.add_lun(number, make_unit(name=name))
    return target


def login(target: ScsiTarget, view: View) -> Initiator:
    return Initiator(target.open_nexus("iqn.2026-11.x:one", view=view))


def luns_of(initiator: Initiator, lun: int = 0) -> list[int]:
    """Return the LUNs of REPORT LUNS."""
    data = initiator.run(report_luns_cdb(), lun=lun << 48).data
    return [field >> 48 & 0x3FFF for (field,) in struct.iter_unpack(">Q", data[8:])]


def test_a_view_numbers_units_for_its_initiator(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"b": (Reach(0),), "c": (Reach(7),)}))
    assert luns_of(initiator) == [0, 7]
    assert initiator.run(WRITE, BLOCK, lun=0).status == GOOD
    for number, expected in ((1, BLOCK), (2, bytes(512)), (0, bytes(512))):
        assert login(target, sees_all).run(READ, lun=number << 48).data == expected
    for hidden in (1, 2):
        assert initiator.run(READ, lun=hidden << 48).asc == 0x2500


def test_lun_0_answers_a_nexus_that_sees_no_unit(target: ScsiTarget) -> None:
    initiator = login(target, sees_nothing)
    assert luns_of(initiator) == []
    assert initiator.run(READ).asc == 0x2500


def test_a_view_can_show_one_unit_twice(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"a": (Reach(3), Reach(4, read_only=True))}))
    assert luns_of(initiator) == [3, 4]
    assert initiator.run(WRITE, BLOCK, lun=3 << 48).status == GOOD
    assert initiator.run(READ, lun=4 << 48).data == BLOCK
    assert initiator.run(WRITE, BLOCK, lun=4 << 48).asc == 0x2700


def test_read_only_refuses_every_write_of_this_initiator_alone(target: ScsiTarget) -> None:
    reader = login(target, mapping({"a": (Reach(0, read_only=True),)}))
    writer = login(target, sees_all)
    for command in COMMANDS:
        if command.writes and not command.atomic:
            empty = bytes((command.opcode, command.service_action or 0)).ljust(len(command.usage), b"\0")
            result = reader.run(empty, BLOCK)
            assert (result.status, result.key, result.asc) == (CHECK, 0x7, 0x2700), command.name
    for cdb, data in (
        (WRITE, BLOCK),
        (compare_and_write_cdb(0, 1), bytes(512) + BLOCK),
        (unmap_cdb(24), unmap_list((0, 1))),
    ):
        assert reader.run(cdb, data).asc == 0x2700
    assert reader.run(READ).data == bytes(512)
    assert writer.run(WRITE, BLOCK).status == GOOD
    assert reader.run(READ).data == BLOCK


def test_mode_sense_reports_write_protection_to_the_reader_alone(target: ScsiTarget) -> None:
    mode_sense = bytes((0x1A, 0x08, 0x3F, 0, 255, 0))
    reader = login(target, mapping({"a": (Reach(0, read_only=True),)}))
    assert reader.run(mode_sense).data[2] & 0x80
    assert not login(target, sees_all).run(mode_sense).data[2] & 0x80


def test_writes_of_a_reader_are_not_prepared(target: ScsiTarget) -> None:
    prepared: list[object] = []

    class Device(MemoryDevice):
        def prepare_writes(self, ranges: object) -> None:
            prepared.append(ranges)

    target.add_lun(9, make_unit(Device(), name="d"))
    for read_only in (True, False):
        initiator = login(target, mapping({"d": (Reach(0, read_only=read_only),)}))
        initiator.nexus.prepare([initiator.task(WRITE, BLOCK)])
        assert bool(prepared) is not read_only


def test_only_nexuses_that_see_a_change_get_an_attention(target: ScsiTarget) -> None:
    sees_change = login(target, mapping({"a": (Reach(0),), "new": (Reach(5),)}))
    sees_none = login(target, mapping({"a": (Reach(0),)}))
    target.add_lun(3, make_unit(name="new"))
    assert attention_of(sees_change, 0) == 0x3F0E
    assert attention_of(sees_change, 5) == 0
    assert attention_of(sees_none, 0) == 0
    target.remove_lun(3)
    assert attention_of(sees_change, 0) == 0x3F0E
    assert sees_change.run(TEST_UNIT_READY, lun=5 << 48).asc == 0x2500
    assert attention_of(sees_none, 0) == 0


def test_the_first_of_two_units_with_one_lun_stays(target: ScsiTarget) -> None:
    initiator = login(target, mapping({name: (Reach(0),) for name in "abc"}))
    assert luns_of(initiator) == [0]
    target.remove_lun(1)
    assert initiator.nexus.units[0].name == "a"


def test_a_changed_view_is_in_force_and_raises_an_attention(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"a": (Reach(0),), "b": (Reach(1),)}))
    assert target.change_view(initiator.nexus, mapping({"a": (Reach(0),), "c": (Reach(2),)}))
    assert attention_of(initiator, 0) == 0x3F0E
    assert attention_of(initiator, 0) == 0
    assert initiator.run(READ, lun=1 << 48).asc == 0x2500
    assert initiator.run(READ, lun=2 << 48).status == GOOD
    target.add_lun(3, make_unit(name="b"))  # the target asks the new view, too
    assert luns_of(initiator) == [0, 2]


def test_an_equal_view_changes_nothing(target: ScsiTarget) -> None:
    initiator = login(target, sees_all)
    assert not target.change_view(initiator.nexus, mapping({name: (Reach(n),) for n, name in enumerate("abc")}))
    assert attention_of(initiator, 0) == 0


def test_becoming_read_only_raises_changed_mode_parameters(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"a": (Reach(0),), "b": (Reach(1),)}))
    assert target.change_view(initiator.nexus, mapping({"a": (Reach(0, read_only=True),), "b": (Reach(1),)}))
    assert attention_of(initiator, 0) == 0x2A01
    assert initiator.run(WRITE, BLOCK).asc == 0x2700
    assert attention_of(initiator, 1) == 0x3F0E
    assert initiator.run(WRITE, BLOCK, lun=1 << 48).status == GOOD


def test_a_closed_nexus_has_no_view_to_change(target: ScsiTarget) -> None:
    initiator = login(target, sees_all)
    target.close_nexus(initiator.nexus)
    assert not target.change_view(initiator.nexus, sees_nothing)


def test_a_warm_reset_reaches_the_units_its_sender_sees(target: ScsiTarget) -> None:
    sender = login(target, mapping({"a": (Reach(0),)}))
    other = login(target, sees_all)
    sender.nexus.target_warm_reset()
    assert attention_of(other, 0) == 0x2903
    assert attention_of(other, 1) == 0


def test_a_write_once_unit_can_be_read_only() -> None:
    target = ScsiTarget(TARGET_NAME)
    target.add_lun(0, make_unit(kind=UnitKind.WRITE_ONCE, name="w"))
    reader = login(target, mapping({"w": (Reach(0, read_only=True),)}))
    assert reader.run(WRITE, BLOCK).asc == 0x2700
    assert reader.run(READ).key == 0x8  # still blank
    with pytest.raises(block_device.BlankBlock):
        target.luns[0].device.readv(0, [memoryview(bytearray(512))])


@pytest.mark.parametrize(
    "cdb",
    [
        *(struct.pack(">BBB2xIB", 0x5F, action, 3, 24, 0) for action in range(8)),
        b"\x16" + bytes(5),
        b"\x56" + bytes(9),
        b"\x1b\0\0\0\0\0",
        b"\x1e\0\0\0\x01\0",
        b"\x15\x10\0\0\x18\0",
        b"\x55\x10\0\0\0\0\0\0\x18\0",
    ],
    ids=lambda cdb: cdb[:2].hex(),
)
def test_read_only_refuses_what_changes_the_unit_for_others(target: ScsiTarget, cdb: bytes) -> None:
    reader = login(target, mapping({"a": (Reach(0, read_only=True),)}))
    owner = Initiator(target.open_nexus("iqn.2026-11.x:owner"))
    result = reader.run(cdb, struct.pack(">QQ4xB3x", 0, 0x666, 0))
    assert (result.status, result.key, result.asc) == (CHECK, 0x7, 0x2700)
    assert reader.nexus.refuses(reader.task(cdb))
    assert owner.run(cdb10(0x2A, 0, 1), bytes(512)).status == GOOD
    assert owner.run(struct.pack(">BB5xHB", 0x5E, 0, 64, 0)).data[4:8] == bytes(4), "no key is registered"


@pytest.mark.parametrize("cdb", [b"\x1b\0\0\0\x01\0", b"\x1e" + bytes(5), b"\x17" + bytes(5), b"\x35" + bytes(9)])
def test_read_only_allows_what_changes_nothing_for_others(target: ScsiTarget, cdb: bytes) -> None:
    assert login(target, mapping({"a": (Reach(0, read_only=True),)})).run(cdb).status == GOOD


def test_read_only_sees_reservations_but_makes_none(target: ScsiTarget) -> None:
    reader = login(target, mapping({"a": (Reach(0, read_only=True),)}))
    owner = Initiator(target.open_nexus("iqn.2026-11.x:owner"))
    register = struct.pack(">BBB2xIB", 0x5F, 0, 0, 24, 0)
    assert owner.run(register, struct.pack(">QQ4xB3x", 0, 0x77, 0)).status == GOOD
    assert reader.run(struct.pack(">BB5xHB", 0x5E, 0, 64, 0)).data[8:16] == (0x77).to_bytes(8, "big")


def test_another_unit_under_a_known_lun_is_announced(target: ScsiTarget) -> None:
    """INQUIRY DATA HAS CHANGED (SPC-4 annex F): the session sent commands to the unit that had the LUN before."""
    view = mapping({"a": (Reach(0),), "b": (Reach(5),), "c": ()})
    initiator = login(target, view)
    initiator.nexus.begins()
    while attention_of(initiator, 5):
        pass
    target.change_view(initiator.nexus, mapping({"a": (Reach(0),), "c": (Reach(5),)}))
    assert attention_of(initiator, 5) == 0x3F03
    assert attention_of(initiator, 5) == 0
    target.change_view(initiator.nexus, mapping({"a": (Reach(0),)}))
    target.change_view(initiator.nexus, mapping({"a": (Reach(0),), "c": (Reach(5),)}))
    assert attention_of(initiator, 5) == 0  # the same unit as before


def test_first_command_of_a_session_is_noted_for_its_unit(target: ScsiTarget) -> None:
    initiator = login(target, sees_all)
    initiator.nexus.begins()
    target.add_lun(3, make_unit(name="d"))
    units = target.luns
    assert initiator.nexus.used() == {}
    initiator.run(TEST_UNIT_READY, lun=1 << 48)
    initiator.run(TEST_UNIT_READY, lun=3 << 48)
    assert initiator.nexus.used() == {1: units[1], 3: units[3]}
    assert [unit.used_by for unit in units.values()] == [set(), {"iqn.2026-11.x:one"}, set(), {"iqn.2026-11.x:one"}]


def test_initiators_that_may_know_another_unit_are_told_once(target: ScsiTarget) -> None:
    for new_to in ({"iqn.2026-11.x:one"}, {"*"}):
        unit = make_unit(name="new")
        unit.new_to |= new_to
        target.add_lun(7, unit)
        for expected in (0x3F03, 0):
            initiator = login(target, sees_all)
            initiator.nexus.begins()
            attentions = {attention_of(initiator, 7), attention_of(initiator, 7)}
            assert (0x3F03 in attentions) == bool(expected)
        target.remove_lun(7)
