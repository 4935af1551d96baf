# SPDX-License-Identifier: Apache-2.0
"""A small initiator: it builds CDBs, runs them against a unit in memory, and parses sense data."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from lun_backends.atomic_journal import AtomicJournal
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.nexus import Nexus
from target.scsi.scsi_target import ScsiTarget
from target.scsi.task import Status, Task
from tests.memory_device import MemoryDevice

TARGET_NAME = "iqn.2026-11.io.wolun:test"
WELL_KNOWN = 0xC101 << 48
TEST_UNIT_READY = bytes(6)
GOOD, CHECK, CONDITION_MET = Status.GOOD, Status.CHECK_CONDITION, Status.CONDITION_MET
PATIENCE = 30  # seconds until a test that hangs fails
UNIT_UUID = UUID("12345678-9abc-4def-8123-456789abcdef")


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one command."""

    status: int
    data: bytes
    sense: bytes
    residual_out: int = 0

    @property
    def key(self) -> int:
        """The sense key; -1 without sense data."""
        return -1 if not self.sense else self.sense[1 if self.sense[0] & 0x7E == 0x72 else 2] & 0x0F

    @property
    def asc(self) -> int:
        """ASC and ASCQ as one number; -1 without sense data."""
        if not self.sense:
            return -1
        return int.from_bytes(self.sense[2:4] if self.sense[0] & 0x7E == 0x72 else self.sense[12:14])

    @property
    def information(self) -> int | None:
        """The INFORMATION field, if it is valid."""
        if self.sense[0] & 0x7E == 0x72:
            rest = self.sense[8:]
            while rest:
                if rest[0] == 0x00:
                    return int.from_bytes(rest[4:12])
                rest = rest[2 + rest[1] :]
            return None
        return int.from_bytes(self.sense[3:7]) if self.sense[0] & 0x80 else None

    @property
    def field(self) -> tuple[int, int | None] | None:
        """Byte and bit of the field pointer in fixed format sense data."""
        if not self.sense[15] & 0x80:
            return None
        return int.from_bytes(self.sense[16:18]), self.sense[15] & 7 if self.sense[15] & 8 else None


def allocate(length: int) -> list[memoryview]:
    """Return data-in buffers in two pieces, so that no handler relies on one; full of bytes that must not be sent."""
    cut = length // 3
    pieces = [memoryview(bytearray(b"\xee" * cut)), memoryview(bytearray(b"\xee" * (length - cut)))]
    return [piece for piece in pieces if len(piece)]


class Initiator:
    """One I_T nexus and a default LUN."""

    def __init__(self, nexus: Nexus, lun: int = 0) -> None:
        self.nexus = nexus
        self.lun = lun

    def task(self, cdb: bytes, data_out: bytes = b"", *, lun: int | None = None) -> Task:
        """Return a task ready to run; its data-out comes in two pieces."""
        task = Task(allocate)
        task.cdb = cdb.ljust(16, b"\0")
        task.lun = (self.lun << 48) if lun is None else lun
        cut = len(data_out) // 3
        task.data_out = [memoryview(piece) for piece in (data_out[:cut], data_out[cut:]) if piece]
        return task

    def run(self, cdb: bytes, data_out: bytes = b"", *, lun: int | None = None, nowait: bool = False) -> Result:
        """Run one command."""
        task = self.task(cdb, data_out, lun=lun)
        self.nexus.execute(task, nowait=nowait)
        return result_of(task)


def result_of(task: Task) -> Result:
    """Return the outcome of a task that has run, and check that it is a proper one."""
    assert task.status == Status.CHECK_CONDITION or not task.sense
    assert task.status != Status.CHECK_CONDITION or len(task.sense) >= 8
    return Result(task.status, b"".join(task.data_in), task.sense, task.residual_out)


def attention_of(initiator: Initiator, lun: int = 0) -> int:
    """Return the unit attention that TEST UNIT READY meets; 0 if there is none."""
    result = initiator.run(TEST_UNIT_READY, lun=lun << 48)
    if result.status == GOOD:
        return 0
    assert (result.status, result.key) == (CHECK, 0x6)
    return result.asc


