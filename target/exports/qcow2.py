# SPDX-License-Identifier: Apache-2.0
"""A writer of qcow2 images (version 3, QEMU's docs/interop/qcow2.txt), from front to back in one pass.

| clusters       | content                                                                                    |
| -------------- | ------------------------------------------------------------------------------------------ |
| 0              | the header, its extensions, and the name of the backing file; written last, so that an      |
|                | unfinished file is not an image                                                            |
| then           | the L1 table: the places of the L2 tables                                                  |
| then, mixed    | data in order of address, and each L2 table after its data.  Compressed data lies side by  |
|                | side, so a cluster of the file has the data of several clusters                            |
| then           | refcount blocks; a count is how many clusters have data there                              |
| then           | the refcount table                                                                         |

A cluster that is not written shows the backing file, or zeroes if there is none.  A cluster of zeroes takes no data:
with a backing file it is marked to read as zeroes.  No maintained library writes qcow2, and `qemu-img` may not be
installed.

A note (the identity of the image) is a header extension of a type of our own.  QEMU keeps extensions that it does not
know, whatever it does to the image.  The autoclear bit `_UNCHANGED` says that the note still holds: each program that
opens the image for writing clears the autoclear bits that it does not know.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"QFI\xfb"
CLUSTER_SIZES = (4096, 65536)
"""The smallest and the largest size that `cluster_size` chooses."""

_VERSION = 3
# magic, version, name of the backing file: offset and length, cluster bits, size, encryption, L1 entries, L1 offset,
# refcount table: offset and clusters, snapshots: number and offset, incompatible, compatible and autoclear features,
# refcount order, header length
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct(">II")  # type, length
_BACKING_FORMAT = 0xE2792ACA
_NOTE = 0x574F4C55  # "WOLU"
_NOTE_MAX = 2048
_UNCHANGED = 1 << 57
NAME_MAX = 1023
"""The bytes that the name of a backing file may have."""
_COPIED = 1 << 63
_COMPRESSED = 1 << 62
_SECTOR = 512
_ZERO = 1
_REFCOUNT_ORDER = 4  # counts of 16 bits
_L1_MAX = 128 << 10  # bytes; QEMU accepts 32 MiB


@dataclass(frozen=True, slots=True)
class Backing:
    """The image below: its recorded name (relative to the image above), and its format, `raw` or `qcow2`."""

    name: str
    format: str


def cluster_size(size: int, chunk_size: int) -> int:
    """Return a good cluster size for an image of `size` bytes.

    Changes come in chunks, so this is the chunk size if possible, but large enough to keep the L1 table small.
    """
    smallest, largest = CLUSTER_SIZES
    chosen = max(smallest, min(chunk_size, largest))
    while chosen < largest and -(-size // (chosen * chosen // 8)) * 8 > _L1_MAX:
        chosen *= 2
    return chosen


def virtual_size(path: Path) -> tuple[int, str]:
    """Return (bytes that it shows, `raw` or `qcow2`) for the image at `path`; a file that is not qcow2 is raw.  Raises OSError."""
    with path.open("rb") as file:
        start = file.read(32)
        if start[:4] == MAGIC and len(start) == 32:
            return int.from_bytes(start[24:32], "big"), "qcow2"
        return file.seek(0, os.SEEK_END), "raw"


def note(path: Path) -> tuple[bytes | None, bool]:
    """Return the note of the image at `path`, and whether no program has opened the image for writing since.

    The note is None if there is none.  Raises OSError.
    """
    with path.open("rb") as file:
        start = file.read(CLUSTER_SIZES[1])
    if len(start) < _HEADER.size or start[:4] != MAGIC:
        return None, False
    fields = _HEADER.unpack_from(start)
    autoclear, place = fields[15], fields[17]
    while place + _EXTENSION.size <= len(start):
        kind, length = _EXTENSION.unpack_from(start, place)
        place += _EXTENSION.size
        if kind == 0:
            break
        if kind == _NOTE:
            return start[place : place + length], bool(autoclear & _UNCHANGED)
        place += -(-length // 8) * 8
    return None, False


def chain(path: Path) -> Iterator[Path]:
    """Yield the image at `path` and the images below it, as far as they can be read on this machine."""
    seen = set()
    below: Path | None = path
    while below is not None and below.resolve() not in seen:
        seen.add(below.resolve())
        yield below
        below = _below(below)


def _below(path: Path) -> Path | None:
    """Return the image below the one at `path`; None if there is none."""
    try:
        with path.open("rb") as file:
            start = file.read(20)
            if start[:4] != MAGIC or len(start) < 20:
                return None
            offset, length = struct.unpack(">QI", start[8:20])
            if not offset or not 0 < length <= NAME_MAX:
                return None
            file.seek(offset)
            name = os.fsdecode(file.read(length))
    except OSError:
        return None
    return None if ":" in name.split("/")[0] else path.parent / name


class Writer:
    """A writer that fills the empty file `fd`.

    Call `write` and `zero` in order of address, and `finish` last.  All raise OSError.
    """

    def __init__(
        self,
        fd: int,
        size: int,
        cluster: int,
        backing: Backing | None = None,
        note: Callable[[], bytes] = bytes,
        *,
        compress: bool = False,
    ) -> None:
        """Begin an image that shows `size` bytes, a multiple of 512.

        `finish` asks for the `note`, at most 2048 bytes.  With `compress`, data is compressed with zlib, which each QEMU
        reads.  Raises ValueError if the backing file's name is too long.
        """
        if backing is not None and len(os.fsencode(backing.name)) > NAME_MAX:
            raise ValueError(f"the name of the backing file is longer than {NAME_MAX} bytes")
        self._fd = fd
        self._size = size
        self._cluster = cluster
        self._backing = backing
        self._note = note
        self._per_table = cluster // 8
        self._l1 = [0] * -(-size // (cluster * self._per_table))
        self._next = 1 + self._clusters(len(self._l1) * 8)  # the cluster that is written next
        self._table = 0  # the L2 table being filled
        self._entries: dict[int, int] = {}
        self._compress = compress
        self._packed = 0  # the byte behind the last compressed data
        self._shared: dict[int, int] = {}  # the counts of clusters of compressed data

    def write(self, offset: int, data: memoryview) -> None:
        """Write the data that the image shows from `offset` on; clusters of zeroes take no room.

        The data begins at the start of a cluster, and ends at the end of a cluster or of the image.
        """
        for start in range(0, len(data), self._cluster):
            piece = bytes(data[start : start + self._cluster])
            if piece.count(0) == len(piece):
                self.zero(offset + start, len(piece))
                continue
            place = self._place((offset + start) // self._cluster)
            packed = _deflated(piece) if self._compress else piece
            if len(packed) < len(piece) == self._cluster:
                self._entries[place] = self._pack(packed)
                continue
            self._entries[place] = self._next * self._cluster | _COPIED
            self._append(piece)

    def _pack(self, packed: bytes) -> int:
        """Write compressed data behind the last one, and return its entry.  It goes on in the next cluster if that is free."""
        left = -self._packed % self._cluster
        end = self._packed // self._cluster + 1 if left else 0  # the cluster behind the one that has room
        if not left or (len(packed) > left and end != self._next):
            self._packed, left = self._next * self._cluster, 0
        if len(packed) > left:
            self._next = -(-(self._packed + len(packed)) // self._cluster)
        offset, self._packed = self._packed, self._packed + len(packed)
        self._write_at(offset, packed)
        sectors = (offset % _SECTOR + len(packed) - 1) // _SECTOR
        last = (offset // _SECTOR + sectors) * _SECTOR // self._cluster
        for cluster in range(offset // self._cluster, last + 1):
            self._shared[cluster] = self._shared.get(cluster, 0) + 1
        return _COMPRESSED | sectors << 62 - (self._bits - 8) | offset

    def zero(self, offset: int, length: int) -> None:
        """Show zeroes in that range, which begins and ends as in `write`."""
        if self._backing is not None:
            for index in range(offset // self._cluster, -(-(offset + length) // self._cluster)):
                place = self._place(index)
                self._entries[place] = _ZERO

    def finish(self) -> None:
        """Write the tables, sync, write the header, and sync again."""
        self._close_table()
        used = self._next
        # Each refcount block counts `per_block` clusters, and the clusters of blocks and table are counted, too.
        per_block = self._cluster * 8 >> _REFCOUNT_ORDER
        blocks = tables = 0
        while blocks * per_block < used + blocks + tables:
            blocks = -(-(used + blocks + tables) // per_block)
            tables = self._clusters(blocks * 8)
        total = used + blocks + tables
        first = used
        for block in range(blocks):
            counted = max(0, min(per_block, total - block * per_block))
            begin = block * per_block
            counts = (self._shared.get(cluster, 1) for cluster in range(begin, begin + counted))
            self._append(
                b"".join(count.to_bytes(2, "big") for count in counts) if self._shared else b"\x00\x01" * counted
            )
        self._write(self._next, b"".join((first + block << self._bits).to_bytes(8, "big") for block in range(blocks)))
        os.ftruncate(self._fd, total * self._cluster)
        self._write(1, b"".join(entry.to_bytes(8, "big") for entry in self._l1))
        os.fsync(self._fd)
        self._write(0, self._header(first + blocks, tables))
        os.fsync(self._fd)

    def _header(self, table: int, clusters: int) -> bytes:
        extensions, name = b"", b""
        if self._backing is not None:
            name, kind = os.fsencode(self._backing.name), self._backing.format.encode()
            extensions = _EXTENSION.pack(_BACKING_FORMAT, len(kind)) + kind.ljust(8, b"\0")
        note = self._note()
        assert len(note) <= _NOTE_MAX
        if note:
            extensions += _EXTENSION.pack(_NOTE, len(note)) + note.ljust(-(-len(note) // 8) * 8, b"\0")
        extensions += _EXTENSION.pack(0, 0)
        header = _HEADER.pack(
            MAGIC, _VERSION, _HEADER.size + len(extensions) if name else 0, len(name), self._bits, self._size, 0,
            len(self._l1), self._cluster if self._l1 else 0, table * self._cluster, clusters, 0, 0, 0, 0,
            _UNCHANGED if note else 0, _REFCOUNT_ORDER, _HEADER.size,
        )  # fmt: skip
        return header + extensions + name

    @property
    def _bits(self) -> int:
        return self._cluster.bit_length() - 1

    def _clusters(self, length: int) -> int:
        return -(-length // self._cluster)

    def _place(self, index: int) -> int:
        """Turn to the L2 table of a cluster, and return the place of its entry there."""
        table, place = divmod(index, self._per_table)
        if table != self._table:
            self._close_table()
            self._table = table
        return place

    def _close_table(self) -> None:
        if self._entries:
            self._l1[self._table] = self._next * self._cluster | _COPIED
            self._append(b"".join(self._entries.get(place, 0).to_bytes(8, "big") for place in range(self._per_table)))
            self._entries = {}

    def _append(self, data: bytes) -> None:
        self._write(self._next, data)
        self._next += 1

    def _write(self, cluster: int, data: bytes) -> None:
        self._write_at(cluster * self._cluster, data)

    def _write_at(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            done = os.pwrite(self._fd, view, offset)
            offset += done
            view = view[done:]


def _deflated(piece: bytes) -> bytes:
    """Return the cluster as QEMU's `zlib` compression has it: raw deflate with a window of 4 KiB."""
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -12)
    return packer.compress(piece) + packer.flush()
