# SPDX-License-Identifier: Apache-2.0
"""The superblock of a chunk map: the map's owner, its geometry and its state.

Its two copies are at bytes 0 and 4096.  Both have the same generation, unless a crash came between their writes.
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

import crc32c

from lun_backends.files import storage_io
from lun_backends.stores.store_file import RESTORE, StoreDamaged, StoreNewer

PAGE = 4096
CHUNK_SIZES = tuple(1 << shift for shift in range(12, 21))
"""The chunk sizes of the format: 4 KiB to 1 MiB."""
REASON_MAX = 1024
"""The bytes of UTF-8 that are kept of the reason for a state."""

_MAGIC = b"WOLUNMAP"
ARRAYS, RECORDS, LOG = 2, 3, 4
"""The formats of a map: `array_map`, `record_map` and `log_map`."""
# magic, version, state, generation, snapshot, volume, virtual size, block size, chunk size, length of reason, reason
_BODY = struct.Struct(f"<8sIIQ16s16sQIII{REASON_MAX}s")
_CRC = struct.Struct("<I")
USED = _BODY.size + _CRC.size
"""The bytes of one copy; the rest of its page is zeroes."""
COPIES = (0, PAGE)


class State(enum.IntEnum):
    """The state of a write-once LUN, as the map records it.

    A new map is EMPTY, and later it can only become INVALID.  ACTIVE and COMPLETE are part of the format; nothing sets
    them.
    """

    EMPTY = 0  # created, and not invalidated
    ACTIVE = 1  # takes pre-images
    COMPLETE = 2  # a newer snapshot takes the pre-images now
    INVALID = 3  # invalidated; must no longer be read


@dataclass(frozen=True, slots=True)
class Superblock:
    """The identity, the geometry and the state of a map."""

    snapshot: uuid.UUID
    volume: uuid.UUID
    size: int  # bytes of the LUN
    block_size: int
    chunk_size: int
    state: State = State.EMPTY
    reason: str = ""
    generation: int = 1
    version: int = RECORDS

    def pack(self) -> bytes:
        """Return the `PAGE` bytes of one copy."""
        reason = self.reason.encode()[:REASON_MAX].decode(errors="ignore").encode()
        body = _BODY.pack(
            _MAGIC, self.version, self.state, self.generation, self.snapshot.bytes, self.volume.bytes, self.size,
            self.block_size, self.chunk_size, len(reason), reason,
        )  # fmt: skip
        return (body + _CRC.pack(crc32c.crc32c(body))).ljust(PAGE, b"\0")


def page_up(offset: int) -> int:
    """Return the first multiple of `PAGE` that is not below `offset`."""
    return -(-offset // PAGE) * PAGE


def geometry_problem(superblock: Superblock) -> str | None:
    """Return the reason why no map may have this geometry, None if one may."""
    if superblock.block_size not in (512, 4096):
        return f"block size is {superblock.block_size}, must be 512 or 4096"
    if superblock.chunk_size not in CHUNK_SIZES:
        return f"chunk size is {superblock.chunk_size}, must be a power of two from 4096 to 1048576"
    if superblock.size <= 0 or superblock.size % superblock.block_size:
        return (
            f"virtual size is {superblock.size}, must be a positive multiple of the block size {superblock.block_size}"
        )
    return None


def read_both(io: storage_io.StorageIO, fd: int, path: Path) -> tuple[Superblock, int | None]:
    """Return the newest good copy, and the number of the other copy if that is damaged or older.

    Raises StoreDamaged, StoreNewer, OSError.
    """
    good: list[tuple[int, Superblock]] = []
    problems: list[tuple[str, str, str]] = []
    for copy, offset in enumerate(COPIES):
        try:
            good.append((copy, read_copy(io, fd, path, offset)))
        except StoreDamaged as damage:
            problems.append((damage.field, damage.fault, damage.remedy))
    if not good:
        field, fault, remedy = problems[0]
        raise StoreDamaged(path, field, fault + " (in the second copy, too)", remedy)
    newest = max(good, key=lambda entry: entry[1].generation)
    for copy in range(2):
        if (copy, newest[1]) not in good:
            return newest[1], copy
    return newest[1], None


def read_copy(io: storage_io.StorageIO, fd: int, path: Path, offset: int) -> Superblock:
    """Read one copy and check it.  Raises StoreDamaged, StoreNewer, OSError."""
    page = bytearray(PAGE)
    if storage_io.read_all(io, fd, [memoryview(page)], offset, PAGE) != PAGE:
        raise StoreDamaged(path, "superblock", "the file ends within it", RESTORE)
    magic, version, state, generation, snapshot, volume, size, block_size, chunk_size, reason_length, reason = (
        _BODY.unpack_from(page)
    )
    if magic != _MAGIC:
        raise StoreDamaged(path, "magic", f"{magic!r} is not {_MAGIC!r}: not a chunk map", RESTORE)
    (crc,) = _CRC.unpack_from(page, _BODY.size)
    fits = crc == crc32c.crc32c(memoryview(page)[: _BODY.size])
    if version > LOG and fits:
        raise StoreNewer(path, version, LOG)
    if version not in (ARRAYS, RECORDS, LOG):
        upgrade = "use the version of wolun that wrote it"
        fault = f"{version} is not supported, only {ARRAYS} to {LOG} are"
        raise StoreDamaged(path, "format version", fault, upgrade)
    if not fits:
        raise StoreDamaged(path, "superblock CRC", f"{crc:#010x} does not fit the content", RESTORE)
    if state not in list(State):
        raise StoreDamaged(path, "state", f"{state} is unknown", RESTORE)
    superblock = Superblock(
        uuid.UUID(bytes=snapshot), uuid.UUID(bytes=volume), size, block_size, chunk_size,
        State(state), reason[:reason_length].decode(errors="replace"), generation, version,
    )  # fmt: skip
    if problem := geometry_problem(superblock):
        raise StoreDamaged(path, "geometry", problem, RESTORE)
    return superblock
