# SPDX-License-Identifier: Apache-2.0
"""The records of a volume's log: their bytes, one block each, and the errors of damaged ones.

The layout of a block, little-endian, without padding:

| bytes | field |
| --- | --- |
| 8 | magic `WOLUNLOG` |
| 4 | version, 1 |
| 4 | type |
| 8 | position: the number of this block in the log |
| 16 | UUID of the volume |
| 8 | epoch |
| 16 | UUID of the snapshot, zero for none |
| 16 | UUID of the write-once LUN that an EPOCH record takes, or that took the chunks of a DELETED one; zero for none |
| 8 | position of the record that a FENCED record answers, or on whose name and labels a NOTE record builds |
| 8 | time in nanoseconds since 1970, by the clock of the node: for people only |
| 4 | length of the text |
| | text, JSON in UTF-8: `node`, `name`, `labels`, `reason` |
| 4 | CRC32C of all before |
| | zeroes to the end of the block |
"""

from __future__ import annotations

import enum
import json
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import crc32c

_MAGIC = b"WOLUNLOG"
_VERSION = 1
_HEAD = struct.Struct("<8sIIQ16sQ16s16sQqI")
_CRC = struct.Struct("<I")
_NONE = uuid.UUID(int=0)


class Type(enum.IntEnum):
    """The type of a record."""

    EPOCH = 1  # a snapshot was taken; its write-once LUN is the one that copy-on-write fills
    FENCED = 2  # no command runs that is older than the record that this one answers
    DELETE = 3  # the snapshot is hidden, and its chunks may move to an older one
    DELETED = 4  # they have moved; no view reads the write-once LUN of the snapshot
    INVALID = 5  # the snapshot is lost
    EXPEL = 6  # the named node must not come back
    ROLLBACK = 7  # the node rolls the volume back to the snapshot; the others stay out
    ROLLED_BACK = 8
    NOTE = 9  # the snapshot has this name and these labels from now on


_TYPES = frozenset(Type)

HOLD = "_hold"
"""The label of a snapshot that must not be deleted; its value is the reason.  No label of an administrator has that key."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the log.  Fields that its type does not need are empty."""

    type: Type
    volume: uuid.UUID
    epoch: int = 0
    snapshot: uuid.UUID | None = None
    lun: uuid.UUID | None = None
    answers: int = 0  # FENCED, NOTE: the position of a record
    time: int = 0  # nanoseconds since 1970
    node: str = ""  # who wrote it; for EXPEL, who is expelled
    name: str = ""  # of the snapshot
    labels: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


class RecordDamaged(Exception):
    """A block of the log that holds no record of this volume.  A node that reads one stays out."""

    def __init__(self, position: int, problem: str) -> None:
        """Say the position in the log and the problem."""
        super().__init__(f"block {position} of the log {problem}")
        self.position = position


class NoRecord(RecordDamaged):
    """A block that does not begin with the magic."""


class RecordTorn(RecordDamaged):
    """A block with a wrong checksum."""


class RecordUnknown(RecordDamaged):
    """A record of a newer version of wolun."""


class RecordForeign(RecordDamaged):
    """A record of another volume, or of another block of the log."""


class RecordTooLong(ValueError):
    """A record whose text does not fit into a block."""


def encode(record: Record, position: int, block_size: int) -> bytes:
    """Return the block of `block_size` bytes for that position of the log.  Raise RecordTooLong."""
    text = json.dumps(
        {"node": record.node, "name": record.name, "labels": dict(record.labels), "reason": record.reason},
        ensure_ascii=False,
        separators=(",", ":"),
        sort_keys=True,
    ).encode()
    room = block_size - _HEAD.size - _CRC.size
    if len(text) > room:
        raise RecordTooLong(
            f"name, labels and reason take {len(text)} bytes in the log, and its blocks have room for {room}: use fewer or shorter labels"
        )
    body = _HEAD.pack(
        _MAGIC, _VERSION, record.type, position, record.volume.bytes, record.epoch, (record.snapshot or _NONE).bytes,
        (record.lun or _NONE).bytes, record.answers, record.time, len(text),
    ) + text  # fmt: skip
    return (body + _CRC.pack(crc32c.crc32c(body))).ljust(block_size, b"\0")


def decode(block: bytes, position: int, volume: uuid.UUID) -> Record:
    """Return the record in a block of the log of `volume`.  Raise a RecordDamaged that says what is wrong."""
    if block[: len(_MAGIC)] != _MAGIC:
        raise NoRecord(position, "holds no record")
    if len(block) < _HEAD.size + _CRC.size:
        raise RecordTorn(position, "is too short")
    _, version, kind, at, owner, epoch, snapshot, lun, answers, time, length = _HEAD.unpack_from(block)
    end = _HEAD.size + length
    if end + _CRC.size > len(block) or _CRC.unpack_from(block, end)[0] != crc32c.crc32c(block[:end]):
        raise RecordTorn(position, "has a wrong checksum")
    if version != _VERSION or kind not in _TYPES:
        raise RecordUnknown(
            position, f"has version {version} and type {kind}: a newer wolun wrote it, update this node"
        )
    if at != position or owner != volume.bytes:
        raise RecordForeign(position, f"holds record {at} of volume {uuid.UUID(bytes=owner)}")
    try:
        text = json.loads(block[_HEAD.size : end])
        return Record(
            Type(kind), volume, epoch, _identity(snapshot), _identity(lun), answers, time,
            str(text["node"]), str(text["name"]), {str(k): str(v) for k, v in text["labels"].items()}, str(text["reason"]),
        )  # fmt: skip
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise RecordUnknown(position, f"has a text that is not understood ({problem})") from problem


def _identity(raw: bytes) -> uuid.UUID | None:
    return None if raw == _NONE.bytes else uuid.UUID(bytes=raw)
