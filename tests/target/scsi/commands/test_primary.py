# SPDX-License-Identifier: Apache-2.0
"""INQUIRY with its pages, MODE SENSE, REPORT LUNS, REQUEST SENSE, TEST UNIT READY, START STOP UNIT and the reports of what is supported."""

from __future__ import annotations

import struct
import uuid

import pytest

from lun_backends import block_device
from target.scsi import transfer
from target.scsi.commands import inquiry, table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.task import cdb_length
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    TARGET_NAME,
    TEST_UNIT_READY,
    UNIT_UUID,
    Bench,
    cdb10,
    inquiry_cdb,
    report_luns_cdb,
)

PRODUCTS = {
    UnitKind.PRIMARY: b"VOLUME          ",
    UnitKind.WRITE_ONCE: b"WRITE-ONCE      ",
    UnitKind.SNAPSHOT_VIEW: b"SNAPSHOT VIEW   ",
}


def page(bench: Bench, code: int) -> bytes:
    data = bench.run(inquiry_cdb(code)).data
    assert data[:2] == bytes([0, code])
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


def test_standard_inquiry(any_kind: Bench) -> None:
    data = any_kind.run(inquiry_cdb()).data
    assert len(data) == 96
    third_party_copy = 0x00 if any_kind.unit.kind is UnitKind.WRITE_ONCE else 0x08
    assert data[:8] == bytes([0x00, 0x00, 6, 0x12, 91, third_party_copy, 0x00, 0x02])
    assert data[8:16] == b"WOLUN   "
    assert data[16:32] == PRODUCTS[any_kind.unit.kind]
    assert struct.unpack(">4H", data[58:66]) == (0x00A0, 0x0960, 0x0460, 0x04C0)


@pytest.mark.parametrize("length", [0, 5, 36, 96, 255])
def test_inquiry_is_cut_to_the_allocation_length(primary: Bench, length: int) -> None:
    whole = primary.run(inquiry_cdb()).data
    assert primary.run(inquiry_cdb(allocation_length=length)).data == whole[:length]


def test_inquiry_refuses(primary: Bench) -> None:
    assert primary.run(bytes([0x12, 0x00, 0x80, 0, 255, 0])).field == (2, None)  # a page code without EVPD
    assert primary.run(bytes([0x12, 0x02, 0x00, 0, 255, 0])).field == (1, 1)  # CMDDT, obsolete
    assert primary.run(inquiry_cdb(0xC0)).field == (2, None)


