# SPDX-License-Identifier: Apache-2.0
"""An I_T nexus: the units that an initiator port reaches, and the path of every command (SAM-5 clauses 4 and 5).

A fabric calls `Nexus.execute`; `task.py` describes the task that it hands over, and `logical_unit.py` the steps that a
command takes.  Everything here is thread-safe; tasks of one nexus run on any threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from uuid import UUID

from lun_backends.block_device import WouldBlock
from target.scsi import limits, sense, transfer
from target.scsi.commands import inquiry, primary
from target.scsi.latency import SAMPLE
from target.scsi.logical_unit import ItlNexus, LogicalUnit
from target.scsi.reservations.persistent_reservation import InitiatorPort
from target.scsi.sense import Asc, CheckCondition, Sense, SenseKey
from target.scsi.task import Status, Task, cdb_length

log = logging.getLogger(__name__)

SAMPLED = SAMPLE - 1
"""The bits of the count of commands that are zero for a command whose duration is measured."""

LONG_TIMEOUT = 300
"""Seconds: a command for which the target asks so much patience may take long by its nature."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The LUN under which a nexus reaches a unit, and whether it may only read."""

    lun: int
    read_only: bool = False


View = Callable[[int, LogicalUnit], Iterable[Reach]]
"""Return how a nexus reaches a unit with that number in the target.  The result depends only on number and unit."""


def sees_all(number: int, unit: LogicalUnit) -> Iterable[Reach]:
    """Return a unit under its own number: the View of a nexus that sees all units."""
    return (Reach(number),)


def sees_nothing(number: int, unit: LogicalUnit) -> Iterable[Reach]:
    """Return nothing: the View of a nexus that sees no unit."""
    return ()


def lun_fields(number: int) -> tuple[int, ...]:
    """Return every 8-byte LUN that addresses the unit: flat space, and peripheral addressing (SAM-5 4.7.7).

    Above 255 the second form has a number where SAM-5 has a bus identifier.  There is no bus here, and initiators that
    know no address methods, like libiscsi, put the number there as it is.
    """
    return number << 48, (0x4000 | number) << 48


