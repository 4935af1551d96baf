# SPDX-License-Identifier: Apache-2.0
"""The chunk map: which blocks of a write-once LUN are written and where they are, in a memory-mapped sparse file.

| bytes           | content                                                                                       |
| --------------- | --------------------------------------------------------------------------------------------- |
| 0 and 4096      | two copies of the superblock (`superblock`), zeroes up to 4096                                |
| 8192            | the words of the chunks: records (format 3, `record_map`) or arrays (format 2, `array_map`)   |
| at the end,     | `confirmed`: one bit per chunk, bit `n & 7` of byte `n >> 3`                                  |
| page-aligned    |                                                                                               |

A chunk has a slot (its place in the chunk file), a bit for each block, and a CRC32C for each *grain*: 4 KiB in format 3,
the whole chunk in format 2.  `ZEROES` as slot says that all written blocks of the chunk are zeroes and take no space.

A block is written if its chunk has a slot and its bit is set.  The map's guarantees, and the duties of its owner:

* The owner stores words only after the data that they describe is durable.  Before it publishes a chunk that `is_stale`,
  it calls `clean` and `sync`; before it replaces `ZEROES` by another slot, `set_slot` and `sync`.  *If* it does, any
  mixture of old and new words reads as blocks that are blank or were stored whole.  So words may be stored in any order,
  and the disk may read a page in the middle of a store.  A stale chunk has words of an interrupted commit: bits without a
  slot, which would count once the chunk gets one, or the checksum of a grain that is not written as a whole, which data
  that fills the grain later would not fit.
* A checksum of 0 says "none recorded"; a computed 0 is recorded as 1.  It speaks only if all blocks of the grain are
  written.  Bits may be durable where the checksum is not, so "none recorded" means unverifiable, never damaged.
* The owner confirms a chunk once its words are durable, never before.  So if a confirmed chunk lacks its slot or all its
  bits, no commit was interrupted: the map has rotted.  The chunk stays written.  Reading it is an error; otherwise a view
  would take the primary's new data for old data.  A crash may lose the newest confirmations, and with them only this check.
* A page is stored into only after `reserve` gave it disk space, so that a full disk is met before a commit begins.  On a
  file system that writes changed pages to a new place, a store may find no room all the same.  Then `publish_many` raises
  ENOSPC, and no block of it is visible.
* A page is read only if `present` has it, or the page of the slot.  So lookups in untouched regions cost no memory, however
  large the map is.
* The superblocks are written one after the other with the same generation, the damaged or older one first.  Each is
  durable before the next step.  So the loss of one never takes the map back to an earlier state: an invalid snapshot
  stays invalid.
* The map has one owner: the file is locked (`flock`) while it is open.

Reads need no lock: a word of up to 8 bytes is stored whole.  One thread at a time stores.

Reads go through a mapping, stores through `StorageIO.store`.  If the disk fails to *read* a map page, the kernel raises
SIGBUS, as with any mapped file: the process ends, and the map stays as it was.  The same happens if another program cuts
the file short.  A store would make the file long again, with blank blocks where words were.  So every commit compares the
file's length first, and raises an error if it is too short.
"""

from __future__ import annotations

import abc
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyroaring

from lun_backends.files import os_error, storage_io
from lun_backends.stores import store_file
from lun_backends.stores.superblock import COPIES, PAGE, USED, State, Superblock, page_up, read_copy

WORDS = 2 * PAGE
"""The byte at which the words of the chunks begin."""
ZEROES = (1 << 64) - 1
"""The slot of a chunk whose written blocks are all zeroes."""
_CONFIRMATIONS_PER_PAGE = PAGE * 8
_NO_PAGE = 1 << 62

Entry = tuple[int, int, int, int, Sequence[int]]
"""Blocks to publish: chunk, slot, mask of the blocks, first grain that has one of them, and a checksum for each such grain.

The checksum is 0 for a grain that the blocks do not fill."""


class CutShort(OSError):
    """Another program made the file of an open map shorter."""


