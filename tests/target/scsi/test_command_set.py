# SPDX-License-Identifier: Apache-2.0
"""The commands of one kind of unit, made from a small table of the test's own."""

from __future__ import annotations

import pytest

from target.scsi.command_set import ALL, NOT_WRITE_ONCE, PRIMARY, Command, UnitCommands, takes_copies
from target.scsi.logical_unit import Handler, ItlNexus
from target.scsi.sense import CheckCondition
from target.scsi.task import Task
from target.scsi.unit_kind import UnitKind
from tests.target.scsi.harness import Bench, allocate

RUN: list[str] = []


def handler(name: str) -> Handler:
    def run(itl: ItlNexus, task: Task, nowait: bool) -> None:
        RUN.append(name)

    return run


def row(name: str, usage: str, **columns: object) -> Command:
    mask = bytes.fromhex(usage)
    return Command(name, mask[0], mask, handler(name), **columns)  # type: ignore[arg-type] # columns are the row's own


def first_and_second(cdb: bytes | memoryview) -> tuple[int, int]:
    return cdb[1], cdb[2]


ROWS = (
    row("read", "08 1f ff ff ff 00", fast=handler("fast read"), plain=ALL),
    row(
        "write",
        "0a 1f ff ff ff 00",
        fast=handler("fast write"),
        plain=PRIMARY,
        writes=True,
        range_written=first_and_second,
    ),
    row("unmap", "0b 00 00 00 00 00", kinds=NOT_WRITE_ONCE, writes=True),
    row("atomic", "0c 00 00 00 00 00", writes=True, atomic=True),
    row("one", "0d 1f 00 00 00 00", service_action=1),
    row("two", "0d 1f 00 00 00 00", service_action=2, writes=True),
)


def commands(kind: UnitKind = UnitKind.PRIMARY, *, write_protected: bool = False, atomic: bool = False) -> UnitCommands:
    return UnitCommands(ROWS, kind, write_protected=write_protected, atomic=atomic)


def run(unit: UnitCommands, cdb: bytes, *, checked: bool = False) -> str | int:
    """Run a CDB; return the name of the handler, or the additional sense code."""
    RUN.clear()
    task = Task(allocate)
    task.cdb = cdb
    itl = Bench().initiator.nexus.reached[0]
    try:
        (unit.checked if checked else unit.handlers)[cdb[0]](itl, task, True)
    except CheckCondition as error:
        return error.sense.asc
    return RUN[0]


def test_the_fast_handler_stands_before_the_checked_one() -> None:
    assert run(commands(), b"\x08\0\0\0\0\0") == "fast read"
    assert run(commands(), b"\x08\0\0\0\0\0", checked=True) == "read"


def test_a_bit_that_is_not_in_use_is_refused_before_the_handler_runs() -> None:
    with pytest.raises(CheckCondition) as refused:
        task = Task(allocate)
        task.cdb = b"\x08\x80\0\0\0\0"
        commands().checked[0x08](Bench().initiator.nexus.reached[0], task, True)
    pointer = refused.value.sense.field
    assert pointer is not None
    assert (refused.value.sense.asc, pointer.byte, pointer.bit) == (0x2400, 1, 7)
    assert run(commands(), b"\x08\0\0", checked=True) == 0x2400  # too short


def test_unknown_opcodes_and_service_actions_are_refused() -> None:
    assert run(commands(), b"\x09\0\0\0\0\0") == 0x2000
    assert run(commands(), b"\x0d\x03\0\0\0\0") == 0x2400
    assert [run(commands(), bytes([0x0D, action, 0, 0, 0, 0])) for action in (1, 2)] == ["one", "two"]


def test_a_write_protected_unit_refuses_commands_that_write_and_no_others() -> None:
    unit = commands(write_protected=True)
    assert run(unit, b"\x08\0\0\0\0\0") == "fast read"
    assert run(unit, b"\x0d\x01\0\0\0\0") == "one"
    for cdb in (b"\x0a\0\0\0\0\0", b"\x0b\0\0\0\0\0", b"\x0d\x02\0\0\0\0"):
        assert run(unit, cdb) == 0x2700
        assert run(unit, cdb, checked=True) == 0x2700


def test_a_command_of_other_kinds_or_without_a_journal_is_unknown() -> None:
    assert run(commands(UnitKind.WRITE_ONCE), b"\x0b\0\0\0\0\0") == 0x2000
    assert run(commands(), b"\x0c\0\0\0\0\0") == 0x2000
    assert run(commands(atomic=True), b"\x0c\0\0\0\0\0") == "atomic"
    assert {command.name for command in commands(UnitKind.WRITE_ONCE).rows} == {"read", "write", "one", "two"}


def test_find_knows_rows_with_and_without_service_action() -> None:
    def name(opcode: int, action: int) -> str | None:
        command = commands().find(opcode, action)
        return None if command is None else command.name

    assert [name(0x08, 0), name(0x08, 5), name(0x0D, 2), name(0x0D, 3), name(0x0C, 0)] == [
        "read",
        "read",
        "two",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("kind", "write_protected", "plain"),
    [
        (UnitKind.PRIMARY, False, {0x08, 0x0A}),
        (UnitKind.PRIMARY, True, {0x08}),
        (UnitKind.WRITE_ONCE, False, {0x08}),
        (UnitKind.SNAPSHOT_VIEW, True, {0x08}),
    ],
)
def test_plain_commands_by_kind(kind: UnitKind, write_protected: bool, plain: set[int]) -> None:
    assert commands(kind, write_protected=write_protected).plain == plain


def test_only_writes_that_can_run_have_a_range() -> None:
    assert commands().ranges == {0x0A: first_and_second}
    assert commands(write_protected=True).ranges == {}


def test_a_write_once_unit_takes_no_copies() -> None:
    assert [takes_copies(kind) for kind in UnitKind] == [kind is not UnitKind.WRITE_ONCE for kind in UnitKind]
