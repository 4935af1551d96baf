# SPDX-License-Identifier: Apache-2.0
"""The index of a log: where the log has each grain, as records of the chunk map, written long after the log itself.

| bytes                     | content                                                                                      |
| ------------------------- | -------------------------------------------------------------------------------------------- |
| 0 and 4096                | two copies of the superblock of format 4; its chunk size is that of the volume               |
| from 8192                 | the records and confirmations of format 3 (`record_map`) for chunks of 4 KiB: one grain each |
| the last two pages        | two checkpoints, which take turns: `Checkpoint`, its CRC32C, zeroes                          |

The slot of a record is the page of the log that has the grain.  So a record is 32 bytes: checksum, zeroes, slot, mask.

Grains that the log has, and the index not yet, are in `recent`, in memory.  `write_back` writes it into the index:

1. The log is durable up to batch S, which `write_back` is called with.
2. The records of all batches up to S are stored, and the index is synced.
3. A checkpoint is written: "all up to S is here".  Nothing waits for it to be durable: the next sync of the index makes it
   so, and until then the checkpoint before counts.  They take turns, so the one before is never overwritten.
4. The grains are confirmed (`chunk_map`), and dropped from `recent`.

After a crash, the batches behind S are read from the log again.  They replace whatever the interrupted step 2 left, so a
record may be torn in any way.  And no record says anything that the log does not have for good, because of step 1.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import crc32c

from lun_backends.files import storage_io
from lun_backends.stores import record_map, store_file
from lun_backends.stores.record_map import GRAIN
from lun_backends.stores.superblock import LOG, PAGE, Superblock

Recent = tuple[int, int, int]
"""A grain in the log: its page (or ZEROES), the mask of its written blocks, its checksum or 0."""

_CHECKPOINT = struct.Struct("<8s16sQQIQQQ")
_CRC = struct.Struct("<I")
_MAGIC = b"WOLUNCHP"
_TOGETHER = 4096  # records stored between two looks at whether the map was cut short


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All batches up to `sequence` are in the index.

    The log goes on at page `place`, after commit number `commit`, and `chain` is the CRC of the last header.  `pages` of the
    log have data, and `blocks` are written.  `number` counts the checkpoints.
    """

    number: int = 0
    sequence: int = 0
    commit: int = 0
    place: int = 1
    chain: int = 0
    pages: int = 0
    blocks: int = 0

    def pack(self, owner: bytes) -> bytes:
        """Return the page."""
        body = _CHECKPOINT.pack(
            _MAGIC, owner, self.number, self.sequence, self.chain, self.commit, self.place, self.pages
        ) + struct.pack("<Q", self.blocks)
        return (body + _CRC.pack(crc32c.crc32c(body))).ljust(PAGE, b"\0")


_USED = _CHECKPOINT.size + 8


def _unpack(page: bytes, owner: bytes) -> Checkpoint | None:
    body = page[:_USED]
    if len(page) != PAGE or _CRC.unpack_from(page, _USED)[0] != crc32c.crc32c(body) or any(page[_USED + 4 :]):
        return None
    magic, found, number, sequence, chain, commit, place, pages = _CHECKPOINT.unpack_from(body)
    if magic != _MAGIC or found != owner:
        return None
    (blocks,) = struct.unpack_from("<Q", body, _CHECKPOINT.size)
    return Checkpoint(number, sequence, commit, place, chain, pages, blocks)


