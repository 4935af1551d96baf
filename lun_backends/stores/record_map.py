# SPDX-License-Identifier: Apache-2.0
"""Format 3 of the chunk map: one record per chunk, so that a commit changes one page.

A record has 32 bytes for chunks up to 16 KiB, and 1/512 of the chunk size for larger ones: 128 bytes for 64 KiB.  So no
record crosses a page, and one of up to 512 bytes crosses no sector of the disk.

| bytes of a record              | content                                                                               |
| ------------------------------ | ------------------------------------------------------------------------------------- |
| from 0                         | `checksums`: a little-endian u32 per 4 KiB, CRC32C of these bytes; 0 = none           |
| then                           | zeroes                                                                                |
| 8, before the masks            | `slot`: a little-endian u64; 0 = none, 2^64-1 = all written blocks are zeroes         |
| at the end, 8 per 32 blocks    | `masks`: little-endian u64, a bit per block (bit n: block n) and, in the upper half,  |
|                                | their complement; 0 = no block                                                        |

The records begin at byte 8192, in order of the chunks.  `confirmed` (`chunk_map`) begins at the next page.  A chunk is
confirmed once it has any durable words, so the loss of a page of records, or of a sector, is noticed.

Halves of a mask that are not the complement of each other are rot: it is not known which of their blocks are written.  So
none of them is blank, and none can be read.  There is no checksum over the record: a power cut in the middle of a store
would condemn what was acknowledged long ago.  A mask that was not stored yet, together with all other words in any
version, is a record of the blocks that were written before.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import storage_io
from lun_backends.stores import chunk_map
from lun_backends.stores.chunk_map import WORDS, Entry
from lun_backends.stores.superblock import PAGE, Superblock, page_up

GRAIN = 4096
_HALF = 0xFFFFFFFF


def record_size(chunk_size: int) -> int:
    """Return the length of a record in bytes."""
    return max(32, chunk_size // 512)


class RecordMap(chunk_map.ChunkMap):
    """An open map of format 3."""

    grain = GRAIN
    zero_marks = True

    def __init__(
        self, path: Path, fd: int, io: storage_io.StorageIO, superblock: Superblock, damaged: int | None
    ) -> None:
        size = self._size = record_size(superblock.chunk_size)
        end = WORDS + chunk_map.chunks_of(superblock) * size
        confirmed = page_up(end)
        super().__init__(path, fd, io, superblock, damaged, (WORDS, confirmed), confirmed)
        self.blocks_per_grain = GRAIN // superblock.block_size
        self.chunks_per_page = PAGE // size
        self._end = end
        self._page_shift = self.chunks_per_page.bit_length() - 1
        self._masks = -(-self.blocks_per_chunk // 32)  # of a record
        self._sums = superblock.chunk_size // GRAIN
        self._mask_at = size - 8 * self._masks
        self._slot_at = self._mask_at - 8
        self._mask_words = struct.Struct(f"<{self._masks}Q")
        self._full_masks = self._mask_words.pack(
            *(word(self._low >> 32 * index & _HALF) for index in range(self._masks))
        )
        self._blank = bytes(size)
        self._quads = self._view[WORDS:confirmed].cast("Q")
        self._longs = self._view[WORDS:confirmed].cast("I")
        self._views += [self._quads, self._longs]
        self._stride = size // 8  # of `_quads`
        self._first_mask = self._mask_at // 8
        self._first_slot = self._slot_at // 8

    @staticmethod
    def length_of(superblock: Superblock) -> int:
        """Return the length of the file in bytes."""
        records = chunk_map.chunks_of(superblock) * record_size(superblock.chunk_size)
        return chunk_map.length_from(superblock, page_up(WORDS + records))

    # -- lookups

    def slot(self, chunk: int) -> int:
        if chunk >> self._page_shift in self.present:
            return self._quads[chunk * self._stride + self._first_slot]
        return 0

    def written(self, chunk: int) -> int:
        if chunk >> self._page_shift in self.present:
            bits, torn = self._look(chunk)
            slot = self._quads[chunk * self._stride + self._first_slot]
            if slot and bits | torn:
                return bits | torn
        else:
            torn = 0
        return self.full_mask(chunk) if self.confirmed(chunk) else torn

    def missing(self, chunk: int, start: int, count: int) -> int:
        low = start & 31
        wanted = ((1 << count) - 1) << low
        if chunk >> self._page_shift in self.present and wanted <= _HALF:
            word = self._quads[chunk * self._stride + self._first_mask + (start >> 5)]
            if word & wanted == wanted and (word ^ word >> 32) & _HALF == _HALF:
                return 0
        wanted = ((1 << count) - 1) << start
        if self.torn(chunk) & wanted:
            time.sleep(0.001)  # a store that is under way may look like rot
            if unclear := self.torn(chunk) & wanted:
                lba = chunk * self.blocks_per_chunk + (unclear & -unclear).bit_length() - 1
                raise block_device.MediumError(lba, False, f"{self.path}: the map has lost which blocks are written")
        return wanted & ~self.written(chunk)

    def bits(self, chunk: int) -> int:
        return self._look(chunk)[0]

    def torn(self, chunk: int) -> int:
        bits, torn = self._look(chunk) if chunk >> self._page_shift in self.present else (0, 0)
        return self.full_mask(chunk) if not bits | torn and self.confirmed(chunk) else torn

    def checksums(self, chunk: int, first: int, end: int) -> list[int]:
        at = chunk * self._size // 4
        return self._longs[at + first : at + end].tolist()

    def page_slots(self, page: int) -> list[int]:
        at = page * (PAGE // 8)
        return self._quads[at + self._first_slot : at + PAGE // 8 : self._stride].tolist()[
            : self.chunks - page * self.chunks_per_page
        ]

    def has_words(self, page: int) -> bool:
        at, first = page * PAGE, page * self.chunks_per_page
        confirmed = self.confirmed_range(first, min(first + self.chunks_per_page, self.chunks))
        return bool(confirmed or self._view[WORDS + at : WORDS + at + PAGE].tobytes().strip(b"\0"))

    def _look(self, chunk: int) -> tuple[int, int]:
        """Return two masks: the blocks whose bit is set, and those of masks with damage."""
        at = chunk * self._stride + self._first_mask
        bits = torn = shift = 0
        for word in self._quads[at : at + self._masks].tolist():
            if word:
                if (word ^ word >> 32) & _HALF == _HALF:
                    bits |= (word & _HALF) << shift
                else:
                    torn |= _HALF << shift
            shift += 32
        return bits, torn and torn & self.full_mask(chunk)

    # -- stores

    def reserve(self, chunk: int) -> None:
        reserved = self._reserved
        for offset in (self._confirmed_at + (chunk >> 3), WORDS + chunk * self._size):  # `present` promises both
            page = offset >> 12
            if page not in reserved:
                self._io.reserve(self._fd, page << 12, PAGE)
                reserved.add(page)
        self._confirmable.add(chunk >> 15)
        self.present.add(chunk >> self._page_shift)

    def is_stale(self, entry: Entry) -> bool:
        chunk, _, _, first, checksums = entry
        if self._record(chunk) == self._blank:
            return False
        if not self.slot(chunk) and self.bits(chunk):
            return True
        return any(self.checksums(chunk, first, first + len(checksums)))  # none of these grains is written as a whole

    def clean(self, chunk: int) -> None:
        record = bytearray(self._record(chunk))
        bits, _ = self._look(chunk)
        if not self.slot(chunk):
            bits = 0
            record[self._mask_at :] = bytes(self._size - self._mask_at)
        for grain in range(self._sums):
            whole = self.grain_mask(chunk, grain)
            if bits & whole != whole or not whole:
                record[grain * 4 : grain * 4 + 4] = bytes(4)
        self._store_records({chunk: record})

    def publish_many(self, entries: Sequence[Entry]) -> None:
        records: dict[int, bytearray] = {}
        for chunk, slot, mask, first, checksums in entries:
            record = records.get(chunk)
            if record is None:
                record = records[chunk] = bytearray(self._record(chunk))
            _put_checksums(record, first, checksums)
            record[self._slot_at : self._mask_at] = slot.to_bytes(8, "little")
            if mask == self._low:
                record[self._mask_at :] = self._full_masks
                continue
            words = list(self._mask_words.unpack_from(record, self._mask_at))
            for index in range(((mask & -mask).bit_length() - 1) >> 5, -(-mask.bit_length() // 32)):
                if more := mask >> 32 * index & _HALF:
                    words[index] = word(words[index] & _HALF | more)
            self._mask_words.pack_into(record, self._mask_at, *words)
        self._store_records(records)

    def retract(self, blocks: Iterable[tuple[int, int]]) -> None:
        records: dict[int, bytearray] = {}
        for chunk, mask in blocks:
            record = records[chunk] if chunk in records else bytearray(self._record(chunk))
            words = list(self._mask_words.unpack_from(record, self._mask_at))
            kept = [old & _HALF & ~(mask >> 32 * index) for index, old in enumerate(words)]
            if kept == [old & _HALF for old in words]:
                continue  # where they were not stored there may be no room to store anything
            records[chunk] = record
            after = [word(left) if left != old & _HALF else old for left, old in zip(kept, words, strict=True)]
            self._mask_words.pack_into(record, self._mask_at, *after)
            first, end = self.grains_of(mask)
            record[first * 4 : end * 4] = bytes((end - first) * 4)  # none of them is written as a whole any longer
        self._store_records(records)

    def record_checksums(self, chunk: int, first: int, checksums: Sequence[int]) -> None:
        record = bytearray(self._record(chunk))
        _put_checksums(record, first, checksums)
        self._store_records({chunk: record})

    def set_slot(self, chunk: int, slot: int) -> None:
        self._io.store(self._fd, slot.to_bytes(8, "little"), WORDS + chunk * self._size + self._slot_at)

    def can_be_confirmed(self, chunk: int) -> bool:
        return not self.confirmed(chunk)

    def _record(self, chunk: int) -> bytes:
        at = WORDS + chunk * self._size
        return self._map[at : at + self._size]

    def _store_records(self, records: dict[int, bytearray]) -> None:
        """Store records, neighbours with one call, which no page's end interrupts."""
        if len(records) == 1:
            for chunk, record in records.items():
                self._io.store(self._fd, bytes(record), WORDS + chunk * self._size)
            return
        run: list[bytearray] = []
        first = 0
        for chunk in sorted(records):
            if run and (chunk != first + len(run) or chunk & (self.chunks_per_page - 1) == 0):
                self._io.store(self._fd, b"".join(run), WORDS + first * self._size)
                run = []
            if not run:
                first = chunk
            run.append(records[chunk])
        if run:
            self._io.store(self._fd, b"".join(run), WORDS + first * self._size)

    def _gaps(self) -> Iterable[tuple[str, int, int, int]]:
        spare = range(self._sums * 4, self._slot_at)
        if spare:
            used = bytearray(self._size)
            used[spare.start : spare.stop] = b"\xff" * len(spare)
            must = int.from_bytes(bytes(used) * self.chunks_per_page, "little")
            for page in self.present:
                at = WORDS + page * PAGE
                must &= (1 << 8 * min(PAGE, self._end - at)) - 1
                if int.from_bytes(self._map[at : at + PAGE], "little") & must:
                    yield f"the checksums of the chunks from {page * self.chunks_per_page} on", at, 0, at + PAGE
        last = self.chunks - 1
        grains = -(-self.chunk_length(last) // GRAIN)
        at = WORDS + last * self._size
        yield "the last checksum", at + grains * 4, 0, at + self._sums * 4
        yield "the records", self._end, 0, self._confirmed_at


def _put_checksums(record: bytearray, first: int, checksums: Sequence[int]) -> None:
    """Put checksums into a record, those of grains from `first` on, except those that are 0."""
    if 0 not in checksums:
        struct.pack_into(f"<{len(checksums)}I", record, first * 4, *checksums)
        return
    for at, checksum in enumerate(checksums, first):
        if checksum:
            record[at * 4 : at * 4 + 4] = checksum.to_bytes(4, "little")


def word(bits: int) -> int:
    """Return the mask word of 32 bits; 0 if none is set."""
    return bits | (bits ^ _HALF) << 32 if bits else 0
