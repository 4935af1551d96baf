# SPDX-License-Identifier: Apache-2.0
"""The SCSI target device: its LUNs, the I_T nexuses that reach them, and the way every command takes (SAM-5 clauses 4 and 5).

A fabric opens a `Nexus` for each session and calls `Nexus.execute`; see `task.py` for what it hands over and gets back,
and `logical_unit.py` for what a command passes.  Everything here is thread-safe; tasks of one nexus run on any threads.

A change of the LUNs is told to every nexus as unit attention 3Fh/0Eh on each unit that was there before, and to the listeners.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from lun_backends.block_device import WouldBlock
from target.scsi import block_commands, commands, inquiry, primary_commands, sense, transfer
from target.scsi.logical_unit import ItlNexus, LogicalUnit
from target.scsi.sense import Asc, CheckCondition, Sense, SenseKey
from target.scsi.task import Status, Task

log = logging.getLogger(__name__)

MAX_LUN = 0x3FFF  # what flat space addressing reaches (SAM-5 4.7.7.3)

_RANGE_WRITES = frozenset({0x0A, 0x2A, 0xAA, 0x8A, 0x2E, 0xAE, 0x8E, 0x41, 0x93})  # what `cdb_range` understands
_COMPARE_AND_WRITE = 0x89


def lun_fields(number: int) -> tuple[int, ...]:
    """Every 8-byte LUN that addresses the unit: flat space, and peripheral addressing below 256."""
    flat = (0x4000 | number) << 48
    return (number << 48, flat) if number < 256 else (flat,)


class ScsiTarget:
    """One target device with its LUNs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._luns: dict[int, LogicalUnit] = {}
        self._nexuses: list[Nexus] = []
        self._listeners: list[Callable[[], None]] = []

    @property
    def luns(self) -> Mapping[int, LogicalUnit]:
        """The units by LUN, as they are now; the mapping never changes, a later one may differ."""
        return MappingProxyType(self._luns)

    @property
    def nexuses(self) -> Sequence[Nexus]:
        """The I_T nexuses open now."""
        with self._lock:
            return tuple(self._nexuses)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` (on the thread that changes them) after every change of the LUNs."""
        with self._lock:
            self._listeners.append(listener)

    def add_lun(self, number: int, unit: LogicalUnit) -> None:
        """Give the unit a LUN (0 to 16383).  Raises ValueError if it is taken or out of range."""
        if not 0 <= number <= MAX_LUN:
            raise ValueError(f"LUN {number} is not between 0 and {MAX_LUN}")
        with self._lock:
            if number in self._luns:
                raise ValueError(f"LUN {number} is in use")
            self._luns = {**self._luns, number: unit}
            for nexus in self._nexuses:
                nexus.attach(number, unit)
        self._changed(excluding=unit)

    def remove_lun(self, number: int) -> None:
        """Take the LUN away; returns when the tasks running on the unit have ended.  Raises KeyError if there is none.

        Never call it on a thread that a running task needs (an event loop).
        """
        with self._lock:
            unit = self._luns[number]
            self._luns = {lun: other for lun, other in self._luns.items() if lun != number}
            for nexus in self._nexuses:
                nexus.detach(number)
        unit.drain()
        self._changed()

    def open_nexus(self, initiator: str, *, tag: str = "") -> Nexus:
        """A new I_T nexus; `tag` (the ISID, say) tells several sessions of one initiator apart."""
        nexus = Nexus(self, initiator, tag)
        with self._lock:
            for number, unit in self._luns.items():
                nexus.attach(number, unit)
            self._nexuses.append(nexus)
        return nexus

    def close_nexus(self, nexus: Nexus) -> None:
        """The session is over; its tasks that still run are marked aborted and may end later.  Closing twice is allowed."""
        with self._lock:
            if nexus not in self._nexuses:
                return
            self._nexuses.remove(nexus)
            for number, unit in self._luns.items():
                unit.abort(nexus)
                nexus.detach(number)

    def _changed(self, *, excluding: LogicalUnit | None = None) -> None:
        """Tell what changed, on every unit that was there before."""
        asc, ascq = divmod(Asc.REPORTED_LUNS_DATA_HAS_CHANGED, 256)
        with self._lock:
            listeners = tuple(self._listeners)
            for unit in {id(unit): unit for unit in self._luns.values()}.values():
                if unit is not excluding:
                    unit.attention(asc, ascq)
        for listener in listeners:
            listener()


class Nexus:
    """One initiator port's relation to the target (an iSCSI session): runs its tasks."""

    def __init__(self, target: ScsiTarget, initiator: str, tag: str) -> None:
        self.target = target
        self.initiator = initiator
        self.tag = tag
        self._itls: dict[int, ItlNexus] = {}  # by the raw LUN field, in every addressing method

    def __repr__(self) -> str:
        return f"Nexus({self.initiator!r}, tag={self.tag!r})"

    @property
    def units(self) -> dict[int, LogicalUnit]:
        """The units this nexus reaches, by the raw 8-byte LUN."""
        return {field: itl.unit for field, itl in list(self._itls.items())}

    def attach(self, number: int, unit: LogicalUnit) -> None:
        """For the target: let the nexus reach a unit."""
        itl = unit.attach(self)
        for field in lun_fields(number):
            self._itls[field] = itl

    def detach(self, number: int) -> None:
        """For the target: let it reach the unit no more."""
        for field in lun_fields(number):
            itl = self._itls.pop(field, None)
            if itl is not None:
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
            unit.handlers[task.cdb[0]](itl, task, nowait)
            unit.counters.commands += 1
        except WouldBlock:
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the initiator gets an answer; `fail` logs what it does not know
            unit.counters.commands += 1
            unit.fail(task, error)
        finally:
            del running[task]
            if unit.draining:
                unit.task_ended()

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Tell each unit's device what these tasks are going to write, all at once (`BlockDevice.prepare_writes`)."""
        ranges: dict[LogicalUnit, list[tuple[int, int]]] = {}
        for task in tasks:
            itl = self._itls.get(task.lun)
            if itl is None or itl.unusual or itl.unit.write_protected or len(task.cdb) < commands.cdb_length(task.cdb):
                continue
            unit, cdb = itl.unit, task.cdb
            if cdb[0] in _RANGE_WRITES:
                lba, count = block_commands.cdb_range(cdb)
            elif cdb[0] == _COMPARE_AND_WRITE:
                lba, count = int.from_bytes(cdb[2:10]), cdb[13]
            else:
                continue
            if count and lba + count <= unit.blocks and count <= unit.max_transfer:
                ranges.setdefault(unit, []).append((lba << unit.shift, count << unit.shift))
        for unit, wanted in ranges.items():
            unit.device.prepare_writes(wanted)

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
            for nexus in owners - {self}:
                for other in {id(each): each for each in list(nexus._itls.values()) if each.unit is itl.unit}.values():
                    other.add_attention(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
        return True

    def lun_reset(self, lun: int) -> bool:
        """LOGICAL UNIT RESET: every running task on the unit is marked aborted, every nexus is told (29h/03h)."""
        itl = self._itls.get(lun)
        if itl is None:
            return False
        itl.unit.reset()
        return True

    def target_warm_reset(self) -> None:
        """TARGET WARM RESET: a reset of every unit."""
        for unit in {id(unit): unit for unit in self.target.luns.values()}.values():
            unit.reset()

    def _execute_without_unit(self, task: Task) -> None:
        """Commands to a LUN that has no unit: what SPC-4 6.6.2 and SAM-5 4.7.4 let be answered all the same."""
        try:
            well_known = task.lun == primary_commands.REPORT_LUNS_WELL_KNOWN_LUN
            if len(task.cdb) < max(commands.cdb_length(task.cdb), 6):
                raise sense.illegal_request(Asc.INVALID_FIELD_IN_CDB)
            match task.cdb[0]:
                case 0x12:  # INQUIRY
                    evpd, _, allocation_length = primary_commands.check_inquiry(task.cdb)
                    if evpd:
                        raise sense.invalid_field(1, 0)
                    peripheral = inquiry.WELL_KNOWN_UNIT if well_known else inquiry.NO_UNIT
                    transfer.reply(
                        task, inquiry.standard(peripheral, b"REPORT LUNS" if well_known else b""), allocation_length
                    )
                case 0xA0 if well_known or task.lun in lun_fields(0):  # REPORT LUNS
                    primary_commands.reply_luns(task, self.target.luns)
                    self.luns_reported()
                case 0x03 if well_known:  # REQUEST SENSE
                    primary_commands.reply_sense(task, sense.NO_SENSE)
                case 0x03:
                    primary_commands.reply_sense(task, Sense(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED))
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
