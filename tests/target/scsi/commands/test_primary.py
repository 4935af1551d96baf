# SPDX-License-Identifier: Apache-2.0
"""REPORT LUNS, REQUEST SENSE, TEST UNIT READY, START STOP UNIT, and the reports of supported commands and functions."""

from __future__ import annotations

import struct

import pytest

from lun_backends import block_device
from target.scsi.logical_unit import UnitKind
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    TEST_UNIT_READY,
    Bench,
    cdb10,
    make_unit,
    report_luns_cdb,
)


def test_test_unit_ready(any_kind: Bench) -> None:
    assert any_kind.run(TEST_UNIT_READY).status == GOOD


@pytest.mark.parametrize("kind", [UnitKind.WRITE_ONCE, UnitKind.SNAPSHOT_VIEW])
def test_an_invalid_snapshot_is_not_ready(kind: UnitKind) -> None:
    bench = Bench(kind)
    bench.device.inject("readv", block_device.SnapshotInvalid("the disk was full"), times=2)
    for cdb in (TEST_UNIT_READY, cdb10(0x28, 0, 1)):
        result = bench.run(cdb)
        assert (result.status, result.key, result.asc) == (CHECK, 0x2, 0x0403)


def test_request_sense(primary: Bench) -> None:
    assert primary.run(bytes([0x03, 0, 0, 0, 252, 0])).data == bytes([0x70, 0, 0, 0, 0, 0, 0, 10]) + bytes(10)
    assert primary.run(bytes([0x03, 1, 0, 0, 252, 0])).data == bytes([0x72, 0, 0, 0, 0, 0, 0, 0])
    assert len(primary.run(bytes([0x03, 0, 0, 0, 4, 0])).data) == 4


def test_request_sense_reports_a_unit_attention_and_clears_it(primary: Bench) -> None:
    primary.unit.attention(0x2A, 0x09)
    result = primary.run(bytes([0x03, 0, 0, 0, 252, 0]))
    assert (result.status, result.data[2], result.data[12:14]) == (GOOD, 0x6, b"\x2a\x09")
    assert primary.run(TEST_UNIT_READY).status == GOOD


def test_start_stop_unit(any_kind: Bench) -> None:
    for cdb in ("1b0000000100", "1b0100000000", "1b0000003000"):
        assert any_kind.run(bytes.fromhex(cdb)).status == GOOD
    assert any_kind.run(bytes.fromhex("1b0000000400"), nowait=True).status == GOOD  # NO_FLUSH
    assert any_kind.run(bytes.fromhex("1b0000000200")).field == (4, 1)  # eject
    assert any_kind.device.calls["flush"] == 3


def luns(data: bytes) -> list[str]:
    assert int.from_bytes(data[:4]) == len(data) - 8
    return [data[start : start + 8].hex() for start in range(8, len(data), 8)]


def test_report_luns(primary: Bench) -> None:
    for number in (300, 7, 255, 256, 16383):
        unit = make_unit()
        primary.target.add_lun(number, unit)
    units = ["00" * 8] + [f"{first}{'00' * 6}" for first in ("0007", "00ff", "4100", "412c", "7fff")]
    assert luns(primary.run(report_luns_cdb()).data) == units
    assert luns(primary.run(report_luns_cdb(1)).data) == ["c101000000000000"]
    assert luns(primary.run(report_luns_cdb(2)).data) == [*units, "c101000000000000"]
    assert primary.run(report_luns_cdb(3)).field == (2, None)
    assert len(primary.run(report_luns_cdb(0, 12)).data) == 12
    for field in units:
        assert primary.run(TEST_UNIT_READY, lun=int(field, 16)).status == GOOD


def supported(bench: Bench, options: int, opcode: int = 0, action: int = 0) -> bytes:
    result = bench.run(struct.pack(">BBBBHI2x", 0xA3, 0x0C, options, opcode, action, 0xFFFF))
    assert result.status == GOOD, result
    return result.data


@pytest.mark.parametrize("timeouts", [False, True])
def test_all_supported_operation_codes(any_kind: Bench, timeouts: bool) -> None:
    data = supported(any_kind, 0x80 * timeouts)
    assert int.from_bytes(data[:4]) == len(data) - 4
    size, reported = 20 if timeouts else 8, []
    for start in range(4, len(data), size):
        opcode, action, flags, length = struct.unpack_from(">BxHxBH", data, start)
        assert bool(flags & 2) == timeouts
        reported.append((opcode, action if flags & 1 else None, length))
        if timeouts:
            assert struct.unpack_from(">HxB", data, start + 8) == (10, 0)
            assert struct.unpack_from(">I", data, start + 16)[0] > 0
    rows = any_kind.unit.commands.rows
    assert reported == [(row.opcode, row.service_action, len(row.usage)) for row in rows]
    assert (0x42 in {opcode for opcode, _, _ in reported}) == (any_kind.unit.kind is not UnitKind.WRITE_ONCE)


def test_one_supported_operation_code(any_kind: Bench) -> None:
    for row in any_kind.unit.commands.rows:
        usage = bytearray(row.usage)
        options = 1
        if row.service_action is not None:
            usage[1] = usage[1] & 0xE0 | row.service_action
            options = 2
        expected = struct.pack(">BBH", 0, 3, len(usage)) + usage
        for option in (options, 3):
            assert supported(any_kind, option, row.opcode, row.service_action or 0) == expected
        with_timeouts = supported(any_kind, 0x80 | options, row.opcode, row.service_action or 0)
        assert with_timeouts == bytes([0, 0x83]) + expected[2:] + struct.pack(">HxBII", 10, 0, 0, row.timeout)
        refused = any_kind.run(
            struct.pack(">BBBBHI2x", 0xA3, 0x0C, 3 - options, row.opcode, row.service_action or 0, 255)
        )
        assert refused.field == (2, 2)


def test_an_operation_code_that_is_not_supported(primary: Bench) -> None:
    for options, opcode, action in ((1, 0xC0, 0), (2, 0xC0, 3), (2, 0x9E, 0x1F), (3, 0xC0, 0), (3, 0x28, 1)):
        assert supported(primary, options, opcode, action) == bytes([0, 1, 0, 0])
    assert primary.run(struct.pack(">BBBBHI2x", 0xA3, 0x0C, 4, 0x28, 0, 255)).field == (2, 2)


def test_supported_task_management_functions(primary: Bench) -> None:
    cdb = struct.pack(">BBB3xI2x", 0xA3, 0x0D, 0, 255)
    assert primary.run(cdb).data == bytes([0xDA, 0, 0, 0])
    cdb = struct.pack(">BBB3xI2x", 0xA3, 0x0D, 0x80, 255)
    assert primary.run(cdb).data == bytes([0xDA, 0, 0, 12]) + bytes(12)
