# SPDX-License-Identifier: Apache-2.0
"""The commands of one kind of unit: the row of a command, the check of its CDB, and the list that dispatches.

A command that is not in the table, or not for this kind of unit, is refused, so an unknown command never changes data
(rule 5, lun_backends/README.md).  On a write-protected unit the commands marked `writes` stay in the table but end with
DATA PROTECT.  So do the commands marked `concerns_others`, for an initiator that may only read: with a reservation it
would shut out initiators that may write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lun_backends.block_device import WouldBlock
from target.scsi import sense
from target.scsi.logical_unit import Check, Handler, ItlNexus, LogicalUnit, RangeOf
from target.scsi.reservations.persistent_reservation import Permission
from target.scsi.reservations.reservations import harmless
from target.scsi.sense import Asc
from target.scsi.task import Task
from target.scsi.unit_kind import UnitKind

_WRITE_10, _WRITE_16 = 0x2A, 0x8A

ALL = frozenset(UnitKind)
PRIMARY = frozenset({UnitKind.PRIMARY})
NONE: frozenset[UnitKind] = frozenset()
NOT_WRITE_ONCE = frozenset({UnitKind.PRIMARY, UnitKind.SNAPSHOT_VIEW})


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table; `usage` is as long as the CDB, and its first byte is the opcode."""

    name: str
    opcode: int
    usage: bytes
    handler: Handler
    service_action: int | None = None
    kinds: frozenset[UnitKind] = ALL
    fast: Handler | None = None  # a handler for the usual forms, which leaves the others to the checked handler
    plain: frozenset[UnitKind] = NONE  # kinds of unit on which `Plain` may run it, and again if it failed
    writes: bool = False  # it changes the medium
    concerns_others: bool = False  # it changes a state of the unit that other initiators meet
    range_written: RangeOf | None = None  # finds the blocks that a write changes, so that they can be prepared
    check: Check | None = None  # raises for a CDB that is refused whatever the data is, beyond the usage mask
    attention_exempt: bool = False  # it runs while a unit attention is pending (SAM-5 5.14)
    atomic: bool = False  # only for units with a journal
    needs: Permission = (
        Permission.EVERYTHING
    )  # the least that a reservation must permit (SPC-4 table 65, SBC-4 table 14)
    despite_reserve: bool = False  # it runs while another session holds SPC-2's RESERVE
    timeout: int = 30  # seconds that an initiator should allow for it


