# SPDX-License-Identifier: Apache-2.0
"""The one table of commands: what is dispatched, what is checked in every CDB, and what REPORT SUPPORTED OPERATION CODES says.

A row's `usage` is the CDB usage data of SPC-4 6.35.3: a mask of the bits that the unit looks at.  A CDB with any other bit
set is refused with INVALID FIELD IN CDB and a pointer to that bit, so a protection, NACA or reserved bit is never
ignored in silence; this one check stands before every handler.  READ and WRITE of 10 and 16 bytes have a `fast` handler in
front, which does the plain case itself and hands everything else to the checked one.  FUA_NV (bit 1 of READ and WRITE), which
SBC-3 made obsolete, is taken and means nothing: there is no non-volatile cache.

A command that is not in the table, or not for this kind of unit, is refused: what could change data and is not known never runs
(rule 5, lun_backends/README.md).  On a write-protected unit those marked `writes` stay in the table but end with DATA PROTECT.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from target.scsi import sense
from target.scsi.commands import (
    block,
    compare,
    mode,
    primary,
    thin,
)
from target.scsi.commands import (
    extended_copy as copy_commands,
)
from target.scsi.commands import (
    reserve as reserve_commands,
)
from target.scsi.reservations.persistent_reservation import Access
from target.scsi.sense import Asc
from target.scsi.unit_kind import UnitKind

if TYPE_CHECKING:
    from target.scsi.logical_unit import ItlNexus
    from target.scsi.task import Task

Handler = Callable[["ItlNexus", "Task", bool], None]
"""Runs one task (the last argument is `nowait`) and sets its results; raises CheckCondition, BlockDeviceError, WouldBlock."""

ALL = frozenset(UnitKind)
NOT_WRITE_ONCE = frozenset({UnitKind.PRIMARY, UnitKind.SNAPSHOT_VIEW})

_LENGTH_OF_GROUP = (6, 10, 10, 16, 16, 12, 1, 1)  # SPC-4 4.2.5.1; groups 6 and 7 are the vendor's, we have none


def cdb_length(cdb: bytes | memoryview) -> int:
    """How long a CDB has to be, by the group code of its opcode."""
    return _LENGTH_OF_GROUP[cdb[0] >> 5] if len(cdb) else 1


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table; `usage` is as long as the CDB, its first byte the opcode."""

    name: str
    opcode: int
    usage: bytes
    handler: Handler
    service_action: int | None = None
    kinds: frozenset[UnitKind] = ALL
    fast: Handler | None = None
    writes: bool = False  # changes the medium
    attention_exempt: bool = False  # runs while a unit attention is pending (SAM-5 5.14)
    atomic: bool = False  # only for units with a journal
    needs: Access = (
        Access.EVERYTHING
    )  # what a persistent reservation must leave to the nexus (SPC-4 table 65, SBC-4 table 14)
    despite_reserve: bool = False  # runs while another session has the unit with SPC-2's RESERVE
    timeout: int = 30  # seconds an initiator should allow for it


def _row(
    name: str,
    usage: str,
    handler: Handler,
    *,
    service_action: int | None = None,
    kinds: frozenset[UnitKind] = ALL,
    fast: Handler | None = None,
    writes: bool = False,
    attention_exempt: bool = False,
    atomic: bool = False,
    needs: Access = Access.EVERYTHING,
    despite_reserve: bool = False,
    timeout: int = 30,
) -> Command:
    mask = bytes.fromhex(usage)
    return Command(
        name,
        mask[0],
        mask,
        handler,
        service_action,
        kinds,
        fast,
        writes,
        attention_exempt,
        atomic,
        needs,
        despite_reserve,
        timeout,
    )


def _reservation(
    name: str, opcode: int, action: int, handler: Handler, usage: str = "00 00 00 00 00 ff ff 00"
) -> Command:
    """A row of PERSISTENT RESERVE IN or OUT, which look at the reservation themselves."""
    return _row(name, f"{opcode:02x} 1f {usage}", handler, service_action=action, needs=Access.NOTHING)


