# SPDX-License-Identifier: Apache-2.0
"""The header of a sparse store, and the file systems on which such a store is right.

The header is a file of two pages, one copy in each: a line of JSON, its CRC32C in eight hexadecimal digits on the next
line, then zeroes.  It says which file has the data, by inode and birth time, because a copy of that file would have lost
the difference between zeroes and blank blocks.  A change is written to the copy that is older or damaged, in place, so
it needs no space.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import crc32c

from lun_backends.files import os_error, storage_io
from lun_backends.stores import contract

PAGE = 4096
REASON_MAX = 1024
"""The characters that are kept of the reason for a state."""
_MAGIC = "wolun sparse store"
_VERSION = 1
_REMEDY = "restore all files of the state directory from a backup of the whole disk, or delete the snapshot"
_ELSEWHERE = "use `store: map` here, or another state directory"

EXT4, XFS, BTRFS = 0xEF53, 0x58465342, 0x9123683E  # linux/magic.h; ext2 and ext3 have the number of ext4
PROC_EXT4 = Path("/proc/fs/ext4")
SYSFS = Path("/sys/dev/block")
_BTIME = 0x800  # STATX_BTIME
_AT_EMPTY_PATH = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Header:
    """The content of a header; `inode` and `born` (nanoseconds since 1970) are those of the data file."""

    snapshot: str
    volume: str
    size: int
    block_size: int
    chunk_size: int
    inode: int
    born: int
    reason: str | None = None
    generation: int = 1

    @classmethod
    def of(cls, geometry: contract.Geometry, fd: int) -> Header:
        """Return the header for the data file `fd`.  Raises OSError."""
        return cls(
            str(geometry.snapshot), str(geometry.volume), geometry.size, geometry.block_size, geometry.chunk_size,
            os.fstat(fd).st_ino, born(fd),
        )  # fmt: skip

    def geometry(self) -> contract.Geometry:
        """Return owners and size.  Raises ValueError."""
        return contract.Geometry(
            uuid.UUID(self.snapshot), uuid.UUID(self.volume), self.size, self.block_size, self.chunk_size
        )

    def pack(self) -> bytes:
        """Return one copy."""
        reason = None if self.reason is None else self.reason[:REASON_MAX]
        fields = dataclasses.asdict(dataclasses.replace(self, reason=reason))
        line = json.dumps({"magic": _MAGIC, "version": _VERSION, **fields}).encode()
        if len(line) > PAGE - 9:  # a reason of characters that JSON escapes
            return dataclasses.replace(self, reason=ascii(reason)[: REASON_MAX // 2]).pack()
        return b"%s\n%08x" % (line, crc32c.crc32c(line))


def unpack(path: Path, page: bytes) -> Header:
    """Return the header in one copy.  Raises StoreDamaged, StoreNewer."""
    line, _, rest = page.partition(b"\n")
    if rest[:8] != b"%08x" % crc32c.crc32c(line):
        raise contract.StoreDamaged(path, "header", "its CRC does not fit", _REMEDY)
    try:
        fields = json.loads(line)
        magic, version = fields.pop("magic"), fields.pop("version")
        if magic == _MAGIC and version > _VERSION:
            raise contract.StoreNewer(path, version, _VERSION)
        header = Header(**fields)
        header.geometry()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise contract.StoreDamaged(path, "header", f"it has another content: {error}", _REMEDY) from error
    return header


def read(path: Path, fd: int, io: storage_io.StorageIO) -> tuple[Header, int, list[str]]:
    """Return the newest good copy, the number of the other copy, and the faults, a phrase each.

    Raises StoreDamaged, StoreNewer, OSError.
    """
    pages = memoryview(bytearray(2 * PAGE))
    got = storage_io.read_all(io, fd, [pages], 0, len(pages))
    good: list[tuple[int, int, Header]] = []
    faults: list[contract.StoreDamaged] = []
    for copy in range(2):
        try:
            header = unpack(path, bytes(pages[copy * PAGE : min(got, (copy + 1) * PAGE)]))
            good.append((header.generation, copy, header))
        except contract.StoreDamaged as damage:
            faults.append(damage)
    if not good:
        raise faults[0]
    _, copy, newest = max(good, key=lambda entry: entry[0])
    return newest, 1 - copy, [f"a copy of {path.name}: {damage.field}: {damage.fault}" for damage in faults]


def write(fd: int, header: Header, copy: int, io: storage_io.StorageIO) -> None:
    """Write a copy, durably.  Raises OSError."""
    page = header.pack().ljust(PAGE, b"\0")
    storage_io.write_all(io, fd, [page], copy * PAGE, PAGE)
    io.fdatasync(fd)


def check_place(path: Path, fd: int, io: storage_io.StorageIO) -> None:
    """Raise StoreUnfit unless the file system of the empty data file `fd` at `path` keeps a right map of it.

    It must order the data of a block before the block's place in the file, and must say at 4 KiB what is written.  Raise
    StoreUnavailable if it cannot be asked.
    """
    try:
        kind = _magic(fd)
        if kind not in (EXT4, XFS, BTRFS) or (kind == EXT4 and _data_mode(fd) not in ("ordered", "journal")):
            needs = "a sparse store needs ext4 with a journal (data=ordered or data=journal), XFS or btrfs"
            raise contract.StoreUnfit(str(path.parent), needs, _ELSEWHERE)
        grain = contract.GRAIN
        io.ftruncate(fd, 4 * grain)
        storage_io.write_all(io, fd, [bytes(grain)], grain, grain)
        seen = os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, grain, os.SEEK_HOLE)
        io.ftruncate(fd, 0)
    except OSError as error:
        raise contract.StoreUnavailable(path, os_error.reason(error)) from error
    if seen != (grain, 2 * grain):
        reason = "the file system has larger blocks than 4 KiB, so no sparse store can be there"
        raise contract.StoreUnfit(str(path.parent), reason, _ELSEWHERE)


def born(fd: int) -> int:
    """Return the birth time of an open file in nanoseconds since 1970.  Raises OSError; ENOTSUP if it has none."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _BTIME, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if not int.from_bytes(buffer.raw[0:4], "little") & _BTIME:
        raise OSError(95, "the file system keeps no birth times")
    return int.from_bytes(buffer.raw[80:88], "little") * 10**9 + int.from_bytes(buffer.raw[88:92], "little")


def _magic(fd: int) -> int:
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int.from_bytes(buffer.raw[0:8], "little")


def _data_mode(fd: int) -> str:
    """Return the data mode of ext4; empty if it has no journal, or if the kernel does not say."""
    device = os.fstat(fd).st_dev
    try:
        name = (SYSFS / f"{os.major(device)}:{os.minor(device)}").resolve(strict=True).name
        options = (PROC_EXT4 / name / "options").read_text(encoding="ascii").split()
    except OSError:
        return ""
    return next((option.partition("=")[2] for option in options if option.startswith("data=")), "")
