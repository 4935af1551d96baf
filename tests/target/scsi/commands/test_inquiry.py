# SPDX-License-Identifier: Apache-2.0
"""Standard INQUIRY data and the vital product data pages."""

from __future__ import annotations

import struct
import uuid
from uuid import UUID

import pytest

from lun_backends.initiator import part
from target.scsi import transfer
from target.scsi.commands import inquiry, table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import (
    GOOD,
    TARGET_NAME,
    UNIT_UUID,
    Bench,
    inquiry_cdb,
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


def test_exactly_the_listed_pages_exist(any_kind: Bench) -> None:
    listed = page(any_kind, 0x00)
    assert listed == bytes([0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
    for code in range(256):
        assert (any_kind.run(inquiry_cdb(code)).status == GOOD) == (code in listed)


def test_unit_of_a_volume_says_so() -> None:
    ours = part.Part(UUID(int=5), "archive", part.Role.POOL, UNIT_UUID, 512, 4096, write_once=True, power_loss=True)
    unit = LogicalUnit(
        MemoryDevice(), uuid=UNIT_UUID, kind=UnitKind.WRITE_ONCE, name="a", commands=table.for_unit, part=ours
    )
    pages = inquiry.page(unit, 0x00, TARGET_NAME)
    assert pages is not None
    assert pages[4:] == bytes([0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 0xDA])
    mine = inquiry.page(unit, 0xDA, TARGET_NAME)
    assert mine is not None
    assert mine[:2] == b"\0\xda"
    assert int.from_bytes(mine[2:4]) == len(mine) - 4
    assert part.decode(mine[4:]) == ours


def test_the_serial_number_is_the_uuid(any_kind: Bench) -> None:
    assert page(any_kind, 0x80) == UNIT_UUID.hex.encode()


def test_device_identification(any_kind: Bench) -> None:
    rest, designators = page(any_kind, 0x83), []
    while rest:
        code_set, kind, length = rest[0] & 0xF, rest[1] & 0x3F, rest[3]
        designators.append((code_set, kind, rest[4 : 4 + length]))
        rest = rest[4 + length :]
    naa, t10, port, port_name, device_name = designators
    assert naa == (1, 0x03, inquiry.naa(UNIT_UUID))
    assert naa[2].hex() == "602574c" + naa[2].hex()[7:]  # NAA 6h, a company id that is nobody's
    assert len(naa[2]) == 16
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
        assert inquiry.page(one, code, "iqn.2026-11.x:x") == inquiry.page(renamed, code, "iqn.2026-11.x:x")
        assert inquiry.page(one, code, "iqn.2026-11.x:x") != inquiry.page(different, code, "iqn.2026-11.x:x")


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


def test_names_of_units_never_change() -> None:
    """Hosts keep them in their own configuration: multipath, fstab, data stores."""
    identity = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
    assert inquiry.naa(identity).hex() == "602574c47f9f8d515c93a51e77bc5575"
    assert inquiry.old_naa(identity).hex() == "3949dc0dd4973071"
