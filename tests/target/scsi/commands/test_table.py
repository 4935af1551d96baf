# SPDX-License-Identifier: Apache-2.0
"""The command table as a whole: every bit of every CDB, and random bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lun_backends import block_device
from target.scsi import nexus
from target.scsi.command_set import Command
from target.scsi.commands import table
from target.scsi.logical_unit import UnitKind
from target.scsi.reservations.persistent_reservation import Permission
from target.scsi.task import Status, Task, cdb_length
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import Bench, Initiator, allocate, block_cdb, compare_and_write_cdb, result_of

BLOCKS = 64


def small(kind: UnitKind) -> Bench:
    device = MemoryDevice(
        BLOCKS * 512, write_once=kind is UnitKind.WRITE_ONCE, read_only=kind is UnitKind.SNAPSHOT_VIEW
    )
    device.fill(random.Random(0).randbytes(BLOCKS // 2 * 512))
    return Bench(kind, device)


@pytest.mark.parametrize("row", table.COMMANDS, ids=lambda row: row.name)
def test_every_bit_outside_the_usage_mask_is_refused_with_a_pointer(row: Command, tmp_path: Path) -> None:
    bench = Bench(state_dir=tmp_path)
    for byte in range(1, len(row.usage)):
        for bit in range(8):
            if row.usage[byte] >> bit & 1:
                continue
            cdb = bytearray(len(row.usage))
            cdb[0] = row.opcode
            cdb[1] = row.service_action or 0
            cdb[byte] |= 1 << bit
            result = bench.run(bytes(cdb), bytes(512))
            assert (result.asc, result.field) == (0x2400, (byte, bit))
    assert not bench.device.calls


@pytest.mark.parametrize("row", table.COMMANDS, ids=lambda row: row.name)
def test_a_cdb_that_is_too_short_is_refused(row: Command, tmp_path: Path) -> None:
    bench = Bench(state_dir=tmp_path)
    for length in range(1, len(row.usage)):
        task = Task(allocate)
        task.cdb = row.usage[:1].ljust(length, b"\0")
        bench.initiator.nexus.execute(task, nowait=False)
        result = result_of(task)
        assert (result.key, result.asc) == (0x5, 0x2400)
    assert not bench.device.calls


def test_opcodes_that_are_not_in_the_table_are_refused(any_kind: Bench) -> None:
    known = {row.opcode for row in any_kind.unit.commands.rows}
    for opcode in set(range(256)) - known:
        result = any_kind.run(bytes([opcode]), bytes(512))
        assert (result.key, result.asc) == (0x5, 0x2000)
    for opcode in (0x9E, 0xA3):
        assert any_kind.run(bytes([opcode, 0x1F])).field == (1, 4)


def test_an_empty_cdb_is_refused(primary: Bench) -> None:
    task = Task(allocate)
    primary.initiator.nexus.execute(task, nowait=True)
    assert result_of(task).asc == 0x2400


def test_the_rows_that_write_are_those_that_write() -> None:
    assert {row.name.split("(")[0] for row in table.COMMANDS if row.writes} == {
        "WRITE",
        "WRITE AND VERIFY",
        "WRITE SAME",
        "UNMAP",
        "COMPARE AND WRITE",
        "ORWRITE",
        "WRITE ATOMIC",
        "EXTENDED COPY",
    }


def test_each_row_is_known_to_concern_others_or_not() -> None:
    """A new row must be put into one of the two lists: an initiator that may only read has the second one alone."""
    others = {row.name for row in table.COMMANDS if row.concerns_others and not row.writes}
    assert {name.split("(")[0].split(",")[0] for name in others} == {
        "MODE SELECT",
        "RESERVE",
        "START STOP UNIT",
        "PREVENT ALLOW MEDIUM REMOVAL",
        "PERSISTENT RESERVE OUT",
    }
    own = {row.name for row in table.COMMANDS if not row.writes} - others
    assert {name.split("(")[0].split(",")[0] for name in own} == {
        "GET LBA STATUS",
        "INQUIRY",
        "LOG SENSE",
        "MODE SENSE",
        "PERSISTENT RESERVE IN",
        "PRE-FETCH",
        "READ",
        "READ CAPACITY",
        "RECEIVE COPY OPERATING PARAMETERS",
        "RECEIVE COPY STATUS",
        "RELEASE",
        "REPORT LUNS",
        "REPORT SUPPORTED OPERATION CODES",
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        "REQUEST SENSE",
        "SEND DIAGNOSTIC",
        "SYNCHRONIZE CACHE",
        "TEST UNIT READY",
        "VERIFY",
    }


OPCODES = st.sampled_from(sorted({row.opcode for row in table.COMMANDS})) | st.integers(0, 255)
# A byte is likely to be 0 or small, because otherwise no range would ever exist.
BYTES = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 8, 16]) | st.integers(0, 255), min_size=0, max_size=31).map(bytes)


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(UnitKind),
    opcode=OPCODES,
    rest=BYTES,
    pieces=st.lists(st.sampled_from([0, 1, 8, 24, 512, 512, 1024]), max_size=3),
    lun=st.sampled_from([0, 0, 0, 1 << 48, 0xC101 << 48, 3]),
    nowait=st.booleans(),
)
def test_random_bytes_change_nothing_they_must_not(
    kind: UnitKind, opcode: int, rest: bytes, pieces: list[int], lun: int, nowait: bool
) -> None:
    """The device server raises nothing, the status is a proper one, and only a write of the table changes data."""
    bench = small(kind)
    device = bench.device
    before = bytes(device.data), bytes(device.written)
    task = Task(allocate)
    task.lun = lun
    task.cdb = bytes([opcode]) + rest
    task.data_out = [memoryview(random.Random(1).randbytes(size)) for size in pieces if size]
    try:
        bench.initiator.nexus.execute(task, nowait=nowait)
    except block_device.WouldBlock:
        assert nowait
        assert (bytes(device.data), bytes(device.written)) == before
        return
    result = result_of(task)
    assert result.status in (Status.GOOD, Status.CHECK_CONDITION, Status.CONDITION_MET)
    assert result.key != 0x4, "an unforeseen error"
    assert b"\xee" * 64 not in result.data, "the answer has a buffer that no handler filled"
    row = bench.unit.command(task.cdb)
    may_write = row is not None and row.writes and lun == 0 and kind is not UnitKind.SNAPSHOT_VIEW
    if result.status != Status.GOOD or not may_write:
        assert (bytes(device.data), bytes(device.written)) == before
    if kind is UnitKind.WRITE_ONCE:
        written = before[1].index(0) * 512
        assert device.data[:written] == before[0][:written]


def test_no_write_needs_less_than_every_permission() -> None:
    for row in table.COMMANDS:
        if row.writes:
            assert row.needs is Permission.EVERYTHING, row.name
            assert not row.despite_reserve, row.name


def test_every_usage_mask_is_as_long_as_its_cdb() -> None:
    for row in table.COMMANDS:
        assert len(row.usage) == cdb_length(row.usage)
        assert row.usage[0] == row.opcode
        assert row.usage[-1] == 0  # CONTROL: NACA is not supported


@pytest.mark.parametrize("row", [row for row in table.COMMANDS if row.range_written], ids=lambda row: row.name)
def test_a_range_names_the_blocks_that_the_write_changes(row: Command) -> None:
    bench = small(UnitKind.PRIMARY)
    lba, count = 5, 3
    compares = row.opcode == 0x89
    cdb = compare_and_write_cdb(lba, count) if compares else block_cdb(row.opcode, lba, count)
    assert row.range_written is not None
    assert row.range_written(cdb) == (lba, count)
    new = bytes(byte ^ 0xFF for byte in bench.device.data[lba * 512 : (lba + count) * 512])
    before = bytes(bench.device.data)
    data = {0x89: before[lba * 512 : (lba + count) * 512] + new, 0x41: new[:512], 0x93: new[:512]}.get(row.opcode, new)
    assert bench.run(cdb, data).status == Status.GOOD
    changed = [
        block for block in range(BLOCKS) if bench.device.data[block * 512 :][:512] != before[block * 512 :][:512]
    ]
    assert changed == list(range(lba, lba + count))


def test_the_plain_commands_are_reads_everywhere_and_writes_on_primaries() -> None:
    for kind in UnitKind:
        for write_protected in (False, True):
            writes = kind is UnitKind.PRIMARY and not write_protected
            plain = table.for_unit(kind, write_protected=write_protected).plain
            assert plain == ({0x28, 0x88, 0x2A, 0x8A} if writes else {0x28, 0x88})


SURE = [  # CDBs that are refused whatever their data is, and others that are not
    *(block_cdb(opcode, lba, count) for opcode in (0x2A, 0x2E, 0x41, 0x8A, 0x8B, 0x8E, 0x93, 0x9C, 0xAA, 0xAE)
      for lba, count in ((0, 1), (BLOCKS, 1), (BLOCKS - 1, 2), (1 << 31, 1), (0, 65535))),
    compare_and_write_cdb(BLOCKS, 1), compare_and_write_cdb(0, 1),
    b"\x2a\x80" + bytes(8), b"\x5f\x1f" + bytes(8), b"\xc1" + bytes(9), b"\x9e\x01" + bytes(14),
]  # fmt: skip


def answer(task: Task) -> tuple[int, bytes]:
    result = result_of(task)
    return result.status, result.sense


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", list(UnitKind))
def test_what_is_refused_before_its_data_would_have_been_refused_with_it(
    kind: UnitKind, read_only: bool, tmp_path: Path
) -> None:
    device = MemoryDevice(BLOCKS * 512, write_once=kind is UnitKind.WRITE_ONCE)
    bench = Bench(kind, device, state_dir=tmp_path)
    view: nexus.View = lambda number, unit: (nexus.Reach(number, read_only=read_only),)  # noqa: E731
    initiator = Initiator(bench.target.open_nexus("iqn.2026-11.x:two", view=view))
    refused = 0
    for cdb in SURE:
        early, late = (initiator.task(cdb, bytes(512)) for _ in range(2))
        early.cdb = late.cdb = cdb
        if initiator.nexus.refuses(early):
            refused += 1
            initiator.nexus.execute(late, nowait=True)
            assert answer(early) == answer(late), cdb.hex()
    assert refused > 20
    assert (refused == len(SURE)) is (read_only or kind is UnitKind.SNAPSHOT_VIEW)
