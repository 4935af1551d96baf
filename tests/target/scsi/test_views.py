# SPDX-License-Identifier: Apache-2.0
"""What a nexus sees of a target: other LUNs than its neighbours, read-only ones, and changes of both under its eyes."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Mapping

import pytest

from lun_backends import block_device
from target.scsi.commands import table
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
    cdb10,
    compare_and_write_cdb,
    report_luns_cdb,
    unmap_cdb,
    unmap_list,
)

READ, WRITE = cdb10(0x28, 0, 1), cdb10(0x2A, 0, 1)
BLOCK = b"\x5a" * 512


def unit(name: str, kind: UnitKind = UnitKind.PRIMARY) -> LogicalUnit:
    return LogicalUnit(
        MemoryDevice(write_once=kind is UnitKind.WRITE_ONCE),
        uuid=uuid.uuid4(),
        kind=kind,
        name=name,
        commands=table.for_unit,
    )


def mapping(luns: Mapping[str, tuple[Reach, ...]]) -> View:
    """A view by the units' names."""

    def view(number: int, unit: LogicalUnit) -> Iterable[Reach]:
        return luns.get(unit.name, ())

    return view


@pytest.fixture
def target() -> ScsiTarget:
    """Three units, LUNs 0 to 2."""
    target = ScsiTarget(TARGET_NAME)
    for number, name in enumerate("abc"):
        target.add_lun(number, unit(name))
    return target


def login(target: ScsiTarget, view: View) -> Initiator:
    return Initiator(target.open_nexus("iqn.one", view=view))


def luns_of(initiator: Initiator, lun: int = 0) -> list[int]:
    """REPORT LUNS."""
    data = initiator.run(report_luns_cdb(), lun=lun << 48).data
    return [field >> 48 & 0x3FFF for (field,) in struct.iter_unpack(">Q", data[8:])]


def attention(initiator: Initiator, lun: int) -> int:
    result = initiator.run(TEST_UNIT_READY, lun=lun << 48)
    return 0 if result.status == GOOD else result.asc


def test_units_are_reached_under_the_initiators_own_numbers(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"b": (Reach(0),), "c": (Reach(7),)}))
    assert luns_of(initiator) == [0, 7]
    assert initiator.run(WRITE, BLOCK, lun=0).status == GOOD
    for number, expected in ((1, BLOCK), (2, bytes(512)), (0, bytes(512))):
        assert login(target, sees_all).run(READ, lun=number << 48).data == expected
    for hidden in (1, 2):
        assert initiator.run(READ, lun=hidden << 48).asc == 0x2500


def test_nothing_may_be_seen_and_lun_0_still_answers(target: ScsiTarget) -> None:
    initiator = login(target, sees_nothing)
    assert luns_of(initiator) == []
    assert initiator.run(READ).asc == 0x2500


def test_one_unit_may_be_seen_twice(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"a": (Reach(3), Reach(4, read_only=True))}))
    assert luns_of(initiator) == [3, 4]
    assert initiator.run(WRITE, BLOCK, lun=3 << 48).status == GOOD
    assert initiator.run(READ, lun=4 << 48).data == BLOCK
    assert initiator.run(WRITE, BLOCK, lun=4 << 48).asc == 0x2700


def test_read_only_refuses_every_command_that_writes_to_this_initiator_alone(target: ScsiTarget) -> None:
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


def test_mode_sense_tells_the_reader_alone(target: ScsiTarget) -> None:
    mode_sense = bytes((0x1A, 0x08, 0x3F, 0, 255, 0))
    reader = login(target, mapping({"a": (Reach(0, read_only=True),)}))
    assert reader.run(mode_sense).data[2] & 0x80
    assert not login(target, sees_all).run(mode_sense).data[2] & 0x80