class ChunkMap(abc.ABC):
    """An open map, see `maps`.

    Places in the LUN are chunk numbers.  Blocks are bits of a chunk's mask; bit 0 is the chunk's first block.
    """

    grain: int
    """The bytes that a checksum covers."""
    blocks_per_grain: int
    chunks_per_page: int
    """The chunks whose slots share a page."""
    zero_marks: bool
    """Whether a slot may be `ZEROES`."""

    def __init__(
        self,
        path: Path,
        fd: int,
        io: storage_io.StorageIO,
        superblock: Superblock,
        damaged: int | None,
        slots: tuple[int, int],
        confirmed: int,
    ) -> None:
        """Take over the open file; its slots are in the bytes `slots`, the confirmations from byte `confirmed` on."""
        self.path = path
        self.superblock = superblock
        self.chunks = chunks_of(superblock)
        self.blocks_per_chunk = superblock.chunk_size // superblock.block_size
        self.damaged_superblock = damaged  # 0 or 1 while that copy is damaged or older; `set_state` repairs it
        self._io = io
        self._fd = fd
        self._confirmed_at = confirmed
        self.length = length_from(superblock, confirmed)
        try:
            self._map = io.map(fd, self.length)
        except (OSError, ValueError, OverflowError) as error:
            raise store_file.StoreUnavailable(path, f"cannot be mapped ({self.length} bytes): {error}") from error
        self._view = memoryview(self._map)
        self._confirmed = self._view[confirmed : self.length]
        self._views = [self._confirmed]
        self._low = (1 << self.blocks_per_chunk) - 1
        self.present = self._find_present(*slots)
        self._confirmable = self._find_present(confirmed, self.length)  # pages of `confirmed`
        self._reserved = pyroaring.BitMap()

    # -- lookups

    @abc.abstractmethod
    def slot(self, chunk: int) -> int:
        """Return the chunk's slot, 0 if it has none."""

    @abc.abstractmethod
    def written(self, chunk: int) -> int:
        """Return the mask of the chunk's blocks that are not blank, readable or not."""

    @abc.abstractmethod
    def missing(self, chunk: int, start: int, count: int) -> int:
        """Return the mask of the blank blocks among `count` of the chunk from block `start` on.

        Raises MediumError if it is not known which of them are written.
        """

    @abc.abstractmethod
    def bits(self, chunk: int) -> int:
        """Return the mask of the chunk's bits, whether they count or not."""

    @abc.abstractmethod
    def torn(self, chunk: int) -> int:
        """Return the mask of the blocks of which it is not known whether they are written."""

    @abc.abstractmethod
    def checksums(self, chunk: int, first: int, end: int) -> list[int]:
        """Return the recorded checksums of the grains [first, end) of a chunk, 0 where there is none."""

    @abc.abstractmethod
    def page_slots(self, page: int) -> list[int]:
        """Return the slots of a page that is present: those of up to `chunks_per_page` chunks."""

    @abc.abstractmethod
    def has_words(self, page: int) -> bool:
        """Return whether there are any words for the chunks of a page of slots."""

    def confirmed(self, chunk: int) -> bool:
        """Return whether the chunk has durable words.

        A caller that looks for chunks with incomplete words must read this word first.
        """
        return chunk >> 15 in self._confirmable and bool(self._confirmed[chunk >> 3] >> (chunk & 7) & 1)

    def confirmed_range(self, first: int, end: int) -> int:
        """Return the mask of the confirmed chunks of [first, end), which should be in one page of slots."""
        if first >> 15 not in self._confirmable:
            return 0
        return int.from_bytes(self._confirmed[first >> 3 : -(-end // 8)], "little") >> (first & 7)

    def full_mask(self, chunk: int) -> int:
        """Return the mask of a fully written chunk (the LUN's last chunk may be short)."""
        if chunk < self.chunks - 1:
            return self._low
        blocks = self.superblock.size // self.superblock.block_size
        return (1 << (blocks - chunk * self.blocks_per_chunk)) - 1

    def chunk_length(self, chunk: int) -> int:
        """Return the chunk's length in bytes (the LUN's last chunk may be short)."""
        return min(self.superblock.chunk_size, self.superblock.size - chunk * self.superblock.chunk_size)

    def slot_of(self, chunk: int) -> int:
        """Return the chunk's slot; its page is read even if `present` lacks it."""
        page, index = divmod(chunk, self.chunks_per_page)
        return self.page_slots(page)[index]

    def pages_with_words(self, after: int = 0) -> Iterator[int]:
        """Yield the pages of slots from `after` on, in order, whose chunks may have words of any kind.

        They are more than `present` if slots were lost.
        """
        per_page = _CONFIRMATIONS_PER_PAGE // self.chunks_per_page
        while (page := min(self._from(self.present, after), self._from(self._confirmable, after, per_page))) < _NO_PAGE:
            yield page
            after = page + 1

    def _from(self, pages: pyroaring.BitMap, after: int, span: int = 1) -> int:
        """Return the first page of slots, at or after `after`, whose words a page of `pages` holds.

        Every page of `pages` holds the words of `span` pages of slots.
        """
        try:
            page = pages.next_set_bit(after // span)
        except ValueError:
            return _NO_PAGE
        first = max(after, page * span)
        return first if first * self.chunks_per_page < self.chunks else _NO_PAGE

    def grains_of(self, mask: int) -> tuple[int, int]:
        """Return [first, end) of the grains that have blocks of a mask, which is not empty."""
        return ((mask & -mask).bit_length() - 1) // self.blocks_per_grain, -(
            -mask.bit_length() // self.blocks_per_grain
        )

    def grain_mask(self, chunk: int, grain: int) -> int:
        """Return the mask of the blocks of a grain (the LUN's last grain may be short)."""
        return ((1 << self.blocks_per_grain) - 1) << grain * self.blocks_per_grain & self.full_mask(chunk)

    def grain_length(self, chunk: int, grain: int) -> int:
        """Return the length of a grain in bytes (the LUN's last grain may be short)."""
        return min(self.grain, self.superblock.size - chunk * self.superblock.chunk_size - grain * self.grain)

    def next_page(self, page: int) -> int | None:
        """Return the first page at or after `page` that may hold slots, without reading the map; None if there is none."""
        try:
            return self.present.next_set_bit(page)
        except ValueError:  # none from there on
            return None

    # -- stores

    @abc.abstractmethod
    def reserve(self, chunk: int) -> None:
        """Give the pages that hold the chunk's words their space on disk.  Raises OSError."""

    @abc.abstractmethod
    def is_stale(self, entry: Entry) -> bool:
        """Return whether an interrupted commit left words of the chunk, to be cleaned before `entry` is published."""

    @abc.abstractmethod
    def clean(self, chunk: int) -> None:
        """Zero the words that `is_stale` found; `sync` before the next `publish_many` of the chunk.  Raises OSError."""

    @abc.abstractmethod
    def publish_many(self, entries: Sequence[Entry]) -> None:
        """Mark the blocks of each entry as written.  Their data is already as durable as it must be.

        Raises OSError: then no block is written that was blank before, or `retract` is still to be called for all.
        """

    @abc.abstractmethod
    def retract(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Take back the blocks of each (chunk, mask), because their publication failed, or could not be made durable.

        The slot stays and is not used again.  Raises OSError.
        """

    @abc.abstractmethod
    def record_checksums(self, chunk: int, first: int, checksums: Sequence[int]) -> None:
        """Record the checksums of grains from `first` on, except those that are 0.  Raises OSError."""

    @abc.abstractmethod
    def set_slot(self, chunk: int, slot: int) -> None:
        """Replace the slot `ZEROES`; the new one has the zeroes.  `sync` before the next `publish_many`.  Raises OSError."""

    @abc.abstractmethod
    def can_be_confirmed(self, chunk: int) -> bool:
        """Return whether a chunk with durable words should be confirmed and is not."""

    def confirm(self, chunks: Iterable[int]) -> None:
        """Confirm chunks whose words are durable.  Raises OSError."""
        marks: dict[int, int] = {}
        for chunk in chunks:
            at = chunk >> 3
            marks[at] = (marks[at] if at in marks else self._confirmed[at]) | 1 << (chunk & 7)
        self._store_words(self._confirmed_at, 1, marks)

    def check_length(self) -> None:
        """Raise CutShort if the file is shorter than its words need: a store would make it long again."""
        if os.lseek(self._fd, 0, os.SEEK_END) < self.length:  # half the cost of fstat
            raise CutShort(errno.EIO, f"the map was cut short by another program: {store_file.RESTORE}")

    def _store_words(self, base: int, size: int, words: Mapping[int, int]) -> None:
        """Store words of `size` bytes by their index in the array at byte `base`; neighbours with one call."""
        run: list[bytes] = []
        first = 0
        for index in sorted(words):
            if index != first + len(run):
                if run:
                    self._io.store(self._fd, b"".join(run), base + first * size)
                first, run = index, []
            run.append(words[index].to_bytes(size, "little"))
        if run:
            self._io.store(self._fd, b"".join(run), base + first * size)

    def sync(self) -> None:
        """Make all stores durable.  Raises OSError; how much is durable is then unknown."""
        self._io.sync_map(self._fd)

    def set_state(self, state: State, reason: str = "") -> None:
        """Record the state in both superblocks, durable before this returns.  Raises OSError."""
        new = replace(self.superblock, state=state, reason=reason, generation=self.superblock.generation + 1)
        page = self.on_disk(new).pack()
        for copy in (1, 0) if self.damaged_superblock == 1 else (0, 1):
            storage_io.write_all(self._io, self._fd, [page], COPIES[copy], PAGE)
            self._io.fdatasync(self._fd)
        self.superblock = new
        self.damaged_superblock = None

    def on_disk(self, superblock: Superblock) -> Superblock:
        """Return a superblock of this map as the file has it."""
        return superblock

    def disk_bytes(self) -> int:
        """Return the space that the file takes on disk, in bytes."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        """Unmap, unlock and close the file.  No thread may use the map any longer."""
        for view in (*self._views, self._view):
            view.release()
        self._map.close()
        self._io.close(self._fd)

    def check_superblocks(self) -> list[str]:
        """Read both copies again and return their faults, a phrase each."""
        faults = []
        for number, offset in enumerate(COPIES, 1):
            try:
                copy = read_copy(self._io, self._fd, self.path, offset)
            except store_file.StoreNewer as newer:
                faults.append(f"copy {number} of the map's superblock: {newer}")
            except store_file.StoreDamaged as damage:
                faults.append(f"copy {number} of the map's superblock: {damage.field}: {damage.fault}")
            except OSError as error:
                faults.append(f"copy {number} of the map's superblock cannot be read: {os_error.reason(error)}")
            else:
                if copy != self.on_disk(self.superblock):
                    faults.append(f"copy {number} of the map's superblock is not the one in force")
        return faults

    def check_gaps(self) -> list[str]:
        """Return the places that are not zeroes although they must be, a phrase each."""
        gaps = [(f"copy {copy} of the superblock", at + USED, 0, at + PAGE) for copy, at in enumerate(COPIES, 1)]
        gaps += self._gaps()
        gaps.append(("the confirmations", self._confirmed_at + self.chunks // 8, self.chunks % 8, self.length))
        return [
            f"behind {name} the map is not zeroes"
            for name, at, bits, end in gaps
            if int.from_bytes(self._map[at:end], "little") >> bits
        ]

    @abc.abstractmethod
    def _gaps(self) -> Iterable[tuple[str, int, int, int]]:
        """Yield (name, first byte, bits of it that are used, end) of the places behind words that must be zeroes."""

    def _find_present(self, start: int, end: int) -> pyroaring.BitMap:
        """Return the pages from `start` to `end` (page-aligned) that are not holes; the file system says so, no page is read."""
        pages = pyroaring.BitMap()
        offset = start
        while offset < end:
            try:
                data = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data up to the end of the file
                    break
                raise
            if data >= end:
                break
            offset = os.lseek(self._fd, data, os.SEEK_HOLE)
            # A file system with larger blocks reports more than was stored.  That is harmless, because the rest is
            # zeroes.
            pages.add_range((data - start) // PAGE, (min(page_up(offset), end) - start) // PAGE)
        return pages


def chunks_of(superblock: Superblock) -> int:
    """Return the number of chunks of a LUN; the last one may be short."""
    return -(-superblock.size // superblock.chunk_size)


def length_from(superblock: Superblock, confirmed: int) -> int:
    """Return the length of a map whose confirmations begin at a byte."""
    return page_up(confirmed + -(-chunks_of(superblock) // 8))
