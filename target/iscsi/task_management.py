# SPDX-License-Identifier: Apache-2.0
"""The task management functions of RFC 7143 11.5, carried out on sessions.

Two places hold the commands of a session: its task set, and the requests that arrived ahead of their CmdSN.  A function
aborts commands in both, even if the sessions know a unit by different LUNs.  The nexus reports the abort to the device
server.

A session whose commands another session ended gets TASK ABORTED for them, as the TAS bit of the control mode page says
(SPC-4 7.5.8).  Without an answer, its initiator would wait for them until its own timeout.

An initiator that may only read a unit must not end the commands of others there, nor their RESERVE: it may abort its
own tasks, but neither reset the unit nor clear its task set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

from target.iscsi import pdu
from target.iscsi.command import Command, Refusal
from target.iscsi.pdu import NO_TAG, Opcode, TaskManagementFunction, TaskManagementResponse
from target.iscsi.task_set import TaskSet
from target.scsi.logical_unit import LogicalUnit
from target.scsi.nexus import Nexus
from target.scsi.task import Status

_TASK_ABORTED = Refusal(Status.TASK_ABORTED, b"")


class Session(Protocol):
    """The parts of a session that task management works on."""

    tasks: TaskSet
    nexus: Nexus | None
    """None in a discovery session."""
    held: dict[int, bytes]
    """Whole requests that arrived ahead of their turn, by CmdSN."""


class Refused(Exception):
    """A function is answered with `response` instead of being carried out."""

    def __init__(self, response: TaskManagementResponse) -> None:
        super().__init__(response)
        self.response = response


def carry_out(
    session: Session, nexus: Nexus, neighbours: Iterable[Session], function: int, lun: int, referenced: int
) -> list[Command]:
    """Carry out a function that `session`, with its `nexus`, asked for; return the aborted commands that still run.

    `neighbours` are all sessions of the same target, including `session`.  Raises Refused.
    """
    if function == TaskManagementFunction.ABORT_TASK:
        return _abort_task(session, lun, referenced)
    if function == TaskManagementFunction.TASK_REASSIGN:
        raise Refused(TaskManagementResponse.REASSIGN_NOT_SUPPORTED)
    if function == TaskManagementFunction.TARGET_WARM_RESET:
        units = nexus.resettable()
        if not units and nexus.units:
            raise Refused(TaskManagementResponse.AUTHORIZATION_FAILED)
        nexus.target_warm_reset()
        return _abort_on(units, neighbours, session)
    if function not in (
        TaskManagementFunction.ABORT_TASK_SET,
        TaskManagementFunction.CLEAR_TASK_SET,
        TaskManagementFunction.LOGICAL_UNIT_RESET,
    ):
        raise Refused(TaskManagementResponse.FUNCTION_NOT_SUPPORTED)
    unit = nexus.units.get(lun)
    if unit is None:
        raise Refused(TaskManagementResponse.LUN_DOES_NOT_EXIST)
    if function == TaskManagementFunction.ABORT_TASK_SET:
        nexus.abort_task_set(lun)
        return _abort_on([unit], [session], session)
    if not nexus.may_reset(lun):
        raise Refused(TaskManagementResponse.AUTHORIZATION_FAILED)
    if function == TaskManagementFunction.LOGICAL_UNIT_RESET:
        nexus.lun_reset(lun)
        return _abort_on([unit], neighbours, session)
    nexus.clear_task_set(lun)
    return _abort_on([unit], neighbours, session, clears=True)


def _abort_task(session: Session, lun: int, referenced: int) -> list[Command]:
    command = session.tasks.commands.get(referenced)
    if command is None and abort_held(session.held, lambda itt, its_lun: (itt, its_lun) == (referenced, lun)):
        return []
    if command is None or command.task.lun != lun:
        raise Refused(TaskManagementResponse.TASK_DOES_NOT_EXIST)
    return session.tasks.abort(lambda other: other is command)


def _abort_on(
    units: Sequence[LogicalUnit], sessions: Iterable[Session], asking: Session, *, clears: bool = False
) -> list[Command]:
    """Abort the commands of these sessions on the units for the session `asking`; return those that still run.

    If it `clears`, every other session that loses a command gets the unit attention that says so.
    """
    chosen = {id(unit) for unit in units}
    ending = {task for unit in units for task in list(unit.running) if task.aborted or task.cleared}
    still: list[Command] = []
    for session in sessions:
        nexus = session.nexus
        if nexus is None:
            continue
        luns = {lun for lun, unit in nexus.units.items() if id(unit) in chosen}
        lost = {command.task.lun for command in session.tasks.commands.values()} & luns
        lost |= abort_held(session.held, functools.partial(_is_on, luns))
        aborted = session.tasks.abort_on(luns, None if session is asking else _TASK_ABORTED)
        still += aborted
        # The session may no longer see the unit of a running command, so look for the command by its task.
        still += [command for command in session.tasks.running if command.task in ending and command not in aborted]
        if clears and session is not asking:
            for lun in lost:
                nexus.commands_cleared(lun)
    return still


def abort_held(held: dict[int, bytes], selects: Callable[[int, int], bool]) -> set[int]:
    """Abort the SCSI commands in `held` whose tag and LUN `selects` accepts; return their LUNs."""
    luns = set()
    for cmd_sn, raw in held.items():
        opcode, _, _, _, _, lun, itt, _, _, _ = pdu.REQUEST.unpack_from(raw)
        if opcode == Opcode.SCSI_COMMAND and selects(itt, lun):
            luns.add(lun)
            # Its CmdSN still needs a request, so put a NOP there that wants no answer.
            held[cmd_sn] = pdu.REQUEST.pack(Opcode.NOP_OUT, pdu.FINAL, 0, 0, 0, 0, NO_TAG, NO_TAG, cmd_sn, 0)
    return luns


def _is_on(luns: Container[int], _itt: int, lun: int) -> bool:
    return lun in luns