def test_a_reader_has_nothing_prepared(target: ScsiTarget) -> None:
    prepared: list[object] = []

    class Device(MemoryDevice):
        def prepare_writes(self, ranges: object) -> None:
            prepared.append(ranges)

    target.add_lun(
        9, LogicalUnit(Device(), uuid=uuid.uuid4(), kind=UnitKind.PRIMARY, name="d", commands=table.for_unit)
    )
    for read_only in (True, False):
        initiator = login(target, mapping({"d": (Reach(0, read_only=read_only),)}))
        initiator.nexus.prepare([initiator.task(WRITE, BLOCK)])
        assert bool(prepared) is not read_only


def test_only_those_who_see_a_change_are_told(target: ScsiTarget) -> None:
    sees_it = login(target, mapping({"a": (Reach(0),), "new": (Reach(5),)}))
    does_not = login(target, mapping({"a": (Reach(0),)}))
    target.add_lun(3, unit("new"))
    assert attention(sees_it, 0) == 0x3F0E
    assert attention(sees_it, 5) == 0
    assert attention(does_not, 0) == 0
    target.remove_lun(3)
    assert attention(sees_it, 0) == 0x3F0E
    assert attention(sees_it, 5) == 0x2500
    assert attention(does_not, 0) == 0


def test_of_two_units_under_one_number_the_first_stays(target: ScsiTarget) -> None:
    initiator = login(target, mapping({name: (Reach(0),) for name in "abc"}))
    assert luns_of(initiator) == [0]
    target.remove_lun(1)
    assert initiator.nexus.units[0].name == "a"


def test_a_changed_view_is_told_and_in_force(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"a": (Reach(0),), "b": (Reach(1),)}))
    assert target.change_view(initiator.nexus, mapping({"a": (Reach(0),), "c": (Reach(2),)}))
    assert attention(initiator, 0) == 0x3F0E
    assert attention(initiator, 0) == 0
    assert initiator.run(READ, lun=1 << 48).asc == 0x2500
    assert initiator.run(READ, lun=2 << 48).status == GOOD
    target.add_lun(3, unit("b"))  # asked of the new view, too
    assert luns_of(initiator) == [0, 2]


def test_a_view_that_comes_to_the_same_changes_nothing(target: ScsiTarget) -> None:
    initiator = login(target, sees_all)
    assert not target.change_view(initiator.nexus, mapping({name: (Reach(n),) for n, name in enumerate("abc")}))
    assert attention(initiator, 0) == 0


def test_becoming_read_only_is_told_as_changed_mode_parameters(target: ScsiTarget) -> None:
    initiator = login(target, mapping({"a": (Reach(0),), "b": (Reach(1),)}))
    assert target.change_view(initiator.nexus, mapping({"a": (Reach(0, read_only=True),), "b": (Reach(1),)}))
    assert attention(initiator, 0) == 0x2A01
    assert initiator.run(WRITE, BLOCK).asc == 0x2700
    assert attention(initiator, 1) == 0x3F0E
    assert initiator.run(WRITE, BLOCK, lun=1 << 48).status == GOOD


def test_a_closed_nexus_has_no_view_to_change(target: ScsiTarget) -> None:
    initiator = login(target, sees_all)
    target.close_nexus(initiator.nexus)
    assert not target.change_view(initiator.nexus, sees_nothing)


def test_a_warm_reset_reaches_what_its_sender_sees(target: ScsiTarget) -> None:
    sender = login(target, mapping({"a": (Reach(0),)}))
    other = login(target, sees_all)
    sender.nexus.target_warm_reset()
    assert attention(other, 0) == 0x2903
    assert attention(other, 1) == 0


def test_a_write_once_unit_may_be_read_only() -> None:
    target = ScsiTarget(TARGET_NAME)
    target.add_lun(0, unit("w", UnitKind.WRITE_ONCE))
    reader = login(target, mapping({"w": (Reach(0, read_only=True),)}))
    assert reader.run(WRITE, BLOCK).asc == 0x2700
    assert reader.run(READ).key == 0x8  # still blank
    with pytest.raises(block_device.BlankBlock):
        target.luns[0].device.readv(0, [memoryview(bytearray(512))])