def test_the_pages_are_those_listed(any_kind: Bench) -> None:
    listed = page(any_kind, 0x00)
    assert listed == bytes([0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
    for code in range(256):
        assert (any_kind.run(inquiry_cdb(code)).status == GOOD) == (code in listed)


def test_the_serial_number_is_the_uuid(any_kind: Bench) -> None:
    assert page(any_kind, 0x80) == UNIT_UUID.hex.encode()


def test_device_identification(any_kind: Bench) -> None:
    rest, found = page(any_kind, 0x83), []
    while rest:
        code_set, kind, length = rest[0] & 0xF, rest[1] & 0x3F, rest[3]
        found.append((code_set, kind, rest[4 : 4 + length]))
        rest = rest[4 + length :]
    naa, t10, port, port_name, device_name = found
    assert naa == (1, 0x03, inquiry.naa(UNIT_UUID))
    assert len(naa[2]) == 8
    assert naa[2][0] >> 4 == 3
    assert t10 == (2, 0x01, b"WOLUN   " + str(UNIT_UUID).encode())
    assert port == (1, 0x14, b"\0\0\0\1")
    assert port_name[:2] == (3, 0x18)
    assert port_name[2].rstrip(b"\0").decode() == TARGET_NAME + ",t,0x0001"
    assert device_name[:2] == (3, 0x28)
    assert device_name[2].rstrip(b"\0").decode() == TARGET_NAME
    assert all(len(name[2]) % 4 == 0 and name[2].endswith(b"\0") for name in (port_name, device_name))


def test_identity_depends_on_the_uuid_alone() -> None:
    other = uuid.UUID(int=UNIT_UUID.int + 1)
    device = MemoryDevice()
    one, renamed, different = (
        LogicalUnit(device, uuid=identity, kind=kind, name=name, commands=table.for_unit)
        for identity, kind, name in (
            (UNIT_UUID, UnitKind.PRIMARY, "a"),
            (UNIT_UUID, UnitKind.PRIMARY, "b"),
            (other, UnitKind.PRIMARY, "a"),
        )
    )
    for code in (0x80, 0x83):
        assert inquiry.page(one, code, "iqn.x") == inquiry.page(renamed, code, "iqn.x")
        assert inquiry.page(one, code, "iqn.x") != inquiry.page(different, code, "iqn.x")


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_limits_of_a_primary(block_size: int) -> None:
    body = page(Bench(device=MemoryDevice(block_size=block_size)), 0xB0)
    fields = struct.unpack_from(">BBHIIIIIIIQ", body)
    assert len(body) == 60
    physical = 4096 // block_size
    assert fields == (
        0,
        255,
        physical,
        transfer.MAX_TRANSFER_BYTES // block_size,
        transfer.OPTIMAL_TRANSFER_BYTES // block_size,
        0,
        transfer.MAX_UNMAP_BYTES // block_size,
        256,
        physical,
        0x80000000,
        transfer.MAX_WRITE_SAME_BYTES // block_size,
    )


@pytest.mark.parametrize("kind", [UnitKind.WRITE_ONCE, UnitKind.SNAPSHOT_VIEW])
def test_other_units_offer_no_deallocation(kind: UnitKind) -> None:
    limits = struct.unpack_from(">BBHIIIIIIIQ", page(Bench(kind), 0xB0))
    assert (limits[1], limits[6], limits[7], limits[10]) == (0, 0, 0, 0)
    assert page(Bench(kind), 0xB2)[1] & 0xE0 == 0


def test_provisioning_pages(any_kind: Bench) -> None:
    flags = {UnitKind.PRIMARY: 0xE4, UnitKind.WRITE_ONCE: 0x00, UnitKind.SNAPSHOT_VIEW: 0x04}[any_kind.unit.kind]
    assert page(any_kind, 0xB2) == bytes([0, flags, 2, 0])
    assert page(any_kind, 0xB1) == b"\0\1" + bytes(58)


def mode_sense_6(bench: Bench, code: int, *, dbd: bool = True, control: int = 0, subpage: int = 0) -> bytes:
    result = bench.run(bytes([0x1A, 8 * dbd, control << 6 | code, subpage, 255, 0]))
    assert result.status == GOOD
    assert result.data[0] == len(result.data) - 1
    return result.data[1:]


def test_mode_pages(any_kind: Bench) -> None:
    protected = any_kind.unit.kind is UnitKind.SNAPSHOT_VIEW
    specific = 0x90 if protected else 0x10
    recovery = bytes([0x01, 10]) + bytes(10)
    caching = bytes([0x08, 18, 0 if protected else 0x04]) + bytes(17)
    control = bytes([0x0A, 10, 0x00, 0x10, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0])
    exceptions = bytes([0x1C, 10]) + bytes(10)
    header = bytes([0, specific, 0])
    assert mode_sense_6(any_kind, 0x3F) == header + recovery + caching + control + exceptions
    assert mode_sense_6(any_kind, 0x3F, subpage=0xFF) == mode_sense_6(any_kind, 0x3F)
    assert mode_sense_6(any_kind, 0x08) == header + caching
    assert mode_sense_6(any_kind, 0x0A, control=2) == header + control
    assert mode_sense_6(any_kind, 0x0A, control=1) == header + control[:2] + bytes(10)


def test_mode_sense_block_descriptors() -> None:
    bench = Bench(device=MemoryDevice(block_size=4096))
    assert mode_sense_6(bench, 0x0A, dbd=False)[2:11] == b"\x08" + struct.pack(">II", 256, 4096)
    short = bench.run(bytes([0x5A, 0, 0x0A, 0, 0, 0, 0, 0, 255, 0])).data
    assert short[:16] == struct.pack(">HBBBxHII", 6 + 8 + 12, 0, 0x10, 0, 8, 256, 4096)
    long = bench.run(bytes([0x5A, 0x10, 0x0A, 0, 0, 0, 0, 0, 255, 0])).data
    assert long[:24] == struct.pack(">HBBBxHQ4xI", 6 + 16 + 12, 0, 0x10, 1, 16, 256, 4096)
    none = bench.run(bytes([0x5A, 0x08, 0x0A, 0, 0, 0, 0, 0, 255, 0])).data
    assert none[:8] == struct.pack(">HBBBxH", 6 + 12, 0, 0x10, 0, 0)
    assert short[16:] == long[24:] == none[8:]


def test_mode_sense_refuses(primary: Bench) -> None:
    assert primary.run(bytes([0x1A, 0, 0xC8, 0, 255, 0])).asc == 0x3900
    assert primary.run(bytes([0x1A, 0, 0x02, 0, 255, 0])).field == (2, None)
    assert primary.run(bytes([0x1A, 0, 0x08, 1, 255, 0])).field == (3, None)


def test_a_unit_beyond_32_bits_of_lba_starts_with_descriptor_sense() -> None:
    device = MemoryDevice()
    device.size = 512 * ((1 << 32) + 1)
    bench = Bench(device=device)
    assert mode_sense_6(bench, 0x0A)[3 + 2] & 0x04
    assert bench.run(b"\xc0").sense[0] == 0x72


def test_test_unit_ready(any_kind: Bench) -> None:
    assert any_kind.run(TEST_UNIT_READY).status == GOOD


@pytest.mark.parametrize("kind", [UnitKind.WRITE_ONCE, UnitKind.SNAPSHOT_VIEW])
def test_a_snapshot_that_was_given_up_is_not_ready(kind: UnitKind) -> None:
    bench = Bench(kind)
    bench.device.inject("readv", block_device.SnapshotInvalid("the disk was full"), times=2)
    for cdb in (TEST_UNIT_READY, cdb10(0x28, 0, 1)):
        result = bench.run(cdb)
        assert (result.status, result.key, result.asc) == (CHECK, 0x2, 0x0403)


def test_request_sense(primary: Bench) -> None:
    assert primary.run(bytes([0x03, 0, 0, 0, 252, 0])).data == bytes([0x70, 0, 0, 0, 0, 0, 0, 10]) + bytes(10)
    assert primary.run(bytes([0x03, 1, 0, 0, 252, 0])).data == bytes([0x72, 0, 0, 0, 0, 0, 0, 0])
    assert len(primary.run(bytes([0x03, 0, 0, 0, 4, 0])).data) == 4


def test_request_sense_tells_a_unit_attention_and_clears_it(primary: Bench) -> None:
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
        unit = LogicalUnit(
            MemoryDevice(), uuid=uuid.uuid4(), kind=UnitKind.PRIMARY, name="other", commands=table.for_unit
        )
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
    size, found = 20 if timeouts else 8, []
    for start in range(4, len(data), size):
        opcode, action, flags, length = struct.unpack_from(">BxHxBH", data, start)
        assert bool(flags & 2) == timeouts
        found.append((opcode, action if flags & 1 else None, length))
        if timeouts:
            assert struct.unpack_from(">HxB", data, start + 8) == (10, 0)
            assert struct.unpack_from(">I", data, start + 16)[0] > 0
    rows = any_kind.unit.commands.rows
    assert found == [(row.opcode, row.service_action, len(row.usage)) for row in rows]
    assert (0x42 in {opcode for opcode, _, _ in found}) == (any_kind.unit.kind is not UnitKind.WRITE_ONCE)


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


def test_every_usage_mask_is_as_long_as_its_cdb() -> None:
    for row in table.COMMANDS:
        assert len(row.usage) == cdb_length(row.usage)
        assert row.usage[0] == row.opcode
        assert row.usage[-1] == 0  # CONTROL: NACA is not supported