def make_unit(
    device: MemoryDevice | None = None, kind: UnitKind = UnitKind.PRIMARY, *, name: str = "a", uuid: UUID | None = None
) -> LogicalUnit:
    """Make a unit, by default on a device in memory that suits its kind."""
    device = device or MemoryDevice(write_once=kind is UnitKind.WRITE_ONCE)
    return LogicalUnit(device, uuid=uuid or uuid4(), kind=kind, name=name, commands=table.for_unit)


class Bench:
    """A target with one unit at LUN 0, and initiators on it."""

    def __init__(
        self,
        kind: UnitKind = UnitKind.PRIMARY,
        device: MemoryDevice | None = None,
        *,
        state_dir: Path | None = None,
    ) -> None:
        """Make the target and its unit; with `state_dir` the unit persists reservations and writes atomically."""
        if device is None:
            device = MemoryDevice(write_once=kind is UnitKind.WRITE_ONCE, read_only=kind is UnitKind.SNAPSHOT_VIEW)
        self.device = device
        self.unit = LogicalUnit(
            device,
            uuid=UNIT_UUID,
            kind=kind,
            name="vol0",
            commands=table.for_unit,
            reservation_file=state_dir and state_dir / "reservations.json",
            journal=AtomicJournal(state_dir / "journal", device) if state_dir else None,
        )
        self.target = ScsiTarget(TARGET_NAME)
        self.target.add_lun(0, self.unit)
        self.initiator = self.login("iqn.1993-08.org.debian:one")
        self.run = self.initiator.run

    def login(self, name: str, isid: str = "") -> Initiator:
        """Open another I_T nexus."""
        return Initiator(self.target.open_nexus(name, tag=isid))


# CDBs and parameter lists, by the standard's names.  `flags` is byte 1.


def cdb6(opcode: int, lba: int, count: int) -> bytes:
    """Return a READ(6) or WRITE(6)."""
    return struct.pack(">IBB", opcode << 24 | lba, count, 0)


def cdb10(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a block command of 10 bytes."""
    return struct.pack(">BBIBHB", opcode, flags, lba, 0, count, 0)


def cdb12(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a block command of 12 bytes."""
    return struct.pack(">BBIIBB", opcode, flags, lba, count, 0, 0)


def cdb16(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a block command of 16 bytes."""
    return struct.pack(">BBQIBB", opcode, flags, lba, count, 0, 0)


def block_cdb(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a block command of the length that its opcode's group says."""
    match opcode >> 5:
        case 0:
            return cdb6(opcode, lba, count)
        case 4:
            return cdb16(opcode, lba, count, flags)
        case 5:
            return cdb12(opcode, lba, count, flags)
        case _:
            return cdb10(opcode, lba, count, flags)


def compare_and_write_cdb(lba: int, count: int, flags: int = 0) -> bytes:
    """Return a COMPARE AND WRITE."""
    return struct.pack(">BBQ3xBBB", 0x89, flags, lba, count, 0, 0)


def unmap_cdb(length: int, flags: int = 0) -> bytes:
    """Return an UNMAP."""
    return struct.pack(">BB5xHB", 0x42, flags, length, 0)


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    """Return the parameter list of UNMAP."""
    descriptors = b"".join(struct.pack(">QI4x", lba, count) for lba, count in ranges)
    return struct.pack(">HH4x", len(descriptors) + 6, len(descriptors)) + descriptors


def get_lba_status_cdb(lba: int, allocation_length: int) -> bytes:
    """Return a GET LBA STATUS."""
    return struct.pack(">BBQIBB", 0x9E, 0x12, lba, allocation_length, 0, 0)


def lba_status(data: bytes) -> list[tuple[int, int, int]]:
    """Return the descriptors of GET LBA STATUS: (LBA, blocks, provisioning status)."""
    assert int.from_bytes(data[:4]) == len(data) - 4
    return [(lba, blocks, status) for lba, blocks, status in struct.iter_unpack(">QIB3x", data[8:])]


def inquiry_cdb(page: int | None = None, allocation_length: int = 0xFFFF) -> bytes:
    """Return an INQUIRY, for a vital product data page if one is given."""
    return struct.pack(">BBBHB", 0x12, page is not None, page or 0, allocation_length, 0)


def report_luns_cdb(select: int = 0, allocation_length: int = 0x10000) -> bytes:
    """Return a REPORT LUNS."""
    return struct.pack(">BxB3xI2x", 0xA0, select, allocation_length)
