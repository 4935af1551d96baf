# SPDX-License-Identifier: Apache-2.0
"""INQUIRY data: the standard page and the vital product data pages 00h, 80h, 83h, B0h, B1h, B2h (SPC-4 6.6, 7.8; SBC-4 6.6).

Units that belong to a volume have page DAh as well: `lun_backends.initiator.part` has its layout.

The identity of a unit comes from its UUID alone, so it survives restarts, renames and moves to another host:

* the serial number (80h) is the UUID in hexadecimal, 32 digits;
* 83h names the unit as NAA 6h (100 bits drawn from the UUID), and as T10 vendor id `WOLUN` with the UUID.  It also names the
  target port and the target device of the nexus.

Every initiator prefers NAA 6h: Linux, its udev rules and multipath, VMware, Windows.  It has room for an IEEE company id, and
this project has none.  So it has an id of the kind that IEEE leaves to local administrators (the U/L bit is 1, IEEE 802c):
it can be no company's.  Older versions named units as NAA 3h, which some tools of Linux rank below the T10 name and others
above it: one disk had two names.  EXTENDED COPY still takes the old name.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from uuid import UUID

from lun_backends import atomic_journal
from lun_backends.initiator import part
from target.scsi import transfer
from target.scsi.logical_unit import LogicalUnit
from target.scsi.unit_kind import UnitKind

VENDOR = b"WOLUN   "
REVISION = b"0001"
_PRODUCTS = {
    UnitKind.PRIMARY: b"VOLUME",
    UnitKind.WRITE_ONCE: b"WRITE-ONCE",
    UnitKind.SNAPSHOT_VIEW: b"SNAPSHOT VIEW",
}
DOUBTFUL = b"DOUBTFUL VIEW"
"""The product identification of a view of a snapshot that may not be true."""

SPC_4 = 6
RESPONSE_DATA_FORMAT = 2
HISUP = 0x10
CMDQUE = 0x02
THIRD_PARTY_COPY = 0x08
_VERSION_DESCRIPTORS = struct.pack(">4H", 0x00A0, 0x0960, 0x0460, 0x04C0)  # SAM-5, iSCSI, SPC-4, SBC-3

NO_UNIT = 0x7F  # peripheral qualifier 3, type 1Fh: the LUN cannot have a unit here now
WELL_KNOWN_UNIT = 0x1E


def standard(peripheral: int, product: bytes, *, features: int = 0) -> bytes:
    """Return standard INQUIRY data (SPC-4 table 169), 96 bytes.

    `peripheral` is the peripheral qualifier and device type, `features` is byte 5.
    """
    data = bytearray(96)
    data[0] = peripheral
    data[2] = SPC_4
    data[3] = HISUP | RESPONSE_DATA_FORMAT
    data[4] = len(data) - 5
    data[5] = features
    data[7] = CMDQUE
    data[8:16] = VENDOR
    data[16:32] = product.ljust(16)
    data[32:36] = REVISION
    data[58:66] = _VERSION_DESCRIPTORS
    return bytes(data)


def for_unit(unit: LogicalUnit) -> bytes:
    """Return the standard INQUIRY data of a unit."""
    features = 0 if unit.kind is UnitKind.WRITE_ONCE else THIRD_PARTY_COPY
    return standard(0x00, DOUBTFUL if unit.doubtful else _PRODUCTS[unit.kind], features=features)


def serial_number(uuid: UUID) -> bytes:
    """Return the unit serial number."""
    return uuid.hex.encode("ascii")


_COMPANY = 0x02574C
"""The company id in NAA 6h: locally administered."""


def naa(uuid: UUID) -> bytes:
    """Return the NAA 6h (IEEE Registered Extended) name of a unit, 16 bytes (SPC-4 7.8.6.6.5)."""
    drawn = int.from_bytes(hashlib.blake2b(uuid.bytes, digest_size=16).digest()) & (1 << 100) - 1
    return (0x6 << 124 | _COMPANY << 100 | drawn).to_bytes(16)


def old_naa(uuid: UUID) -> bytes:
    """Return the NAA 3h (locally assigned) name that older versions gave a unit, 8 bytes."""
    name = bytearray(hashlib.blake2b(uuid.bytes, digest_size=8).digest())
    name[0] = 0x30 | name[0] & 0x0F
    return bytes(name)


def _designator(code_set: int, kind: int, association: int, value: bytes, protocol: int = 0) -> bytes:
    piv = 0x80 if association else 0
    return struct.pack(">BBxB", protocol << 4 | code_set, piv | association << 4 | kind, len(value)) + value


def is_called(unit: LogicalUnit, code_set: int, kind: int, name: bytes) -> bool:
    """Return whether page 83h has this designator for the unit itself."""
    return (code_set, kind, name) in (
        (BINARY, 3, naa(unit.uuid)),
        (BINARY, 3, old_naa(unit.uuid)),
        (ASCII, 1, VENDOR + str(unit.uuid).encode("ascii")),
    )


def _name_string(name: str) -> bytes:
    """Return a SCSI name string: NUL-terminated, padded to a multiple of four (SPC-4 7.8.6.11)."""
    value = name.encode() + b"\0"
    return value + bytes(-len(value) % 4)


BINARY, ASCII, UTF_8 = 1, 2, 3
UNIT, PORT, DEVICE = 0, 1, 2  # association
ISCSI = 5  # protocol identifier


def _supported_pages(unit: LogicalUnit, target_name: str) -> bytes:
    return bytes(sorted(PAGES if unit.part is None else [*PAGES, part.PAGE]))


def _unit_serial_number(unit: LogicalUnit, target_name: str) -> bytes:
    return serial_number(unit.uuid)


def _device_identification(unit: LogicalUnit, target_name: str) -> bytes:
    # An initiator may take the first designator that it knows, so the unit's own names come before the port's.
    return b"".join(
        (
            _designator(BINARY, 3, UNIT, naa(unit.uuid)),
            _designator(ASCII, 1, UNIT, VENDOR + str(unit.uuid).encode("ascii")),
            _designator(BINARY, 4, PORT, struct.pack(">2xH", 1), ISCSI),
            _designator(UTF_8, 8, PORT, _name_string(target_name + ",t,0x0001"), ISCSI),
            _designator(UTF_8, 8, DEVICE, _name_string(target_name), ISCSI),
        )
    )


def _block_limits(unit: LogicalUnit, target_name: str) -> bytes:
    blocks = unit.shift
    primary = unit.kind is UnitKind.PRIMARY
    granularity = max(unit.page_blocks, unit.device.grain >> blocks)  # a node's copies to a write-once LUN keep to this
    return struct.pack(
        ">BBHIIIIIIIQI16x",
        0,  # WSNZ
        transfer.MAX_COMPARE_AND_WRITE_BLOCKS if primary else 0,
        min(granularity, 0xFFFF),  # optimal transfer length granularity
        unit.max_transfer,
        transfer.OPTIMAL_TRANSFER_BYTES >> blocks,
        0,  # maximum prefetch length: not limited
        transfer.MAX_UNMAP_BYTES >> blocks if primary else 0,  # maximum UNMAP LBA count
        transfer.MAX_UNMAP_DESCRIPTORS if primary else 0,
        unit.page_blocks,  # optimal unmap granularity
        0x80000000,  # UGAVALID, alignment 0
        transfer.MAX_WRITE_SAME_BYTES >> blocks if primary else 0,  # maximum WRITE SAME length
        atomic_journal.MAX_BYTES >> blocks
        if unit.journal
        else 0,  # maximum atomic transfer length; no alignment, no boundary
    )


def _block_device_characteristics(unit: LogicalUnit, target_name: str) -> bytes:
    return struct.pack(">H58x", 1)  # non-rotating


def _logical_block_provisioning(unit: LogicalUnit, target_name: str) -> bytes:
    flags = 0
    if unit.kind is UnitKind.PRIMARY:
        flags |= 0xE0  # LBPU, LBPWS, LBPWS10
    if unit.kind is not UnitKind.WRITE_ONCE:
        flags |= 0x04  # LBPRZ: unmapped blocks read as zeroes
    return struct.pack(">BBBx", 0, flags, 2)  # thin provisioned


PAGES: dict[int, Callable[[LogicalUnit, str], bytes]] = {
    0x00: _supported_pages,
    0x80: _unit_serial_number,
    0x83: _device_identification,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
}


def page(unit: LogicalUnit, code: int, target_name: str) -> bytes | None:
    """Return a vital product data page with its header; None if there is no such page."""
    build = PAGES.get(code)
    if build is not None:
        body = build(unit, target_name)
    elif code == part.PAGE and unit.part is not None:
        body = part.encode(unit.part)
    else:
        return None
    return struct.pack(">BBH", 0x00, code, len(body)) + body
