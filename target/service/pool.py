# SPDX-License-Identifier: Apache-2.0
"""The pool of a volume: its log, and write-once LUNs for the snapshots that the nodes of a cluster take.

The nodes write the log (lun_backends/cluster); this host only reads it.  Each write-once LUN is

| state    | when                                        | and then                                                        |
| -------- | ------------------------------------------- | --------------------------------------------------------------- |
| blank    | no record names it, and nothing is written  | `blanks` of them are kept ready                                 |
| taken    | an EPOCH record names it                    | another blank one is added, and initiators get 3Fh/0Eh          |
| retired  | its snapshot is DELETED, or it was written  | it is removed: its number and its identity never come back      |
|          | or cannot be opened although no record      |                                                                 |
|          | names it                                    |                                                                 |
| lost     | it is taken, and its store cannot be opened | it is not served, and never made anew under its identity        |

`tend` brings all of that about.  It looks which LUNs are blank *before* it reads the log: a node puts data into a LUN
only after its EPOCH record is in the log, so a LUN that has data and that no record names then was never taken.  A record
that cannot be read may be an EPOCH record, so from then on nothing is retired and nothing added.

All of it can be interrupted at any moment and is done again by the next `tend`; pool_file.py has the order on the disk.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from lun_backends import block_device, write_once
from lun_backends.block_device import ExtentKind
from lun_backends.cluster import history, records
from lun_backends.durability import Durability
from lun_backends.files import os_error
from lun_backends.initiator.part import Part, Role
from lun_backends.shared import snapshot
from lun_backends.stores import contract, opening
from lun_backends.stores.space import Space
from target.configuration import settings
from target.scsi import logical_unit
from target.scsi.commands import table
from target.service import pool_file, problems

log = logging.getLogger(__name__)

RECORD = 4096
"""Bytes of a record, and of a block of the log."""
LOG_SIZE = RECORD << 20
"""Bytes of a log: room for a million records.  It takes no space on the disk until they are written."""
_AT_ONCE = 256  # records that are read together


class State(enum.Enum):
    """The state of a write-once LUN of a pool."""

    BLANK = "blank"
    TAKEN = "taken"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Member:
    """A write-once LUN of a pool, as it is shown."""

    lun: int
    identity: uuid.UUID
    state: State
    snapshot: str = ""  # the name of the snapshot that took it
    used_bytes: int = 0
    preserved_bytes: int = 0


class Target(Protocol):
    """The parts of the inventory that a pool needs."""

    def take_pool_number(self, volume: str) -> int:
        """Return a number that no other unit ever gets.  Raise Problem."""
        ...

    def return_pool_number(self, number: int) -> None:
        """Return a number under which no initiator has seen a unit."""
        ...

    def add_pool_lun(self, number: int, unit: logical_unit.LogicalUnit) -> None:
        """Serve a unit."""
        ...

    def remove_pool_lun(self, number: int) -> None:
        """Remove a unit.  Return when no command runs on it."""
        ...


class _Log(write_once.WriteOnce):
    """The log, which tells when it was written."""

    def __init__(self, store: contract.Store, written: Callable[[], None]) -> None:
        super().__init__(store)
        self._written = written

    def writev(self, offset: int, buffers: block_device.Buffers, *, fua: bool = False) -> None:
        super().writev(offset, buffers, fua=fua)
        self._written()

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        super().write_zeroes(offset, length, discard=discard, fua=fua)
        self._written()


class Pool:
    """The pool of one volume.  One thread calls `open`, `tend` and `close`; any thread may ask for its state."""

    def __init__(
        self, configured: settings.WriteOnceLun, state_dir: Path, target: Target, written: Callable[[], None]
    ) -> None:
        """Open nothing yet.  `written` is called after each write to the log."""
        self.name = configured.volume
        self.size = configured.size
        self.blanks = configured.blanks or 0
        self.problem = ""
        """Why the pool does not do what it should; empty if it does."""
        self._configured = configured
        self._directory = pool_file.directory(state_dir, configured.volume)
        self._stores = opening.stores(self._directory)
        self._target = target
        self._written = written
        self._members: pool_file.Members | None = None
        self._log: _Log | None = None
        self._devices: Mapping[uuid.UUID, write_once.WriteOnce] = {}  # replaced as a whole
        self._history = history.History()
        self._taken: Mapping[uuid.UUID, str] = {}  # the snapshot's name, by the LUN's identity; replaced as a whole
        self._space = Space()

    # -- what is shown

    @property
    def volume(self) -> uuid.UUID | None:
        """The identity of the volume; None if the pool could not be opened."""
        return None if self._members is None else self._members.volume

    @property
    def log_lun(self) -> int | None:
        """The number of the log; None if it is not served."""
        return None if self._members is None or self._log is None else self._members.log_lun

    @property
    def records(self) -> int:
        """How many records of the log were read."""
        return self._history.end

    def members(self) -> list[Member]:
        """Return the write-once LUNs, by number."""
        found = []
        for identity, number in ({} if self._members is None else self._members.luns).items():
            device, name = self._devices.get(identity), self._taken.get(identity)
            state = State.LOST if device is None else State.BLANK if name is None else State.TAKEN
            used = preserved = 0
            if device is not None:
                with contextlib.suppress(block_device.DeviceClosed):
                    used, preserved = device.used_bytes(), device.written_bytes()
            found.append(Member(number, identity, state, name or "", used, preserved))
        return sorted(found, key=lambda member: member.lun)

    def snapshots(self) -> Sequence[snapshot.Snapshot]:
        """Return the snapshots that the nodes took, oldest first, as the log has them."""
        return snapshot.snapshots_of(self._history)

    # -- its life

    def open(self, volume: uuid.UUID | None) -> None:
        """Open the pool, or make it; `volume` is the identity of the primary, if this host serves it.

        Serve all that can be served.  Raise Problem, StoreError, BlockDeviceError, lun_numbers.Damaged, OSError.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        members = pool_file.load(self._directory)
        if members is None:
            members = self._make(volume or uuid.uuid4())
        self._members = members
        self._stores.remove_leftovers({members.log, *members.luns})
        self._log = _Log(
            self._stores.open(members.log, durability=self._configured.durability, space=self._space), self._written
        )
        self._serve(members.log_lun, self._log, Role.LOG, f"{self.name}/log")
        for identity, number in members.luns.items():
            try:
                store = self._stores.open(identity, durability=self._configured.durability, space=self._space)
            except contract.StoreError as error:
                log.error("LUN %d of the pool of %s is not served: %s", number, self.name, error)
                continue
            self._add(identity, number, store)

    def tend(self) -> None:
        """Read the log; retire and add LUNs as the module's table says.  `problem` says what could not be done."""
        if self._log is None or self._members is None:
            return
        try:
            self._tend()
        except (
            block_device.BlockDeviceError,
            contract.StoreError,
            history.Refused,
            records.RecordDamaged,
            problems.Problem,
        ) as error:
            self._note(str(error))
        except OSError as error:
            self._note(os_error.reason(error))
        else:
            self._note(self._lacking())

    def close(self) -> None:
        """Close every device.  Call this when the fabric has ended."""
        for device in (self._log, *self._devices.values()):
            if device is not None:
                try:
                    device.close()
                except block_device.BlockDeviceError as error:
                    log.error("the pool of %s did not close cleanly: %s", self.name, error)
        self._log, self._devices = None, {}

    # -- inside

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("the pool of %s: %s", self.name, problem)
        self.problem = problem

    def _lacking(self) -> str:
        """Return what is wrong with the members, empty if nothing is."""
        assert self._members is not None
        lost = sorted(number for identity, number in self._members.luns.items() if identity not in self._devices)
        if not lost:
            return ""
        named = ", ".join(map(str, lost))
        return (
            f"the store of LUN {named} cannot be opened: repair it and start the daemon again, or delete its snapshot"
        )

    def _make(self, volume: uuid.UUID) -> pool_file.Members:
        """Make the log, and the file that names it."""
        self._stores.remove_leftovers(())  # of an attempt that was interrupted
        identity, number = uuid.uuid4(), self._target.take_pool_number(self.name)
        geometry = contract.Geometry(identity, volume, LOG_SIZE, RECORD, RECORD)
        self._stores.create(geometry, durability=self._configured.durability, space=self._space).close()
        members = pool_file.Members(volume, identity, number)
        pool_file.store(self._directory, members)
        log.info("made the log of %s, LUN %d", self.name, number)
        return members

    def _tend(self) -> None:
        assert self._members is not None
        named_before = self._history
        written = {
            identity
            for identity, device in self._devices.items()
            if not named_before.names_lun(identity) and not _is_blank(device)
        }
        self._read()
        taken = {epoch.lun: epoch for epoch in self._history.epochs if epoch.lun is not None}
        self._taken = {
            lun: epoch.name if epoch.snapshot is None else self._history.note(epoch.snapshot)[1].name
            for lun, epoch in taken.items()
        }
        for identity in list(self._members.luns):
            epoch = taken.get(identity)
            if epoch is None:
                if identity not in self._devices:
                    self._retire(identity, "it cannot be opened, and no record names it")
                elif identity in written:
                    self._retire(identity, "it was written to, and no record names it")
            elif epoch.snapshot is not None and self._history.standing(epoch.snapshot) is history.Standing.DELETED:
                self._retire(identity, f"snapshot {epoch.name} is deleted")
        blank = sum(identity not in taken and identity in self._devices for identity in self._members.luns)
        for _ in range(self.blanks - blank):
            self._add_blank()

    def _read(self) -> None:
        """Read the records that are new.  Raise RecordDamaged, BlockDeviceError."""
        assert self._log is not None
        assert self._members is not None
        while self._history.end < LOG_SIZE // RECORD:
            start = self._history.end * RECORD
            first = next(self._log.extents(start, min(_AT_ONCE * RECORD, LOG_SIZE - start)))
            if first.kind is ExtentKind.BLANK:
                return
            data = bytearray(first.length)
            self._log.readv(start, [memoryview(data)])
            for at in range(0, len(data), RECORD):
                record = records.decode(bytes(data[at : at + RECORD]), self._history.end, self._members.volume)
                self._history.add(record)

    def _add_blank(self) -> None:
        assert self._members is not None
        wanted, members = self._configured, self._members
        self._check_size()
        identity, number = uuid.uuid4(), self._target.take_pool_number(self.name)
        geometry = contract.Geometry(identity, members.volume, wanted.size, wanted.block_size, wanted.chunk_size)
        changed = replace(members, luns={**members.luns, identity: number})
        with contextlib.ExitStack() as undo:
            undo.callback(self._target.return_pool_number, number)
            store = self._stores.create(geometry, durability=wanted.durability, space=self._space)
            undo.callback(self._stores.remove, identity)
            undo.callback(store.close)
            pool_file.store(self._directory, changed)
            undo.pop_all()
        self._members = changed
        self._add(identity, number, store)
        log.info("LUN %d, %s, is ready for a snapshot of %s", number, identity, self.name)

    def _check_size(self) -> None:
        """Raise Problem if new LUNs would be smaller than those that exist: their snapshots would lack the end."""
        largest = max((device.size for device in self._devices.values()), default=0)
        if self._configured.size < largest:
            raise problems.pool_shrinks(self.name, self._configured.size, largest)

    def _add(self, identity: uuid.UUID, number: int, store: contract.Store) -> None:
        device = write_once.WriteOnce(store)
        device.verify_reads = self._configured.verify_reads
        self._devices = {**self._devices, identity: device}
        self._serve(number, device, Role.POOL, f"{self.name}/write-once-{identity.hex[:8]}")

    def _serve(self, number: int, device: write_once.WriteOnce, role: Role, name: str) -> None:
        assert self._members is not None
        part = Part(
            self._members.volume,
            self.name,
            role,
            device.uuid,
            device.block_size,
            device.chunk_size if role is Role.POOL else 0,
            write_once=True,
            power_loss=self._configured.durability is Durability.POWER_LOSS,
        )
        kind = logical_unit.UnitKind.WRITE_ONCE
        unit = logical_unit.LogicalUnit(
            device, uuid=device.uuid, kind=kind, name=name, commands=table.for_unit, part=part
        )
        self._target.add_pool_lun(number, unit)

    def _retire(self, identity: uuid.UUID, why: str) -> None:
        assert self._members is not None
        number = self._members.luns[identity]
        remaining = {other: kept for other, kept in self._members.luns.items() if other != identity}
        changed = replace(self._members, luns=remaining, retired_luns=(*self._members.retired_luns, number))
        pool_file.store(self._directory, changed)
        self._members = changed
        device = self._devices.get(identity)
        if device is not None:
            self._devices = {other: kept for other, kept in self._devices.items() if other != identity}
            self._target.remove_pool_lun(number)
            device.close()
        self._stores.remove(identity)
        log.info("LUN %d, %s, of the pool of %s is retired: %s", number, identity, self.name, why)


def _is_blank(device: write_once.WriteOnce) -> bool:
    return all(extent.kind is ExtentKind.BLANK for extent in device.extents(0, device.size))
