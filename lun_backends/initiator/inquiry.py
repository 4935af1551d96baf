# SPDX-License-Identifier: Apache-2.0
"""INQUIRY and REPORT LUNS (SPC-4 6.6, 6.33, 7.8): what a LUN says about itself.  Neither command meets a unit attention."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lun_backends.initiator import part
from lun_backends.initiator.unit import (
    ILLEGAL_REQUEST,
    INVALID_COMMAND_OPERATION_CODE,
    INVALID_FIELD_IN_CDB,
    CheckCondition,
    Unit,
)

SUPPORTED_PAGES, UNIT_SERIAL_NUMBER, DEVICE_IDENTIFICATION, BLOCK_LIMITS, PROVISIONING = 0x00, 0x80, 0x83, 0xB0, 0xB2
_TARGET_DEVICE, _NAME_STRING = 2, 8  # association and type of a designator
_STANDARD_LENGTH = 96
_PAGE_LENGTH = 0x1000
_LUNS_LENGTH = 8 + 8 * 0x4000


@dataclass(frozen=True, slots=True)
class Standard:
    """Standard INQUIRY data."""

    connected: bool  # whether there is a unit behind the LUN: peripheral qualifier 0
    device_type: int  # 00h: a disk
    vendor: str
    product: str
    revision: str


@dataclass(frozen=True, slots=True)
class Designator:
    """A name of page 83h (SPC-4 7.8.6): of the unit (association 0), its target port (1) or target device (2)."""

    association: int
    type: int  # 1: T10 vendor ID, 2: EUI-64, 3: NAA, 8: SCSI name string
    code_set: int  # 1: binary, 2: ASCII, 3: UTF-8
    name: bytes


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """Page B0h (SBC-4 6.6.4), in blocks; 0: the unit names no limit."""

    max_transfer: int = 0
    max_unmap: int = 0
    max_write_same: int = 0
    granularity: int = 0  # OPTIMAL TRANSFER LENGTH GRANULARITY


@dataclass(frozen=True, slots=True)
class Provisioning:
    """Page B2h (SBC-4 6.6.6)."""

    unmap_by_write_same: bool = False  # LBPWS
    unmapped_reads_zeroes: bool = False  # LBPRZ


def standard(unit: Unit) -> Standard:
    """Return the standard INQUIRY data.  Raise the errors of Unit.execute."""
    data = unit.execute(struct.pack(">BBBHx", 0x12, 0, 0, _STANDARD_LENGTH), in_length=_STANDARD_LENGTH).ljust(
        36, b"\0"
    )
    vendor, product, revision = (_text(data[start:end]) for start, end in ((8, 16), (16, 32), (32, 36)))
    return Standard(data[0] >> 5 == 0, data[0] & 0x1F, vendor, product, revision)


def page(unit: Unit, code: int) -> bytes | None:
    """Return a vital product data page without its header of four bytes; None if the unit has no such page.

    Raise the errors of Unit.execute.
    """
    try:
        data = unit.execute(struct.pack(">BBBHx", 0x12, 1, code, _PAGE_LENGTH), in_length=_PAGE_LENGTH)
    except CheckCondition as refused:
        if refused.sense.key == ILLEGAL_REQUEST and refused.sense.asc in (
            INVALID_FIELD_IN_CDB,
            INVALID_COMMAND_OPERATION_CODE,
        ):
            return None
        raise
    if len(data) < 4 or data[1] != code:
        return None  # an old device that does not know EVPD answers with standard data
    return data[4 : 4 + int.from_bytes(data[2:4])]


def supported_pages(unit: Unit) -> frozenset[int]:
    """Return the codes of page 00h."""
    return frozenset(page(unit, SUPPORTED_PAGES) or b"")


def serial_number(unit: Unit) -> str:
    """Return the unit serial number (page 80h); an empty text if there is none."""
    return _text(page(unit, UNIT_SERIAL_NUMBER) or b"")


def designators(unit: Unit) -> tuple[Designator, ...]:
    """Return the names of page 83h, in the unit's order."""
    data, position, found = page(unit, DEVICE_IDENTIFICATION) or b"", 0, []
    while position + 4 <= len(data):
        code_set, kind, length = data[position] & 0x0F, data[position + 1], data[position + 3]
        name = data[position + 4 : position + 4 + length]
        found.append(Designator(kind >> 4 & 0x3, kind & 0x0F, code_set, name))
        position += 4 + length
    return tuple(found)


def block_limits(unit: Unit) -> BlockLimits:
    """Return the limits of page B0h; none if there is no such page."""
    data = (page(unit, BLOCK_LIMITS) or b"").ljust(60, b"\0")
    return BlockLimits(
        int.from_bytes(data[4:8]),
        int.from_bytes(data[16:20]),
        min(int.from_bytes(data[32:40]), 0xFFFFFFFF),
        int.from_bytes(data[2:4]),
    )


def provisioning(unit: Unit) -> Provisioning:
    """Return page B2h."""
    flags = (page(unit, PROVISIONING) or b"").ljust(2, b"\0")[1]
    return Provisioning(bool(flags & 0x40), bool(flags & 0x1C))


def part_of(unit: Unit) -> part.Part | None:
    """Return the part that a LUN of wolun plays in a volume; None for all other LUNs.  This takes one command."""
    body = page(unit, part.PAGE)
    return None if body is None else part.decode(body)


def target_name(unit: Unit) -> str:
    """Return the name of the target device that has the unit, from page 83h; an empty text if it does not tell."""
    for name in designators(unit):
        if name.association == _TARGET_DEVICE and name.type == _NAME_STRING:
            return name.name.rstrip(b"\0").decode(errors="replace")
    return ""


def luns(unit: Unit) -> tuple[int, ...]:
    """Return the LUNs that a target has for this initiator, ascending (REPORT LUNS).  Ask LUN 0, which always answers."""
    data = unit.execute(struct.pack(">BxBxxxIxx", 0xA0, 0, _LUNS_LENGTH), in_length=_LUNS_LENGTH)
    length = min(int.from_bytes(data[:4]), len(data) - 8)
    entries = (int.from_bytes(data[at : at + 2]) for at in range(8, 8 + length, 8))
    # Peripheral and flat space addressing (SAM-5 4.7.7.2, 4.7.7.3); there are no other LUNs on the first level.
    return tuple(sorted(entry & 0x3FFF for entry in entries if entry >> 14 in (0, 1)))


def _text(data: bytes) -> str:
    return data.decode("ascii", errors="replace").strip(" \0")
