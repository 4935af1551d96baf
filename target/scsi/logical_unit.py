# SPDX-License-Identifier: Apache-2.0
"""A logical unit: a block device with an identity, the I_T_L nexuses that reach it, and the tasks running on it.

Every command takes these steps (`nexus.Nexus.execute`), in this order:

1. the task enters `running`;
2. `execute` looks at `ItlNexus.unusual`, one flag for everything that is not everyday: this is the first command, a
  unit attention is pending, the unit was removed, or is reserved for others.  Only if the flag is set, `ItlNexus.admit`
  finds out the reason;
3. the handler for the opcode runs;
4. the task leaves `running`, and callers that wait in `drain` are notified.

Step 1 comes before step 2.  A caller may change the state that `admit` looks at, and then call `drain`.  Afterwards, no
task runs that was admitted under the old rules.  The order holds without a lock because dictionary operations and
attribute stores are atomic in CPython.

A unit is below the commands and the nexuses.  The maker of a unit hands in its commands.  The Protocols here name the
parts of commands and nexuses that a unit uses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from lun_backends import atomic_journal, block_device
from lun_backends.initiator.part import Part
from target.scsi import latency, limits, sense, transfer
from target.scsi.reservations import reservations
from target.scsi.reservations.persistent_reservation import InitiatorPort, Permission
from target.scsi.sense import Asc, CheckCondition, Sense, SenseKey
from target.scsi.task import Status, Task, cdb_length
from target.scsi.unit_kind import UnitKind as UnitKind  # part of this module's interface

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
"""The granularity of transfers and of UNMAP that a unit reports: the page, because a smaller write costs a read.

