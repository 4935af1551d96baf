# SPDX-License-Identifier: Apache-2.0
"""Format 2 of the chunk map: arrays indexed by chunk or block.  Stores made by older versions have it and keep it.

| bytes                      | content                                                                                   |
| -------------------------- | ----------------------------------------------------------------------------------------- |
| 8192                       | `slots`: a little-endian u64 per chunk, the chunk's place in the chunk file; 0 = none     |
| then, page-aligned         | `written`: one bit per block, bit `n & 7` of byte `n >> 3`                                |
| then, page-aligned         | `checksums`: a little-endian u32 per chunk, CRC32C of a fully written chunk; 0 = none     |
| then, page-aligned         | `confirmed`, see `chunk_map`; only chunks that are fully written are confirmed            |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lun_backends.files import storage_io
from lun_backends.stores import chunk_map
from lun_backends.stores.chunk_map import Entry
from lun_backends.stores.superblock import PAGE, Superblock, page_up


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of the arrays, in bytes."""

    slots: int
    written: int
    checksums: int
    confirmed: int
    length: int

    @classmethod
    def of(cls, superblock: Superblock) -> Layout:
        """Return the layout that follows from the geometry."""
        chunks = chunk_map.chunks_of(superblock)
        blocks = chunks * (superblock.chunk_size // superblock.block_size)
        written = page_up(chunk_map.WORDS + chunks * 8)
        checksums = page_up(written + -(-blocks // 8))
        confirmed = page_up(checksums + chunks * 4)
        return cls(chunk_map.WORDS, written, checksums, confirmed, chunk_map.length_from(superblock, confirmed))


class ArrayMap(chunk_map.ChunkMap):
    """An open map of format 2."""

    chunks_per_page = PAGE // 8
    zero_marks = False

    def __init__(
        self, path: Path, fd: int, io: storage_io.StorageIO, superblock: Superblock, damaged: int | None
    ) -> None:
        self.layout = layout = Layout.of(superblock)
        super().__init__(path, fd, io, superblock, damaged, (layout.slots, layout.written), layout.confirmed)
        self.grain = superblock.chunk_size
        self.blocks_per_grain = self.blocks_per_chunk
        view = self._view
        self._slots = view[layout.slots : layout.slots + self.chunks * 8].cast("Q")
        self._written = view[layout.written : layout.checksums]
        self._checksums = view[layout.checksums : layout.checksums + self.chunks * 4].cast("I")
        self._views += [self._slots, self._written, self._checksums]
        # Chunks of less than eight blocks (4 KiB to 16 KiB of 4096-byte blocks) share a byte of bits.
        self._shift = self.blocks_per_chunk.bit_length() - 1
        self._width = self.blocks_per_chunk >> 3

    @staticmethod
    def length_of(superblock: Superblock) -> int:
        """Return the length of the file in bytes."""
        return Layout.of(superblock).length

    # -- lookups

    def slot(self, chunk: int) -> int:
        return self._slots[chunk] if chunk >> 9 in self.present else 0

    def written(self, chunk: int) -> int:
        bits = self.bits(chunk) if chunk >> 9 in self.present and self._slots[chunk] else 0
        if bits != self._low and self.confirmed(chunk):
            return self.full_mask(chunk)
        return bits

    def missing(self, chunk: int, start: int, count: int) -> int:
        return ((1 << count) - 1) << start & ~self.written(chunk)

    def bits(self, chunk: int) -> int:
        if width := self._width:
            start = chunk * width
            return int.from_bytes(self._written[start : start + width], "little")
        bit = chunk << self._shift
        return self._written[bit >> 3] >> (bit & 7) & self._low

    def torn(self, chunk: int) -> int:
        lost = self.confirmed(chunk) and self.bits(chunk) != self.full_mask(chunk)
        return self.full_mask(chunk) if lost else 0

    def checksums(self, chunk: int, first: int, end: int) -> list[int]:
        return [self._checksums[chunk]] if first < end else []

    def page_slots(self, page: int) -> list[int]:
        return self._slots[page * self.chunks_per_page : (page + 1) * self.chunks_per_page].tolist()

    def has_words(self, page: int) -> bool:
        first = page * self.chunks_per_page
        end = min(first + self.chunks_per_page, self.chunks)
        words = (
            self._slots[first:end].cast("B"),
            self._written[(first << self._shift) >> 3 : -(-(end << self._shift) // 8)],
            self._checksums[first:end].cast("B"),
            self._confirmed[first >> 3 : -(-end // 8)],
        )
        return any(array.tobytes().strip(b"\0") for array in words)

    # -- stores

    def reserve(self, chunk: int) -> None:
        layout = self.layout
        reserved = self._reserved
        for offset in (
            layout.written + ((chunk << self._shift) >> 3),
            layout.checksums + chunk * 4,
            layout.confirmed + (chunk >> 3),
            layout.slots + chunk * 8,  # last: `present` promises that all four are there
        ):
            page = offset >> 12
            if page not in reserved:
                self._io.reserve(self._fd, page << 12, PAGE)
                reserved.add(page)
        self._confirmable.add(chunk >> 15)
        self.present.add(chunk >> 9)

    def is_stale(self, entry: Entry) -> bool:
        chunk = entry[0]
        if self._slots[chunk]:
            return self._checksums[chunk] != 0 and self.bits(chunk) != self.full_mask(chunk)
        return self._checksums[chunk] != 0 or self.bits(chunk) != 0

    def clean(self, chunk: int) -> None:
        self._store_checksum(chunk, 0)
        if not self._slots[chunk]:
            self._store_bits({chunk: 0})

    def publish_many(self, entries: Sequence[Entry]) -> None:
        after: dict[int, int] = {}
        sums: dict[int, int] = {}
        for chunk, _, mask, _, (checksum, *_) in entries:
            after[chunk] = (after[chunk] if chunk in after else self.bits(chunk)) | mask
            if checksum:
                sums[chunk] = checksum
        self._store_words(self.layout.slots, 8, {chunk: slot for chunk, slot, *_ in entries})
        self._store_words(self.layout.checksums, 4, sums)
        self._store_bits(after)  # last: a block without its bit is blank

    def retract(self, blocks: Iterable[tuple[int, int]]) -> None:
        after: dict[int, int] = {}
        for chunk, mask in blocks:
            bits = after[chunk] if chunk in after else self.bits(chunk)
            if bits & mask:  # where they were not stored there may be no room to store anything
                after[chunk] = bits & ~mask
        self._store_bits(after)
        self._store_words(self.layout.checksums, 4, dict.fromkeys(after, 0))

    def record_checksums(self, chunk: int, first: int, checksums: Sequence[int]) -> None:
        if checksums[0]:
            self._store_checksum(chunk, checksums[0])

    def set_slot(self, chunk: int, slot: int) -> None:
        raise NotImplementedError  # it has no zero marks

    def can_be_confirmed(self, chunk: int) -> bool:
        return self.bits(chunk) == self.full_mask(chunk) and not self.confirmed(chunk)

    def _store_checksum(self, chunk: int, checksum: int) -> None:
        self._io.store(self._fd, checksum.to_bytes(4, "little"), self.layout.checksums + chunk * 4)

    def _store_bits(self, bits: Mapping[int, int]) -> None:
        """Store all bits of some chunks."""
        if width := self._width:
            self._store_words(self.layout.written, width, bits)
            return
        shared: dict[int, int] = {}
        for chunk, mask in bits.items():
            at, shift = divmod(chunk << self._shift, 8)
            byte = shared[at] if at in shared else self._written[at]
            shared[at] = byte & ~(self._low << shift) | mask << shift
        self._store_words(self.layout.written, 1, shared)

    def _gaps(self) -> Iterable[tuple[str, int, int, int]]:
        layout = self.layout
        blocks = self.chunks * self.blocks_per_chunk
        for name, at, bits, end in (
            ("the slots", layout.slots, self.chunks * 64, layout.written),
            ("the bits", layout.written, blocks, layout.checksums),
            ("the checksums", layout.checksums, self.chunks * 32, layout.confirmed),
        ):
            yield name, at + bits // 8, bits % 8, end
