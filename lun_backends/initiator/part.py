# SPDX-License-Identifier: Apache-2.0
"""The part that a LUN plays in a volume: wolun's vital product data page DAh (SPC-4 7.8.1 leaves C0h to FFh to vendors).

The page says what a node of a cluster looks for: the volume, the role of the LUN, and its identity.  Big-endian:

| bytes of the page | field |
| --- | --- |
| 0 to 3 | peripheral qualifier and type, DAh, length of the rest |
| 4 to 11 | magic `WOLUNVPD` |
| 12 | version, 1; a later version only adds fields at the end |
| 13 | role, see `Role` |
| 14 | 01h: write-once. 02h: a write has survived a power cut once it is answered |
| 15 | reserved |
| 16 to 31 | UUID of the volume |
| 32 to 47 | UUID of the LUN |
| 48 to 51 | block size, bytes |
| 52 to 55 | grain size, bytes: the unit of copy-on-write; 0 if there is none |
| 56 | length of the name |
| 57 ... | name of the volume, UTF-8 |
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass

PAGE = 0xDA
_MAGIC = b"WOLUNVPD"
_BODY = struct.Struct(">8sBBBx16s16sIIB")
_VERSION = 1
_WRITE_ONCE, _POWER_LOSS = 0x01, 0x02


class Role(enum.IntEnum):
    """The role of a LUN in its volume."""

    PRIMARY = 1
    LOG = 2  # of a cluster's volume (lun_backends/cluster)
    POOL = 3  # a write-once LUN that a record of the log may take, or has taken
    SNAPSHOT = 4  # the write-once LUN of a snapshot that this host took
    VIEW = 5
    NODE = 6  # a shared volume as one of its nodes serves it, through copy-on-write; not the primary


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a LUN in a volume."""

    volume: uuid.UUID
    name: str  # of the volume
    role: Role
    lun: uuid.UUID
    block_size: int  # bytes
    grain_size: int  # bytes; 0 if there is none
    write_once: bool
    power_loss: bool


def encode(part: Part) -> bytes:
    """Return the page without its four bytes of header."""
    name = part.name.encode()[:0xFF]
    flags = (_WRITE_ONCE if part.write_once else 0) | (_POWER_LOSS if part.power_loss else 0)
    body = _BODY.pack(
        _MAGIC, _VERSION, part.role, flags, part.volume.bytes, part.lun.bytes, part.block_size, part.grain_size, len(name)
    )  # fmt: skip
    return body + name


def decode(body: bytes) -> Part | None:
    """Return the part that a page without its header says; None if wolun did not write it, or if the role is unknown."""
    if len(body) < _BODY.size:
        return None
    magic, version, role, flags, volume, lun, block_size, grain_size, length = _BODY.unpack_from(body)
    if magic != _MAGIC or version < _VERSION or role not in set(Role) or len(body) < _BODY.size + length:
        return None
    return Part(
        uuid.UUID(bytes=volume), body[_BODY.size : _BODY.size + length].decode(errors="replace"), Role(role), uuid.UUID(bytes=lun),
        block_size, grain_size, bool(flags & _WRITE_ONCE), bool(flags & _POWER_LOSS),
    )  # fmt: skip