READ CAPACITY(16) does not report this as the physical block size, because a physical block size promises that a power
cut does not tear a block.  The physical block size is that of the configuration, or of the disk if the primary is a
disk.
"""

USERS_NAMED = 1024
"""How many initiators a unit remembers by name."""

Handler = Callable[["ItlNexus", Task, bool], None]
"""Run one task (the last argument is `nowait`) and set its results; raises CheckCondition, BlockDeviceError, WouldBlock."""

Check = Callable[["LogicalUnit", "bytes | memoryview"], object]
"""Raise CheckCondition for a CDB that is refused whatever the data of its command is."""

RangeOf = Callable[[bytes | memoryview], tuple[int, int]]
"""Return the first LBA and the number of blocks that a CDB names."""


class CommandRow(Protocol):
    """The parts of a row of the command table that units and reports about commands use (`command_set.Command`)."""

    @property
    def opcode(self) -> int: ...
    @property
    def service_action(self) -> int | None: ...
    @property
    def usage(self) -> bytes: ...
    @property
    def timeout(self) -> int: ...
    @property
    def writes(self) -> bool: ...
    @property
    def attention_exempt(self) -> bool: ...
    @property
    def needs(self) -> Permission: ...
    @property
    def despite_reserve(self) -> bool: ...


class CommandSet(Protocol):
    """The commands that a unit has (`command_set.UnitCommands`)."""

    @property
    def rows(self) -> Sequence[CommandRow]: ...
    @property
    def handlers(self) -> list[Handler]: ...
    @property
    def checked(self) -> list[Handler]: ...
    @property
    def plain(self) -> frozenset[int]: ...
    @property
    def plain_writes(self) -> bool: ...
    @property
    def ranges(self) -> Mapping[int, RangeOf]: ...

    def find(self, opcode: int, service_action: int) -> CommandRow | None:
        """Return the row for an opcode, and the service action where the opcode has some."""

    def check(self, unit: LogicalUnit, cdb: bytes | memoryview) -> None:
        """Raise CheckCondition for a CDB that is refused whatever the data of its command is."""


class CommandsOf(Protocol):
    """The choice of commands for a unit (`commands.table.for_unit`)."""

    def __call__(
        self,
        kind: UnitKind,
        *,
        write_protected: bool,
        atomic: bool,
        read_only: bool = False,
        write_through: bool = False,
    ) -> CommandSet:
        """Return the commands of a unit of that kind, for an initiator that may only read if it is `read_only`.

        `atomic` if the unit has a journal for atomic writes, `write_through` if its write cache is off.
        """


class Nexus(Protocol):
    """The parts of an I_T nexus that a unit and its commands use (`nexus.Nexus`)."""

    @property
    def port(self) -> InitiatorPort: ...
    @property
    def bucket(self) -> limits.Bucket | None: ...
    @property
    def target_name(self) -> str: ...
    @property
    def luns(self) -> Sequence[int]: ...
    @property
    def reached(self) -> Sequence[ItlNexus]: ...

    def luns_reported(self) -> None:
        """Note that the initiator knows the LUNs now."""

    def ports_of(self, initiator: str) -> Sequence[InitiatorPort]:
        """Return the ports of that name that have a nexus to the target now."""


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """The result of an EXTENDED COPY."""

    segments: int
    bytes: int
    failed: bool


def _limited(handler: Handler, gate: limits.Gate) -> Handler:
    """Return a handler behind a gate."""

    def run(itl: ItlNexus, task: Task, nowait: bool) -> None:
        if task.admitted:
            task.admitted = False
        elif not nowait:
            gate.charge(task, gate.clock())
        elif not gate.passes(task):
            raise block_device.WouldBlock
        try:
            handler(itl, task, nowait)
        except block_device.WouldBlock:
            task.admitted = True
            raise

    return run


class ItlNexus:
    """One initiator port's relation to one logical unit: its rights there, and its pending unit attentions."""

    __slots__ = (
        "attentions",
        "commands",
        "copy_statuses",
        "gate",
        "handlers",
        "nexus",
        "noticed",
        "plain_writes",
        "read_only",
        "removed",
        "unit",
        "unusual",
        "used",
        "write_protected",
    )

    def __init__(self, unit: LogicalUnit, nexus: Nexus, *, read_only: bool = False) -> None:
        self.unit = unit
        self.nexus = nexus
        self.read_only = read_only  # for this initiator port, even if others may write
        self.choose_commands()
        self.attentions: list[int] = []  # ASC and ASCQ as one number, oldest first; under unit.lock
        self.copy_statuses: dict[int, CopyStatus] = {}  # by list identifier, oldest first
        self.removed = False
        self.used = False  # a command came
        self.noticed = True  # whether the first command needs no notice, or has had it
        self.unusual = False

    def choose_commands(self) -> None:
        """Choose the commands that fit the rights of the initiator port and the state of the unit."""
        self.write_protected = self.read_only or self.unit.write_protected
        self.commands = self.unit.commands_for(write_protected=self.write_protected, read_only=self.read_only)
        self.handlers = self.commands.handlers
        self.plain_writes = self.commands.plain_writes
        buckets = [bucket for bucket in (self.unit.bucket, self.nexus.bucket) if bucket is not None]
        self.gate = limits.Gate(buckets) if buckets else None
        if self.gate is not None:
            self.handlers = [
                _limited(handler, self.gate) if opcode in limits.CHARGED else handler
                for opcode, handler in enumerate(self.handlers)
            ]

    def admit(self, task: Task) -> None:
        """Raise CheckCondition or ReservationConflict if the task must not run.

        The reason is that the unit was removed, that a unit attention comes first (SAM-5 5.14), or that the unit is
        reserved for others.
        """
        if self.removed:
            raise sense.illegal_request(Asc.LOGICAL_UNIT_NOT_SUPPORTED)
        if not self.used:
            with self.unit.lock:
                self.used = self.noticed = True
                self.unit.used_by.add(self.nexus.port.initiator if len(self.unit.used_by) < USERS_NAMED else "*")
                self.update()
        command = self.unit.command(task.cdb)
        if command is None or not command.attention_exempt:
            attention = self.take_attention()
            if attention is not None:
                raise CheckCondition(attention)
        if command is not None:
            self.unit.reservations.check(self, command.needs, task.cdb, despite_reserve=command.despite_reserve)

    def take_attention(self) -> Sense | None:
        """Return and clear the oldest pending unit attention; None if there is none."""
        with self.unit.lock:
            if not self.attentions:
                return None
            asc = self.attentions.pop(0)
            self.update()
        return Sense(SenseKey.UNIT_ATTENTION, asc)

    def drop_attention(self, asc: int) -> None:
        """Clear a unit attention that was not reported (REPORT LUNS reports the change that 3Fh/0Eh announces)."""
        with self.unit.lock:
            if asc in self.attentions:
                self.attentions.remove(asc)
            self.update()

    def add_attention(self, asc: int) -> None:
        """Raise a unit attention, once."""
        with self.unit.lock:
            if asc not in self.attentions:
                self.attentions.append(asc)
            self.update()

    def hold_copy_status(self, identifier: int, status: CopyStatus, room: int) -> None:
        """Keep the status of an EXTENDED COPY; forget the oldest if there is no room."""
        with self.unit.lock:
            self.copy_statuses.pop(identifier, None)
            while len(self.copy_statuses) >= room:
                del self.copy_statuses[next(iter(self.copy_statuses))]
            self.copy_statuses[identifier] = status

    def notice_first(self) -> None:
        """See to it that the first command goes through `admit`, which notes that there was one."""
        with self.unit.lock:
            self.noticed = self.used
            self.update()

    def update(self) -> None:
        """Set `unusual` from all the conditions that it stands for.  The caller holds `unit.lock`."""
        self.unusual = (
            self.removed or not self.noticed or bool(self.attentions) or self.unit.reservations.restricts(self)
        )


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of a self-test (SPC-4 7.3.19): its code, its outcome (0: it passed), and where and why it failed."""

    code: int
    outcome: int
    hours: int
    lba: int | None = None
    sense: Sense | None = None


SELF_TESTS_KEPT = 20
"""The results in log page 10h."""


class Counters:
    """The numbers of commands, errors and bytes of a unit since it was made.

    The hot path adds to them without a lock, because no other thread interrupts `+=` of an attribute in CPython 3.11.
    If that changed, the numbers would be a little low.  Only reports use them.
    """

    __slots__ = ("bytes_read", "bytes_written", "commands", "errors", "read_errors", "write_errors")

    def __init__(self) -> None:
        self.commands = 0
        self.errors = 0  # commands that ended neither with GOOD or CONDITION MET nor with a unit attention
        self.read_errors = 0  # of these, the ones for which a medium could not be read
        self.write_errors = 0
        self.bytes_read = 0
        self.bytes_written = 0


def _changes_modes(task: Task) -> bool:
    """Return whether it is a MODE SELECT: two of them must not wait for each other."""
    return len(task.cdb) > 0 and task.cdb[0] in (0x15, 0x55)


class LogicalUnit:
    """A block device as initiators see it.  Thread-safe."""

    def __init__(
        self,
        device: block_device.BlockDevice,
        *,
        uuid: UUID,
        kind: UnitKind,
        name: str,
        commands: CommandsOf,
        reservation_file: Path | None = None,
        journal: atomic_journal.AtomicJournal | None = None,
        physical_block_size: int | None = None,
        write_protected: bool = False,
        part: Part | None = None,
    ) -> None:
        """Make the unit, with the persistent reservations that its file has.

        `commands` chooses the unit's commands (`commands.table.for_unit`).  Persistent reservations outlive the daemon
        in `reservation_file`; without this file they end with the daemon.  WRITE ATOMIC writes through `journal`;
        without a journal, the unit does not know that command.  The unit reports `physical_block_size` (bytes) instead
        of the device's own.  With `write_protected`, it takes no writes, even if the device would.  With `part`, INQUIRY
        page DAh says what part the unit plays in a volume.

        Raises reservation_file.ReservationFileDamaged, OSError.
        """
        self.device = device
        self.uuid = uuid
        self.kind = kind
        self.name = name
        self.part = part
        self.lock = threading.RLock()
        self.block_size = device.block_size
        self.shift = device.block_size.bit_length() - 1
        self.blocks = device.size >> self.shift
        # LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT: the disk's own, unless the configuration says otherwise
        physical = physical_block_size or device.physical_block_size
        self.physical_exponent = max(0, (physical >> self.shift).bit_length() - 1)
        self.page_blocks = max(1, PAGE_BYTES >> self.shift, 1 << self.physical_exponent)
        self.max_transfer = transfer.MAX_TRANSFER_BYTES >> self.shift
        self.write_protected = write_protected or kind is UnitKind.SNAPSHOT_VIEW or device.read_only
        self.descriptor_sense = self.blocks > 1 << 32  # D_SENSE; see sense.py for why
        self.counters = Counters()
        self.latencies = latency.Latencies()
        self.running: dict[Task, ItlNexus] = {}
        self.draining = 0
        self._ended = threading.Condition()
        self._awaited: list[set[Task]] = []
        self.itls: list[ItlNexus] = []  # under `lock`
        self.reservations = reservations.Reservations(self, reservation_file)
        self.journal = journal
        self.used_by: set[str] = set()
        """The initiators that have sent it a command; `*` stands for more."""
        self.new_to: set[str] = set()
        """The initiators that may know another unit under its LUN; `*` stands for all.  Each is told once."""
        self.changed_by: Callable[[str, str], None] | None = None
        """Called with the initiator's name and the command when an initiator changed something for others."""
        self.doubtful = False
        """Whether the unit shows a snapshot that may not be true; `doubt` changes it."""
        self.write_cache = True
        """WCE: whether a write may end before it is on stable storage; `set_write_cache` changes it."""
        self.bucket: limits.Bucket | None = None
        """The limit of all initiators together; `limit` changes it."""
        self._made = time.monotonic()
        self._self_tests: deque[SelfTest] = deque(maxlen=SELF_TESTS_KEPT)
        self._commands_of = commands
        self.commands = self.commands_for(write_protected=self.write_protected)

    def commands_for(self, *, write_protected: bool, read_only: bool = False) -> CommandSet:
        """Return the commands of the unit for a nexus with these rights."""
        return self._commands_of(
            self.kind,
            write_protected=write_protected,
            atomic=self.journal is not None,
            read_only=read_only,
            write_through=not self.write_cache,
        )

    def limit(self, bucket: limits.Bucket | None) -> None:
        """Limit the commands of all initiators together, from their next command on; None: no longer."""
        with self.lock:
            self.bucket = bucket
            for itl in self.itls:
                itl.choose_commands()

    def set_write_cache(self, on: bool, *, task: Task | None = None) -> None:
        """Let writes end when they are in the cache, or only when they are on stable storage.

        When it returns, all earlier writes are stable if the cache is off.  `task` is the one that asks, if one does.  Never call
        it on an event loop.  Raises BlockDeviceError.
        """
        with self.lock:
            if on == self.write_cache:
                return
            self.write_cache = on
            self.commands = self.commands_for(write_protected=self.write_protected)
            for itl in self.itls:
                itl.choose_commands()
        if not on:
            self.drain([other for other in list(self.running) if other is not task and not _changes_modes(other)])
            self.device.flush()

    def protect(self, on: bool) -> None:
        """Take no writes from now on, or take them again, and tell each I_T nexus (2Ah/01h).

        When it returns, no write runs if the unit takes none.  Never call it on an event loop.
        """
        with self.lock:
            if on == self.write_protected:
                return
            self.write_protected = on
            self.commands = self.commands_for(write_protected=on)
            for itl in self.itls:
                itl.choose_commands()
            self.attention(*divmod(Asc.MODE_PARAMETERS_CHANGED, 256))
        if on:
            self.drain()

    @property
    def age_hours(self) -> int:
        """The hours since the unit was made."""
        return int(time.monotonic() - self._made) // 3600

    def doubt(self, on: bool) -> None:
        """Say in INQUIRY that the unit's content may not be true, or no longer, and tell each I_T nexus (3Fh/03h)."""
        with self.lock:
            if self.doubtful != on:
                self.doubtful = on
                self.attention(*divmod(Asc.INQUIRY_DATA_HAS_CHANGED, 256))

    def keep_self_test(self, result: SelfTest) -> None:
        """Keep the result of a self-test, and forget the oldest if there is no room."""
        with self.lock:
            self._self_tests.appendleft(result)

    def self_tests(self) -> Sequence[SelfTest]:
        """Return the results of the self-tests, newest first."""
        with self.lock:
            return tuple(self._self_tests)

    def command(self, cdb: bytes | memoryview) -> CommandRow | None:
        """Return the row of the command table that this CDB names; None if the unit does not have it."""
        return self.commands.find(cdb[0], cdb[1] & 0x1F) if len(cdb) > 1 else None

    def attach(self, nexus: Nexus, *, read_only: bool = False) -> ItlNexus:
        """Let an initiator port reach the unit; with `read_only`, it may only read."""
        itl = ItlNexus(self, nexus, read_only=read_only)
        with self.lock:
            self.itls.append(itl)
            name = nexus.port.initiator
            if name in self.new_to or ("*" in self.new_to and name not in self.used_by):
                self.new_to.discard(name)
                itl.add_attention(Asc.INQUIRY_DATA_HAS_CHANGED)
            itl.update()
        return itl

    def detach(self, itl: ItlNexus) -> None:
        """Cut an initiator port off: its later commands end with LOGICAL UNIT NOT SUPPORTED."""
        with self.lock:
            if itl in self.itls:
                self.itls.remove(itl)
            self.reservations.nexus_lost(itl.nexus)
            itl.removed = True
            itl.update()

    def attention(self, asc: int, ascq: int, *, excluding: Nexus | None = None) -> None:
        """Raise a unit attention for every I_T nexus that reaches the unit, `excluding` one."""
        with self.lock:
            for itl in self.itls:
                if itl.nexus is not excluding:
                    itl.add_attention(asc << 8 | ascq)

    def resized(self) -> None:
        """Serve the device's new size, and raise CAPACITY DATA HAS CHANGED (2Ah/09h) for every initiator."""
        self.blocks = self.device.size >> self.shift
        self.descriptor_sense = self.blocks > 1 << 32
        self.attention(*divmod(Asc.CAPACITY_DATA_HAS_CHANGED, 256))

    def abort(self, nexus: Nexus | None = None) -> set[Nexus]:
        """Mark the running tasks (of one I_T nexus, or all) as aborted, and return their owners."""
        owners = set()
        for task, itl in list(self.running.items()):
            if nexus is None or itl.nexus is nexus:
                task.aborted = True
                owners.add(itl.nexus)
        return owners

    def reset(self) -> None:
        """Do LOGICAL UNIT RESET (SAM-5 6.3.3).

        Running tasks are marked as aborted, SPC-2's reservation ends, and every I_T nexus gets a unit attention
        (29h/03h).
        """
        self.abort()
        self.reservations.reset()
        self.attention(*divmod(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED, 256))

    def drain(self, tasks: Iterable[Task] | None = None) -> None:
        """Return when the tasks (default: all that run now) have ended.  Never call it from one of these tasks."""
        with self._ended:
            self.draining += 1
            running = list(self.running)
            self._wait_for(running if tasks is None else set(tasks).intersection(running))

    def clear(self, whose: Callable[[ItlNexus], bool]) -> Sequence[ItlNexus]:
        """Clear the running tasks of the nexuses that `whose` selects; return these nexuses when the tasks have ended.

        Long tasks end early, with an answer that makes their initiator try again.  Never call it for the caller's own
        task.
        """
        with self._ended:
            self.draining += 1
            owners = {task: itl for task, itl in list(self.running.items()) if whose(itl)}
            for task in owners:
                task.cleared = True  # `task_ended` takes this back, because fabrics use task objects again
            self._wait_for(owners)
        return list({id(itl): itl for itl in owners.values()}.values())

    def _wait_for(self, tasks: Iterable[Task]) -> None:
        """Wait for tasks that were running after `draining` was raised, so that each passes `task_ended`."""
        waiting = set(tasks)
        self._awaited.append(waiting)
        try:
            self._ended.wait_for(lambda: not waiting)
        finally:
            self._awaited = [tasks for tasks in self._awaited if tasks is not waiting]
            self.draining -= 1

    def task_ended(self, task: Task) -> None:
        """Note that a task left `running` while a caller drains."""
        with self._ended:
            task.cleared = False
            for waiting in self._awaited:
                waiting.discard(task)
            self._ended.notify_all()

    def check_range(self, lba: int, count: int) -> None:
        """Raise LOGICAL BLOCK ADDRESS OUT OF RANGE unless the blocks exist (even a count of 0 needs a valid LBA)."""
        if lba >= self.blocks or lba + count > self.blocks:
            raise sense.out_of_range(max(lba, self.blocks))

    def fail(self, task: Task, error: Exception) -> None:
        """End the task with the status for the error.  An unforeseen error ends it with HARDWARE ERROR, and is logged."""
        task.data_in = ()
        counters = self.counters
        match error:
            case CheckCondition(sense=reported):
                task.data_in = error.data_in
            case block_device.ReservationConflict():
                counters.errors += 1
                task.sense = b""
                task.status = Status.RESERVATION_CONFLICT
                return
            case transfer.Aborted(cleared=True):
                reported = Sense(SenseKey.ABORTED_COMMAND, Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
            case transfer.Aborted():
                task.sense = b""
                task.status = Status.TASK_ABORTED
                return
            case block_device.BlockDeviceError():
                reported = sense.from_error(error)
                if isinstance(error, block_device.MediumError):
                    if error.writing:
                        counters.write_errors += 1
                    else:
                        counters.read_errors += 1
            case _ if len(task.cdb) < cdb_length(task.cdb):
                reported = Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
            case _:
                log.error("unit %s: CDB %s failed", self.name, bytes(task.cdb).hex(), exc_info=error)
                reported = Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
        if reported.key != SenseKey.UNIT_ATTENTION:
            counters.errors += 1
        task.sense = reported.pack(descriptor=self.descriptor_sense)
        task.status = Status.CHECK_CONDITION