class Nexus:
    """One initiator port's relation to the target (an iSCSI session), which runs its tasks."""

    def __init__(
        self, target_name: str, initiator: str, tag: str, view: View, nexuses: Callable[[], Sequence[Nexus]]
    ) -> None:
        """Make a nexus that reaches no unit yet; `nexuses` returns the target's open ones at the time of the call."""
        self.target_name = target_name
        self.initiator = initiator
        self.tag = tag
        self.port = InitiatorPort(initiator, tag)
        self._view = view
        self._nexuses = nexuses
        self._luns: dict[int, ItlNexus] = {}
        self._itls: dict[int, ItlNexus] = {}  # by the raw LUN field, in every addressing method
        self._begun = False
        self.bucket: limits.Bucket | None = None
        """The limit of this initiator; `limit` changes it."""
        self._known: dict[int, UUID] = {}  # by LUN: units that are gone, and got commands from here

    def __repr__(self) -> str:
        return f"Nexus({self.initiator!r}, tag={self.tag!r})"

    @property
    def units(self) -> dict[int, LogicalUnit]:
        """The units that this nexus reaches, by the raw 8-byte LUN."""
        return {field: itl.unit for field, itl in list(self._itls.items())}

    @property
    def luns(self) -> Sequence[int]:
        """The LUNs that this nexus reaches."""
        return list(self._luns)

    @property
    def reached(self) -> Sequence[ItlNexus]:
        """The relations to the units that this nexus reaches."""
        return list(self._luns.values())

    def ports_of(self, initiator: str) -> Sequence[InitiatorPort]:
        """Return the ports of that name that have a nexus to the target now."""
        return [nexus.port for nexus in self._nexuses() if nexus.initiator == initiator]

    def seen(self) -> Mapping[int, LogicalUnit]:
        """Return the units that this nexus reaches, by LUN."""
        return {lun: itl.unit for lun, itl in list(self._luns.items())}

    def attach(self, number: int, unit: LogicalUnit) -> bool:
        """Let the nexus reach a unit if its view shows the unit; return whether it does.  Only the target calls this."""
        seen = False
        for reach in self._view(number, unit):
            if reach.lun not in self._luns:  # if two units have one LUN, the first one stays
                self._attach(reach.lun, unit.attach(self, read_only=reach.read_only))
                seen = True
        return seen

    def detach(self, number: int, unit: LogicalUnit) -> bool:
        """Cut the nexus off from a unit; return whether it reached the unit.  Only the target calls this."""
        seen = False
        for reach in self._view(number, unit):
            itl = self._luns.get(reach.lun)
            if itl is not None and itl.unit is unit:
                self._detach(reach.lun)
                seen = True
        return seen

    def change_view(self, view: View, units: Mapping[int, LogicalUnit]) -> tuple[list[ItlNexus], list[ItlNexus]]:
        """Set another view of `units`.  Return the relations that ended and those that began.  Only the target calls this."""
        seen: dict[int, tuple[LogicalUnit, bool]] = {}
        for number, unit in units.items():
            for reach in view(number, unit):
                seen.setdefault(reach.lun, (unit, reach.read_only))
        self._view = view
        gone: list[ItlNexus] = []
        for lun, itl in list(self._luns.items()):
            if seen.get(lun) == (itl.unit, itl.read_only):
                del seen[lun]
            else:
                self._detach(lun)
                gone.append(itl)
        for lun, (unit, read_only) in seen.items():
            self._attach(lun, unit.attach(self, read_only=read_only))
        return gone, [self._luns[lun] for lun in seen]

    def limit(self, bucket: limits.Bucket | None) -> None:
        """Limit the commands of this nexus, and of all others that get the same bucket; None: no longer."""
        self.bucket = bucket
        for itl in list(self._luns.values()):
            with itl.unit.lock:
                itl.choose_commands()

    def gate_of(self, task: Task) -> limits.Gate | None:
        """Return the gate that a task must pass before it runs; None if no limit concerns it, or it has passed."""
        itl = self._itls.get(task.lun)
        if itl is None or itl.gate is None or task.admitted or task.cdb[0] not in limits.CHARGED:
            return None
        return itl.gate

    def luns_changed(self, *, excluding: Collection[int] = ()) -> None:
        """Raise 3Fh/0Eh on every unit whose `id` is not in `excluding`.  Only the target calls this."""
        for itl in list(self._luns.values()):
            if id(itl.unit) not in excluding:
                itl.add_attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)

    def used(self) -> Mapping[int, LogicalUnit]:
        """Return the units that this nexus reaches and has sent a command to, by LUN."""
        return {lun: itl.unit for lun, itl in list(self._luns.items()) if itl.used}

    def _attach(self, lun: int, itl: ItlNexus) -> None:
        self._luns[lun] = itl
        known = self._known.get(lun)
        if known is not None and known != itl.unit.uuid:
            itl.add_attention(Asc.INQUIRY_DATA_HAS_CHANGED)
        if self._begun:
            itl.notice_first()
        for field in lun_fields(lun):
            self._itls[field] = itl

    def _detach(self, lun: int) -> None:
        itl = self._luns.pop(lun)
        if itl.used:
            self._known[lun] = itl.unit.uuid
        for field in lun_fields(lun):
            del self._itls[field]
        itl.unit.detach(itl)

    def execute(self, task: Task, *, nowait: bool) -> None:
        """Run one task and set its results.

        Raise WouldBlock, only with `nowait`; then the results are untouched.  Raise no other error.
        """
        itl = self._itls.get(task.lun)
        if itl is None:
            self._execute_without_unit(task)
            return
        unit = itl.unit
        running = unit.running
        running[task] = itl
        try:
            if itl.unusual:
                itl.admit(task)
            counters = unit.counters
            if counters.commands & SAMPLED and not task.began:
                itl.handlers[task.cdb[0]](itl, task, nowait)
            else:
                began = perf_counter()
                itl.handlers[task.cdb[0]](itl, task, nowait)
                waited, task.began = task.began, 0.0
                row = unit.latencies.by_opcode[task.cdb[0]]
                row.add(perf_counter() - (waited or began), 1 if waited else SAMPLE)
            counters.commands += 1
        except WouldBlock:
            if not task.began:
                task.began = perf_counter()
            raise
        except Exception as error:  # noqa: BLE001 - the initiator gets an answer to every error; `fail` logs an unforeseen one
            unit.counters.commands += 1
            task.began = 0.0
            unit.fail(task, error)
        finally:
            del running[task]
            if unit.draining:
                unit.task_ended(task)

    def refuses(self, task: Task) -> bool:
        """Return whether the task is refused whatever its data-out is, and if so, set its results.

        It is refused if its LUN has no unit, if a unit attention is reported instead, or if the CDB is invalid.  It is
        also refused if the unit is reserved for others, or write protected for this initiator.
        """
        itl = self._itls.get(task.lun)
        if itl is None:
            self._execute_without_unit(task)
            return True
        unit = itl.unit
        try:
            if itl.unusual:
                itl.admit(task)
            itl.commands.check(unit, task.cdb)
        except Exception as error:  # noqa: BLE001 - as in `execute`
            unit.counters.commands += 1
            unit.fail(task, error)
            return True
        return False

    def takes_long(self, task: Task) -> bool:
        """Return whether the task may take many seconds by its nature: a copy, or the zeroing of a large range."""
        itl = self._itls.get(task.lun)
        row = None if itl is None else itl.unit.command(task.cdb)
        return row is not None and row.timeout >= LONG_TIMEOUT

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        """Hand each unit's device, with one call, all ranges that these tasks will write (`BlockDevice.prepare_writes`).

        With `nowait`, return whether a device could prepare some of them without waiting.  Then another try of the
        tasks may succeed.
        """
        ranges: dict[LogicalUnit, list[tuple[int, int]]] = {}
        for task in tasks:
            itl = self._itls.get(task.lun)
            cdb = task.cdb
            if itl is None or itl.unusual or len(cdb) < cdb_length(cdb):
                continue
            if itl.gate is not None and not task.admitted:
                continue  # its turn has not come
            range_of = itl.commands.ranges.get(cdb[0])
            if range_of is None:
                continue
            lba, count = range_of(cdb)
            unit = itl.unit
            if count and lba + count <= unit.blocks and count <= unit.max_transfer:
                ranges.setdefault(unit, []).append((lba << unit.shift, count << unit.shift))
        prepared = False
        for unit, written in ranges.items():
            if not nowait:
                unit.device.prepare_writes(written)
                prepared = True
            elif unit.device.prepare_now(written):
                prepared = True
        return prepared

    def begins(self) -> None:
        """Raise 29h/00h on each unit: the session is new, and the state of an earlier one is gone (SAM-5 5.14).

        An earlier RESERVE, for example, is gone.  29h/00h stands for two cases that the target cannot distinguish: the
        earlier session was lost, or the daemon has started.
        """
        self._begun = True
        for itl in self.reached:
            itl.add_attention(Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED)

    def luns_reported(self) -> None:
        """Clear 3Fh/0Eh on every unit, because the initiator knows the LUNs now (SAM-5 5.14.3)."""
        for itl in list(self._itls.values()):
            if itl.unusual:
                itl.drop_attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)

    def abort_task_set(self, lun: int) -> bool:
        """Do ABORT TASK SET: mark this nexus's running tasks on the unit as aborted.  Return False if there is no unit."""
        itl = self._itls.get(lun)
        if itl is None:
            return False
        itl.unit.abort(self)
        return True

    def may_reset(self, lun: int) -> bool:
        """Return whether the nexus may end tasks of others on the unit; it may not if it may only read there."""
        itl = self._itls.get(lun)
        return itl is not None and not itl.read_only

    def clear_task_set(self, lun: int) -> bool:
        """Do CLEAR TASK SET: mark all running tasks on the unit as aborted, and raise 2Fh/00h for their other owners."""
        itl = self._itls.get(lun)
        if itl is None:
            return False
        owners = itl.unit.abort()
        with itl.unit.lock:
            for other in itl.unit.itls:
                if other.nexus is not self and other.nexus in owners:
                    other.add_attention(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
        return True

    def commands_cleared(self, lun: int) -> None:
        """Raise 2Fh/00h: another session's CLEAR TASK SET ended commands of this one before they reached the unit."""
        itl = self._itls.get(lun)
        if itl is not None:
            itl.add_attention(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)

    def lun_reset(self, lun: int) -> bool:
        """Do LOGICAL UNIT RESET: mark all running tasks on the unit as aborted, and raise 29h/03h for every nexus."""
        itl = self._itls.get(lun)
        if itl is None:
            return False
        itl.unit.reset()
        return True

    def target_warm_reset(self) -> None:
        """Do TARGET WARM RESET: reset every unit that this nexus reaches and may reset."""
        for unit in self.resettable():
            unit.reset()

    def resettable(self) -> Sequence[LogicalUnit]:
        """Return the units that this nexus reaches and may reset: those on which it may do more than read."""
        return list({id(itl.unit): itl.unit for itl in list(self._luns.values()) if not itl.read_only}.values())

    def _execute_without_unit(self, task: Task) -> None:
        """Answer a command to a LUN without a unit, as SPC-4 6.6.2 and SAM-5 4.7.4 require."""
        try:
            well_known = task.lun == primary.REPORT_LUNS_WELL_KNOWN_LUN
            if len(task.cdb) < max(cdb_length(task.cdb), 6):
                raise sense.illegal_request(Asc.INVALID_FIELD_IN_CDB)
            match task.cdb[0]:
                case 0x12:  # INQUIRY
                    evpd, _, allocation_length = primary.check_inquiry(task.cdb)
                    if evpd:
                        raise sense.invalid_field(1, 0)
                    peripheral = inquiry.WELL_KNOWN_UNIT if well_known else inquiry.NO_UNIT
                    transfer.reply(
                        task, inquiry.standard(peripheral, b"REPORT LUNS" if well_known else b""), allocation_length
                    )
                case 0xA0 if well_known or task.lun in lun_fields(0):  # REPORT LUNS
                    primary.reply_luns(task, self.luns)
                    self.luns_reported()
                case 0x03 if well_known:  # REQUEST SENSE
                    primary.reply_sense(task, sense.NO_SENSE)
                case 0x03:
                    primary.reply_sense(task, Sense(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED))
                case 0x00 if well_known:  # TEST UNIT READY
                    transfer.good(task)
                case _ if well_known:
                    raise sense.illegal_request(Asc.INVALID_COMMAND_OPERATION_CODE)
                case _:
                    raise sense.illegal_request(Asc.LOGICAL_UNIT_NOT_SUPPORTED)
        except CheckCondition as error:
            reported = error.sense
        except Exception as error:
            log.error("CDB %s to a LUN without a unit failed", bytes(task.cdb).hex(), exc_info=error)
            reported = Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
        else:
            return
        task.data_in = ()
        task.sense = reported.pack(descriptor=False)
        task.status = Status.CHECK_CONDITION
