# SPDX-License-Identifier: Apache-2.0
"""An I_T nexus: the units that an initiator port reaches, and the way every command takes (SAM-5 clauses 4 and 5).

A fabric calls `Nexus.execute`; see `task.py` for what it hands over and gets back, and `logical_unit.py` for what a
command passes.  Everything here is thread-safe; tasks of one nexus run on any threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lun_backends.block_device import WouldBlock
from target.scsi import sense, transfer
from target.scsi.commands import inquiry, primary
from target.scsi.logical_unit import ItlNexus, LogicalUnit
from target.scsi.reservations.persistent_reservation import InitiatorPort
from target.scsi.sense import Asc, CheckCondition, Sense, SenseKey
from target.scsi.task import Status, Task, cdb_length

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reach:
    """That a nexus reaches a unit, as which LUN, and whether it may only read."""

    lun: int
    read_only: bool = False


View = Callable[[int, LogicalUnit], Iterable[Reach]]
"""Told a unit and its number in the target, says how a nexus reaches it; always the same for the same unit and number."""


def sees_all(number: int, unit: LogicalUnit) -> Iterable[Reach]:
    """The View of everything as it is."""
    return (Reach(number),)


def sees_nothing(number: int, unit: LogicalUnit) -> Iterable[Reach]:
    """The View of nothing at all."""
    return ()


def lun_fields(number: int) -> tuple[int, ...]:
    """Every 8-byte LUN that addresses the unit: flat space, and peripheral addressing below 256."""
    flat = (0x4000 | number) << 48
    return (number << 48, flat) if number < 256 else (flat,)


class Nexus:
    """One initiator port's relation to the target (an iSCSI session): runs its tasks."""

    def __init__(
        self, target_name: str, initiator: str, tag: str, view: View, nexuses: Callable[[], Sequence[Nexus]]
    ) -> None:
        """`nexuses` returns all that are open to the target at the time."""
        self.target_name = target_name
        self.initiator = initiator
        self.tag = tag
        self.port = InitiatorPort(initiator, tag)
        self._view = view
        self._nexuses = nexuses
        self._luns: dict[int, ItlNexus] = {}
        self._itls: dict[int, ItlNexus] = {}  # by the raw LUN field, in every addressing method

    def __repr__(self) -> str:
        return f"Nexus({self.initiator!r}, tag={self.tag!r})"

    @property
    def units(self) -> dict[int, LogicalUnit]:
        """The units this nexus reaches, by the raw 8-byte LUN."""
        return {field: itl.unit for field, itl in list(self._itls.items())}

    @property
    def luns(self) -> Sequence[int]:
        """The LUNs this nexus reaches."""
        return list(self._luns)

    @property
    def reached(self) -> Sequence[ItlNexus]:
        """The relations to all those units."""
        return list(self._luns.values())

    def ports_of(self, initiator: str) -> Sequence[InitiatorPort]:
        """Return the ports of that name which have a nexus to the target now."""
        return [nexus.port for nexus in self._nexuses() if nexus.initiator == initiator]

    def seen(self) -> Mapping[int, LogicalUnit]:
        """The units this nexus reaches, by LUN."""
        return {lun: itl.unit for lun, itl in list(self._luns.items())}

    def attach(self, number: int, unit: LogicalUnit) -> bool:
        """For the target: let the nexus reach a unit, if it sees it; whether it does."""
        seen = False
        for reach in self._view(number, unit):
            if reach.lun not in self._luns:  # two units as one LUN: the one that was there first stays
                self._attach(reach.lun, unit.attach(self, read_only=reach.read_only))
                seen = True
        return seen

    def detach(self, number: int, unit: LogicalUnit) -> bool:
        """For the target: let it reach the unit no more; whether it did."""
        seen = False
        for reach in self._view(number, unit):
            itl = self._luns.get(reach.lun)
            if itl is not None and itl.unit is unit:
                self._detach(reach.lun)
                seen = True
        return seen

    def change_view(self, view: View, units: Mapping[int, LogicalUnit]) -> tuple[list[ItlNexus], list[ItlNexus]]:
        """For the target: see `units` another way; what is gone, and what is new."""
        wanted: dict[int, tuple[LogicalUnit, bool]] = {}
        for number, unit in units.items():
            for reach in view(number, unit):
                wanted.setdefault(reach.lun, (unit, reach.read_only))
        self._view = view
        gone: list[ItlNexus] = []
        for lun, itl in list(self._luns.items()):
            if wanted.get(lun) == (itl.unit, itl.read_only):
                del wanted[lun]
            else:
                self._detach(lun)
                gone.append(itl)
        for lun, (unit, read_only) in wanted.items():
            self._attach(lun, unit.attach(self, read_only=read_only))
        return gone, [self._luns[lun] for lun in wanted]

    def luns_changed(self, *, excluding: Collection[int] = ()) -> None:
        """For the target: raise 3Fh/0Eh on every unit but those whose `id` is in `excluding`."""
        for itl in list(self._luns.values()):
            if id(itl.unit) not in excluding:
                itl.add_attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)

    def _attach(self, lun: int, itl: ItlNexus) -> None:
        self._luns[lun] = itl
        for field in lun_fields(lun):
            self._itls[field] = itl

    def _detach(self, lun: int) -> None:
        itl = self._luns.pop(lun)
        for field in lun_fields(lun):
            del self._itls[field]
        itl.unit.detach(itl)

    def execute(self, task: Task, *, nowait: bool) -> None:
        """Run one task and set its results.

        Raises WouldBlock (only with `nowait`, the results untouched), and nothing else.
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
            itl.handlers[task.cdb[0]](itl, task, nowait)
            unit.counters.commands += 1
        except WouldBlock:
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the initiator gets an answer; `fail` logs what it does not know
            unit.counters.commands += 1
            unit.fail(task, error)
        finally:
            del running[task]
            if unit.draining:
                unit.task_ended(task)

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        """Tell each unit's device what these tasks are going to write, all at once (`BlockDevice.prepare_writes`).

        With `nowait`: whether any of them could do something about it without waiting, so that the tasks are worth
        another try.
        """
        ranges: dict[LogicalUnit, list[tuple[int, int]]] = {}
        for task in tasks:
            itl = self._itls.get(task.lun)
            cdb = task.cdb
            if itl is None or itl.unusual or len(cdb) < cdb_length(cdb):
                continue
            range_of = itl.commands.ranges.get(cdb[0])
            if range_of is None:
                continue
            lba, count = range_of(cdb)
            unit = itl.unit
            if count and lba + count <= unit.blocks and count <= unit.max_transfer:
                ranges.setdefault(unit, []).append((lba << unit.shift, count << unit.shift))
        prepared = False
        for unit, wanted in ranges.items():
            if not nowait:
                unit.device.prepare_writes(wanted)
                prepared = True
            elif unit.device.prepare_now(wanted):
                prepared = True
        return prepared

    def begins(self) -> None:
        """The session is a new one: what it had agreed before, RESERVE above all, is gone, and each unit says so (SAM-5 5.14).

        29h/00h stands for what cannot be told apart: a session that was lost, and one after a start of the daemon.
        """
        for itl in self.reached:
            itl.add_attention(Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED)

    def luns_reported(self) -> None:
        """The initiator knows the LUNs: 3Fh/0Eh need not be told any more (SAM-5 5.14.3)."""
        for itl in list(self._itls.values()):
            if itl.unusual:
                itl.drop_attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)

    def abort_task_set(self, lun: int) -> bool:
        """ABORT TASK SET: mark this nexus's running tasks on the unit aborted.  False if there is no such unit."""
        itl = self._itls.get(lun)
        if itl is None:
            return False
        itl.unit.abort(self)
        return True

    def clear_task_set(self, lun: int) -> bool:
        """CLEAR TASK SET: mark every running task on the unit aborted; the others' owners are told (2Fh/00h)."""
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
        """Another session's CLEAR TASK SET took commands from this one that had not got as far as here (2Fh/00h)."""
        itl = self._itls.get(lun)
        if itl is not None:
            itl.add_attention(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)

    def lun_reset(self, lun: int) -> bool:
        """LOGICAL UNIT RESET: every running task on the unit is marked aborted, every nexus is told (29h/03h)."""
        itl = self._itls.get(lun)
        if itl is None:
            return False
        itl.unit.reset()
        return True

    def target_warm_reset(self) -> None:
        """TARGET WARM RESET: a reset of every unit that this nexus reaches."""
        for unit in {id(itl.unit): itl.unit for itl in list(self._luns.values())}.values():
            unit.reset()

    def _execute_without_unit(self, task: Task) -> None:
        """Commands to a LUN that has no unit: what SPC-4 6.6.2 and SAM-5 4.7.4 let be answered all the same."""
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
            told = error.sense
        except Exception as error:
            log.error("CDB %s to a LUN without a unit failed", bytes(task.cdb).hex(), exc_info=error)
            told = Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
        else:
            return
        task.data_in = ()
        task.sense = told.pack(descriptor=False)
        task.status = Status.CHECK_CONDITION