class LogMap(record_map.RecordMap):
    """An open index.  `chunk` is the number of a grain everywhere."""

    def __init__(
        self, path: Path, fd: int, io: storage_io.StorageIO, superblock: Superblock, damaged: int | None
    ) -> None:
        self.chunk_size = superblock.chunk_size
        """The bytes of a chunk of the volume."""
        super().__init__(path, fd, io, replace(superblock, chunk_size=GRAIN), damaged)
        self.recent: dict[int, Recent] = {}
        """The grains that the log has and the index may not have; the owner adds to it with `add`."""
        self._owner = superblock.snapshot.bytes
        self._storing = threading.Lock()
        self._checkpoints_at = self.length
        self.checkpoint = Checkpoint()
        """The newest one."""
        self._next_copy = 0

    @staticmethod
    def length_of(superblock: Superblock) -> int:
        return record_map.RecordMap.length_of(replace(superblock, chunk_size=GRAIN)) + 2 * PAGE

    def on_disk(self, superblock: Superblock) -> Superblock:
        return replace(superblock, chunk_size=self.chunk_size, version=LOG)

    # -- checkpoints

    def start(self) -> None:
        """Write the first checkpoint of a new index, durably.  Raises OSError."""
        for copy in range(2):
            self._write(Checkpoint(copy), copy)
        self.checkpoint = Checkpoint(1)
        self.sync()

    def load(self) -> None:
        """Find the newest checkpoint.  Raises StoreDamaged, OSError."""
        good = [(found.number, copy, found) for copy in range(2) if (found := self._read(copy)) is not None]
        if not good:
            raise store_file.StoreDamaged(self.path, "checkpoints", "both are damaged", store_file.RESTORE)
        _, copy, self.checkpoint = max(good)
        self._next_copy = 1 - copy

    def check_checkpoints(self) -> list[str]:
        """Read the checkpoints again and return their faults, a phrase each.  Raises OSError."""
        return [f"checkpoint {copy + 1} of the index is damaged" for copy in range(2) if self._read(copy) is None]

    def _read(self, copy: int) -> Checkpoint | None:
        page = memoryview(bytearray(PAGE))
        got = storage_io.read_all(self._io, self._fd, [page], self._checkpoints_at + copy * PAGE, PAGE)
        return _unpack(bytes(page[:got]), self._owner)

    def _write(self, checkpoint: Checkpoint, copy: int) -> None:
        page = checkpoint.pack(self._owner)
        storage_io.write_all(self._io, self._fd, [page], self._checkpoints_at + copy * PAGE, PAGE)

    def write_back(self, upto: Checkpoint, recent: Sequence[tuple[int, Recent]]) -> None:
        """Write `recent`, all there is of the batches up to `upto`, into the index.  The log has them durably.

        Raises OSError: then nothing is lost, because the log has all of it.
        """
        with self._storing:
            self.check_length()
            for at in range(0, len(recent), _TOGETHER):
                part = sorted(recent[at : at + _TOGETHER])
                self._store_records({grain: self._bytes(entry) for grain, entry in part})
            self.sync()
            self._write(upto, self._next_copy)
            self.checkpoint, self._next_copy = upto, 1 - self._next_copy
            self._confirmable.update(grain >> 15 for grain, _ in recent)
            with contextlib.suppress(OSError):  # without room for it, only the check that it serves is lost
                self.confirm(grain for grain, _ in recent if not self.confirmed(grain))
        of = self.recent
        for grain, entry in recent:
            if of.get(grain) is entry:
                del of[grain]

    def _bytes(self, entry: Recent) -> bytearray:
        slot, mask, checksum = entry
        return bytearray(
            checksum.to_bytes(16, "little") + slot.to_bytes(8, "little") + record_map.word(mask).to_bytes(8, "little")
        )

    def add(self, grains: Sequence[int], entries: Iterable[Recent]) -> None:
        """Show grains that are durable in the log to readers."""
        low, high = grains[0], grains[-1]
        self.present.add_range(low >> self._page_shift, (high >> self._page_shift) + 1)
        if high - low >= len(grains):
            self.present.update(grain >> self._page_shift for grain in grains)
        self.recent.update(zip(grains, entries, strict=True))

    # -- lookups

    def slot(self, chunk: int) -> int:
        recent = self.recent.get(chunk)
        return super().slot(chunk) if recent is None else recent[0]

    def slot_of(self, chunk: int) -> int:
        recent = self.recent.get(chunk)
        return super().slot_of(chunk) if recent is None else recent[0]

    def written(self, chunk: int) -> int:
        recent = self.recent.get(chunk)
        return super().written(chunk) if recent is None else recent[1]

    def missing(self, chunk: int, start: int, count: int) -> int:
        recent = self.recent.get(chunk)
        if recent is None:
            return super().missing(chunk, start, count)
        return ((1 << count) - 1) << start & ~recent[1]

    def bits(self, chunk: int) -> int:
        recent = self.recent.get(chunk)
        return super().bits(chunk) if recent is None else recent[1]

    def torn(self, chunk: int) -> int:
        return 0 if chunk in self.recent else super().torn(chunk)

    def checksums(self, chunk: int, first: int, end: int) -> list[int]:
        recent = self.recent.get(chunk)
        return super().checksums(chunk, first, end) if recent is None else [recent[2]][first:end]

    def page_slots(self, page: int) -> list[int]:
        base = page * self.chunks_per_page
        recent = self.recent
        # Recent ones first: what is dropped from them meanwhile is in the index already.
        found = [recent.get(chunk) for chunk in range(base, min(base + self.chunks_per_page, self.chunks))]
        slots = super().page_slots(page)
        return [slot if entry is None else entry[0] for slot, entry in zip(slots, found, strict=True)]

    def has_words(self, page: int) -> bool:
        base = page * self.chunks_per_page
        return any(chunk in self.recent for chunk in range(base, base + self.chunks_per_page)) or super().has_words(
            page
        )

    def nothing_in(self, first: int, end: int) -> bool:
        """Return whether the grains [first, end) are blank for certain, at a low price."""
        recent, present = self.recent, self.present
        for page in range(first >> self._page_shift, (end - 1 >> self._page_shift) + 1):
            if page in present:
                low = max(first, page << self._page_shift)
                high = min(end, page + 1 << self._page_shift)
                if not recent.keys().isdisjoint(range(low, high)):  # first: what is dropped from it is in the index
                    return False
                at = low * self._stride + self._first_mask
                words = self._quads[at : at + (high - low - 1) * self._stride + 1 : self._stride]
                if any(words.tolist()) or self.confirmed_range(low, high) & (1 << high - low) - 1:
                    return False
        return True

    def disk_bytes(self) -> int:
        return os.fstat(self._fd).st_blocks * 512