_OUT = "ff 00 00 ff ff ff ff 00"


# fmt: off
COMMANDS: tuple[Command, ...] = (
    _row("TEST UNIT READY",      "00 00 00 00 00 00", primary.test_unit_ready, needs=Access.NOTHING),
    _row("REQUEST SENSE",        "03 01 00 00 ff 00", primary.request_sense, attention_exempt=True, needs=Access.NOTHING, despite_reserve=True),
    _row("READ(6)",              "08 1f ff ff ff 00", block.read, needs=Access.READ),
    _row("WRITE(6)",             "0a 1f ff ff ff 00", block.write, writes=True),
    _row("INQUIRY",              "12 01 ff ff ff 00", primary.inquiry_, attention_exempt=True, needs=Access.NOTHING, despite_reserve=True),
    _row("MODE SELECT(6)",       "15 11 00 00 ff 00", mode.mode_select),
    _row("RESERVE(6)",           "16 00 00 00 00 00", reserve_commands.reserve_spc2, needs=Access.NOTHING, despite_reserve=True),
    _row("RELEASE(6)",           "17 00 00 00 00 00", reserve_commands.release_spc2, needs=Access.NOTHING, despite_reserve=True),
    _row("MODE SENSE(6)",        "1a 08 ff ff ff 00", mode.mode_sense, needs=Access.READ),
    _row("START STOP UNIT",      "1b 01 00 0f f7 00", primary.start_stop_unit),
    _row("PREVENT ALLOW MEDIUM REMOVAL", "1e 00 00 00 03 00", primary.prevent_allow),
    _row("READ CAPACITY(10)",    "25 00 00 00 00 00 00 00 00 00", block.read_capacity_10, needs=Access.NOTHING, despite_reserve=True),
    _row("READ(10)",             "28 1a ff ff ff ff 1f ff ff 00", block.read, fast=block.fast_read_10, needs=Access.READ),
    _row("WRITE(10)",            "2a 1a ff ff ff ff 1f ff ff 00", block.write, fast=block.fast_write_10, writes=True),
    _row("WRITE AND VERIFY(10)", "2e 16 ff ff ff ff 1f ff ff 00", compare.write_and_verify, writes=True),
    _row("VERIFY(10)",           "2f 16 ff ff ff ff 1f ff ff 00", compare.verify, needs=Access.READ),
    _row("PRE-FETCH(10)",        "34 02 ff ff ff ff 1f ff ff 00", block.pre_fetch, needs=Access.READ),
    _row("SYNCHRONIZE CACHE(10)", "35 02 ff ff ff ff 1f ff ff 00", block.synchronize_cache, timeout=120),
    _row("WRITE SAME(10)",       "41 08 ff ff ff ff 1f ff ff 00", thin.write_same, kinds=NOT_WRITE_ONCE, writes=True, timeout=300),
    _row("UNMAP",                "42 00 00 00 00 00 1f ff ff 00", thin.unmap, kinds=NOT_WRITE_ONCE, writes=True, timeout=300),
    _row("MODE SELECT(10)",      "55 11 00 00 00 00 00 ff ff 00", mode.mode_select),
    _row("RESERVE(10)",          "56 00 00 00 00 00 00 00 00 00", reserve_commands.reserve_spc2, needs=Access.NOTHING, despite_reserve=True),
    _row("RELEASE(10)",          "57 00 00 00 00 00 00 00 00 00", reserve_commands.release_spc2, needs=Access.NOTHING, despite_reserve=True),
    _row("MODE SENSE(10)",       "5a 18 ff ff 00 00 00 ff ff 00", mode.mode_sense, needs=Access.READ),
    _reservation("PERSISTENT RESERVE IN, READ KEYS",           0x5E, 0, reserve_commands.read_keys),
    _reservation("PERSISTENT RESERVE IN, READ RESERVATION",    0x5E, 1, reserve_commands.read_reservation),
    _reservation("PERSISTENT RESERVE IN, REPORT CAPABILITIES", 0x5E, 2, reserve_commands.report_capabilities),
    _reservation("PERSISTENT RESERVE IN, READ FULL STATUS",    0x5E, 3, reserve_commands.read_full_status),
    _reservation("PERSISTENT RESERVE OUT, REGISTER",           0x5F, 0, reserve_commands.register, _OUT),
    _reservation("PERSISTENT RESERVE OUT, RESERVE",            0x5F, 1, reserve_commands.reserve, _OUT),
    _reservation("PERSISTENT RESERVE OUT, RELEASE",            0x5F, 2, reserve_commands.release, _OUT),
    _reservation("PERSISTENT RESERVE OUT, CLEAR",              0x5F, 3, reserve_commands.clear, _OUT),
    _reservation("PERSISTENT RESERVE OUT, PREEMPT",            0x5F, 4, reserve_commands.preempt, _OUT),
    _reservation("PERSISTENT RESERVE OUT, PREEMPT AND ABORT",  0x5F, 5, reserve_commands.preempt_and_abort, _OUT),
    _reservation("PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", 0x5F, 6, reserve_commands.register_and_ignore, _OUT),
    _reservation("PERSISTENT RESERVE OUT, REGISTER AND MOVE",  0x5F, 7, reserve_commands.register_and_move, _OUT),
    _row("EXTENDED COPY(LID1)",  "83 1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", copy_commands.extended_copy, service_action=0, kinds=NOT_WRITE_ONCE, writes=True, timeout=300),
    _row("RECEIVE COPY STATUS(LID1)", "84 1f ff 00 00 00 00 00 00 00 ff ff ff ff 00 00", copy_commands.copy_status, service_action=0, kinds=NOT_WRITE_ONCE, needs=Access.READ),
    _row("RECEIVE COPY OPERATING PARAMETERS", "84 1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", copy_commands.operating_parameters, service_action=3, kinds=NOT_WRITE_ONCE, needs=Access.READ),
    _row("READ(16)",             "88 1a ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.read, fast=block.fast_read_16, needs=Access.READ),
    _row("COMPARE AND WRITE",    "89 18 ff ff ff ff ff ff ff ff 00 00 00 ff 1f 00", compare.compare_and_write, kinds=NOT_WRITE_ONCE, writes=True),
    _row("WRITE(16)",            "8a 1a ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.write, fast=block.fast_write_16, writes=True),
    _row("ORWRITE(16)",          "8b 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", compare.orwrite, kinds=NOT_WRITE_ONCE, writes=True),
    _row("WRITE AND VERIFY(16)", "8e 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", compare.write_and_verify, writes=True),
    _row("VERIFY(16)",           "8f 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", compare.verify, needs=Access.READ),
    _row("PRE-FETCH(16)",        "90 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.pre_fetch, needs=Access.READ),
    _row("SYNCHRONIZE CACHE(16)", "91 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.synchronize_cache, timeout=120),
    _row("WRITE SAME(16)",       "93 09 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", thin.write_same, kinds=NOT_WRITE_ONCE, writes=True, timeout=300),
    _row("WRITE ATOMIC(16)",     "9c 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.write_atomic, kinds=NOT_WRITE_ONCE, writes=True, atomic=True),
    _row("READ CAPACITY(16)",    "9e 1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", block.read_capacity_16, service_action=0x10, needs=Access.NOTHING, despite_reserve=True),
    _row("GET LBA STATUS",       "9e 1f ff ff ff ff ff ff ff ff ff ff ff ff 00 00", thin.get_lba_status, service_action=0x12, needs=Access.READ),
    _row("REPORT LUNS",          "a0 00 ff 00 00 00 ff ff ff ff 00 00", primary.report_luns, attention_exempt=True, needs=Access.NOTHING, despite_reserve=True),
    _row("REPORT SUPPORTED OPERATION CODES", "a3 1f 87 ff ff ff ff ff ff ff 00 00", primary.report_supported_operation_codes, service_action=0x0C, needs=Access.READ),
    _row("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", "a3 1f 80 00 00 00 ff ff ff ff 00 00", primary.report_supported_tmf, service_action=0x0D, needs=Access.READ),
    _row("READ(12)",             "a8 1a ff ff ff ff ff ff ff ff 1f 00", block.read, needs=Access.READ),
    _row("WRITE(12)",            "aa 1a ff ff ff ff ff ff ff ff 1f 00", block.write, writes=True),
    _row("WRITE AND VERIFY(12)", "ae 16 ff ff ff ff ff ff ff ff 1f 00", compare.write_and_verify, writes=True),
    _row("VERIFY(12)",           "af 16 ff ff ff ff ff ff ff ff 1f 00", compare.verify, needs=Access.READ),
)
# fmt: on


def _checked(command: Command) -> Handler:
    """The command's handler behind the check of its CDB against the usage mask."""
    length, handler = len(command.usage), command.handler
    unused = ~int.from_bytes(command.usage) & ((1 << 8 * length) - 1)
    unused &= (1 << 8 * (length - 1)) - 1  # not the opcode

    def run(itl: ItlNexus, task: Task, nowait: bool) -> None:
        cdb = task.cdb
        if len(cdb) < length:
            raise sense.illegal_request(Asc.INVALID_FIELD_IN_CDB)
        wrong = int.from_bytes(cdb[:length]) & unused
        if wrong:
            position = wrong.bit_length() - 1
            raise sense.invalid_field(length - 1 - position // 8, position % 8)
        handler(itl, task, nowait)

    return run


def _unknown(_itl: ItlNexus, _task: Task, _nowait: bool) -> None:
    raise sense.illegal_request(Asc.INVALID_COMMAND_OPERATION_CODE)


def _protected(_itl: ItlNexus, _task: Task, _nowait: bool) -> None:
    raise sense.write_protected()


def _by_service_action(handlers: Mapping[int, Handler]) -> Handler:
    def run(itl: ItlNexus, task: Task, nowait: bool) -> None:
        handler = handlers.get(task.cdb[1] & 0x1F)
        if handler is None:
            raise sense.invalid_field(1, 4)
        handler(itl, task, nowait)

    return run


class UnitCommands:
    """The commands of one kind of unit: `handlers` by opcode, 256 of them, and `checked`, the same without the fast ones."""

    def __init__(self, kind: UnitKind, *, write_protected: bool, atomic: bool) -> None:
        self.rows = tuple(command for command in COMMANDS if kind in command.kinds and (atomic or not command.atomic))
        self._rows = {(command.opcode, command.service_action): command for command in self.rows}
        self.checked: list[Handler] = [_unknown] * 256
        self.handlers: list[Handler] = [_unknown] * 256
        actions: dict[int, dict[int, Handler]] = {}
        for command in self.rows:
            protected = command.writes and write_protected
            handler = _protected if protected else _checked(command)
            if command.service_action is not None:
                actions.setdefault(command.opcode, {})[command.service_action] = handler
                handler = _by_service_action(actions[command.opcode])
            self.checked[command.opcode] = handler
            self.handlers[command.opcode] = command.fast if command.fast and not protected else handler

    def find(self, opcode: int, service_action: int) -> Command | None:
        """The row for an opcode, and the service action where it has some."""
        return self._rows.get((opcode, None)) or self._rows.get((opcode, service_action))


def takes_copies(kind: UnitKind) -> bool:
    """Whether EXTENDED COPY may write to a unit of that kind: then every other way to change a block is open, too."""
    return kind in NOT_WRITE_ONCE


@functools.cache
def for_unit(kind: UnitKind, *, write_protected: bool, atomic: bool = False) -> UnitCommands:
    """The commands of a unit of that kind; `atomic` if it has a journal for atomic writes."""
    return UnitCommands(kind, write_protected=write_protected, atomic=atomic)