def _masked(command: Command) -> Callable[[bytes | memoryview], None]:
    """Return the check of the command's CDB against the usage mask."""
    length = len(command.usage)
    unused = ~int.from_bytes(command.usage) & ((1 << 8 * length) - 1)
    unused &= (1 << 8 * (length - 1)) - 1  # not the opcode

    def check(cdb: bytes | memoryview) -> None:
        if len(cdb) < length:
            raise sense.illegal_request(Asc.INVALID_FIELD_IN_CDB)
        wrong = int.from_bytes(cdb[:length]) & unused
        if wrong:
            position = wrong.bit_length() - 1
            raise sense.invalid_field(length - 1 - position // 8, position % 8)

    return check


def _checked(command: Command) -> Handler:
    """Return the command's handler behind the check of its CDB against the usage mask."""
    handler, check = command.handler, _masked(command)

    def run(itl: ItlNexus, task: Task, nowait: bool) -> None:
        check(task.cdb)
        handler(itl, task, nowait)

    return run


def _foreseen(command: Command) -> Check:
    """Return the checks of the command that need no data."""
    masked, more = _masked(command), command.check
    if more is None:
        return lambda _unit, cdb: masked(cdb)
    further = more  # so that its type is known below

    def check(unit: LogicalUnit, cdb: bytes | memoryview) -> None:
        masked(cdb)
        further(unit, cdb)

    return check


def _unknown_check(_unit: LogicalUnit, _cdb: bytes | memoryview) -> None:
    raise unknown_opcode()


def _protected_check(_unit: LogicalUnit, _cdb: bytes | memoryview) -> None:
    raise sense.write_protected()


def _withheld_check(_unit: LogicalUnit, cdb: bytes | memoryview) -> None:
    if not harmless(cdb):
        raise sense.write_protected()


def _check_by_service_action(checks: Mapping[int, Check]) -> Check:
    def check(unit: LogicalUnit, cdb: bytes | memoryview) -> None:
        found = checks.get(cdb[1] & 0x1F)
        if found is None:
            raise sense.invalid_field(1, 4)
        found(unit, cdb)

    return check


def _unknown(_itl: ItlNexus, _task: Task, _nowait: bool) -> None:
    raise unknown_opcode()


def unknown_opcode() -> sense.CheckCondition:
    """Return the refusal of an opcode that the unit does not have."""
    return sense.illegal_request(Asc.INVALID_COMMAND_OPERATION_CODE)


def _protected(_itl: ItlNexus, _task: Task, _nowait: bool) -> None:
    raise sense.write_protected()


def _withheld(command: Command) -> Handler:
    """Return the handler of a command for an initiator that must not change what others meet."""
    run_harmless = _checked(command)

    def run(itl: ItlNexus, task: Task, nowait: bool) -> None:
        if not harmless(task.cdb):
            raise sense.write_protected()
        run_harmless(itl, task, nowait)

    return run


def _stable(run: Handler) -> Handler:
    """Return a handler of a command that writes, which ends when all of it is on stable storage."""

    def run_and_flush(itl: ItlNexus, task: Task, nowait: bool) -> None:
        if nowait:
            raise WouldBlock
        run(itl, task, False)
        itl.unit.device.flush()

    return run_and_flush


def _by_service_action(handlers: Mapping[int, Handler]) -> Handler:
    def run(itl: ItlNexus, task: Task, nowait: bool) -> None:
        handler = handlers.get(task.cdb[1] & 0x1F)
        if handler is None:
            raise sense.invalid_field(1, 4)
        handler(itl, task, nowait)

    return run


class UnitCommands:
    """The commands of one kind of unit.

    `handlers` has 256 handlers, by opcode, and `checked` the same without the fast ones.  `plain` holds the opcodes
    that `Plain` may run, and `ranges` finds the blocks in the CDB of a write that can be prepared.  On a
    write-protected unit neither has a command that writes.  `read_only`: the initiator may only read, even if others
    may write.  `write_through`: a command that writes ends when its data is on stable storage.
    """

    def __init__(
        self,
        rows: Iterable[Command],
        kind: UnitKind,
        *,
        write_protected: bool,
        atomic: bool,
        read_only: bool = False,
        write_through: bool = False,
    ) -> None:
        self.rows = tuple(command for command in rows if kind in command.kinds and (atomic or not command.atomic))
        self._rows = {(command.opcode, command.service_action): command for command in self.rows}
        self._checks: list[Check] = [_unknown_check] * 256
        self.checked: list[Handler] = [_unknown] * 256
        self.handlers: list[Handler] = [_unknown] * 256
        allowed = [command for command in self.rows if not (command.writes and write_protected)]
        self.plain = frozenset(
            command.opcode for command in allowed if kind in command.plain and not (command.writes and write_through)
        )
        # A command that met an error runs again.  A write-once unit would refuse the blocks that the first try stored, so
        # the table marks writes as plain for primaries alone.
        self.plain_writes = {_WRITE_10, _WRITE_16} <= self.plain
        self.ranges = {
            command.opcode: command.range_written for command in allowed if command.range_written is not None
        }
        actions: dict[int, dict[int, Handler]] = {}
        checks: dict[int, dict[int, Check]] = {}
        for command in self.rows:
            protected = command.writes and write_protected
            withheld = command.concerns_others and read_only
            handler = _protected if protected else _withheld(command) if withheld else _checked(command)
            through = command.writes and write_through and not protected
            if through:
                handler = _stable(handler)
            check = _protected_check if protected else _withheld_check if withheld else _foreseen(command)
            if command.service_action is not None:
                actions.setdefault(command.opcode, {})[command.service_action] = handler
                handler = _by_service_action(actions[command.opcode])
                checks.setdefault(command.opcode, {})[command.service_action] = check
                check = _check_by_service_action(checks[command.opcode])
            self._checks[command.opcode] = check
            self.checked[command.opcode] = handler
            self.handlers[command.opcode] = command.fast if command.fast and not (protected or through) else handler

    def find(self, opcode: int, service_action: int) -> Command | None:
        """Return the row for an opcode, and the service action where the opcode has some."""
        return self._rows.get((opcode, None)) or self._rows.get((opcode, service_action))

    def check(self, unit: LogicalUnit, cdb: bytes | memoryview) -> None:
        """Raise CheckCondition for a CDB that is refused whatever the data of its command is."""
        if len(cdb) < 2:
            raise sense.illegal_request(Asc.INVALID_FIELD_IN_CDB)
        self._checks[cdb[0]](unit, cdb)


def takes_copies(kind: UnitKind) -> bool:
    """Return whether EXTENDED COPY, and every other command that changes blocks, may write to a unit of that kind."""
    return kind in NOT_WRITE_ONCE
