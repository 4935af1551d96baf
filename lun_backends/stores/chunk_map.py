# SPDX-License-Identifier: Apache-2.0
"""The chunk map: which blocks of a write-once LUN are written and where they are, in a memory-mapped sparse file.

| bytes                      | content                                                                                   |
| -------------------------- | ----------------------------------------------------------------------------------------- |
| 0 and 4096                 | two copies of the superblock (`superblock`), zeroes up to 4096                            |
| 8192                       | `slots`: a little-endian u64 per chunk, the chunk's place in the chunk file; 0 = none     |
| then, page-aligned         | `written`: one bit per block, bit `n & 7` of byte `n >> 3`                                |
| then, page-aligned         | `checksums`: a little-endian u32 per chunk, CRC32C of a fully written chunk; 0 = none     |
| then, page-aligned         | `confirmed`: one bit per chunk, bit `n & 7` of byte `n >> 3`                              |

A block is written if its chunk has a slot and its bit is set, or if its chunk is confirmed.  The map's guarantees, and
the duties of its owner:

* The owner stores words only after the data that they describe is durable.  It calls `clean` and `sync` before the
  first `publish` of a chunk that `is_stale`.  *If* it does, any mixture of old and new map pages reads as blocks that
  are blank or were stored whole.  A stale chunk has words of an interrupted commit.  These may be bits or a checksum
  without a slot, which would count once the chunk gets a slot.  Or they are a checksum without all its bits, which data
  that fills them later would not fit.
* The owner confirms a chunk once it is fully written and all its other words are durable, never before.  So if a
  confirmed chunk lacks its slot or bits, no commit was interrupted: the map has rotted.  The chunk stays written.
  Reading it without its slot is an error; otherwise a view would take the primary's new data for old data.  A power cut
  may lose the newest confirmations, and with them only this check.  A chunk written in part is not confirmed.
* A checksum of 0 says "none recorded"; a computed 0 is recorded as 1.  Bits may be durable where the checksum is not,
  so "none recorded" means unverifiable, never damaged.
* A page is stored into only after `reserve` gave it disk space, so that a full disk is met before a commit begins.  On a
  file system that writes changed pages to a new place, a store may find no room all the same.  Then `publish_many` raises
  ENOSPC, and no block of it is visible.
* A page is read only if `present` has its page of slots.  So lookups in untouched regions cost no memory, however large
  the map is.
* The superblocks are written one after the other with the same generation, the damaged or older one first.  Each is
  durable before the next step.  So the loss of one never takes the map back to an earlier state: an invalid snapshot
  stays invalid.
* The map has one owner: the file is locked (`flock`) while it is open.

Reads need no lock, because words are stored whole, and the slot before the bits.  One thread at a time stores.

Reads go through a mapping, stores through `StorageIO.store`.  If the disk fails to *read* a map page, the kernel raises
SIGBUS, as with any mapped file: the process ends, and the map stays as it was.  The same happens if another program cuts
the file short.  A store would make the file long again, with blank blocks where words were.  So every commit compares the
file's length first, and raises an error if it is too short.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyroaring

from lun_backends import block_device
from lun_backends.files import os_error, storage_io
from lun_backends.stores import store_file
from lun_backends.stores.superblock import (
    COPIES,
    PAGE,
    USED,
    Layout,
    State,
    Superblock,
    geometry_problem,
    page_up,
    read_both,
    read_copy,
)

SLOTS_PER_PAGE = PAGE // 8
_NO_PAGE = 1 << 62


class CutShort(OSError):
    """Another program made the file of an open map shorter."""


class ChunkMap:
    """An open map, made by `create` and `open`.

    Places in the LUN are chunk numbers.  Blocks are bits of a chunk's mask; bit 0 is the chunk's first block.
    """

    def __init__(
        self, path: Path, fd: int, io: storage_io.StorageIO, superblock: Superblock, damaged: int | None
    ) -> None:
        self.path = path
        self.superblock = superblock
        self.layout = layout = Layout.of(superblock)
        self.chunks = layout.chunks
        self.blocks_per_chunk = superblock.chunk_size // superblock.block_size
        self.damaged_superblock = damaged  # 0 or 1 while that copy is damaged or older; `set_state` repairs it
        self._io = io
        self._fd = fd
        try:
            self._map = io.map(fd, layout.length)
        except (OSError, ValueError, OverflowError) as error:
            raise store_file.StoreUnavailable(path, f"cannot be mapped ({layout.length} bytes): {error}") from error
        view = memoryview(self._map)
        self._slots = view[layout.slots : layout.slots + layout.chunks * 8].cast("Q")
        self._written = view[layout.written : layout.checksums]
        self._checksums = view[layout.checksums : layout.checksums + layout.chunks * 4].cast("I")
        self._confirmed = view[layout.confirmed : layout.length]
        self._views = (self._slots, self._written, self._checksums, self._confirmed, view)
        # Chunks of less than eight blocks (4 KiB to 16 KiB of 4096-byte blocks) share a byte of bits.
        self._shift = self.blocks_per_chunk.bit_length() - 1
        self._width = self.blocks_per_chunk >> 3
        self._low = (1 << self.blocks_per_chunk) - 1
        self.present = self._find_present(layout.slots, layout.written)
        self._confirmable = self._find_present(layout.confirmed, layout.length)  # pages of `confirmed`
        self._reserved = pyroaring.BitMap()

    @classmethod
    def create(cls, path: Path, superblock: Superblock, io: storage_io.StorageIO = storage_io.SYSTEM) -> ChunkMap:
        """Make a new, empty map and open it.  Raises store_file.StoreUnavailable, SpaceExhausted, ValueError (geometry)."""
        if problem := geometry_problem(superblock):
            raise ValueError(problem)
        layout = Layout.of(superblock)
        with store_file.opened(io, path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            try:
                _lock(fd, path)
                page = superblock.pack()
                for offset in COPIES:
                    storage_io.write_all(io, fd, [page], offset, PAGE)
                io.ftruncate(fd, layout.length)
                io.fdatasync(fd)
                io.fsync_directory(path.parent)
                return cls(path, fd, io, superblock, None)
            except (OSError, block_device.BlockDeviceError) as error:
                io.unlink(path)
                if not isinstance(error, OSError):
                    raise
                if error.errno == errno.EFBIG:
                    text = f"the file system cannot hold a sparse file of {layout.length} bytes; use larger chunks"
                    raise store_file.StoreUnavailable(path, text) from error
                if error.errno in storage_io.NO_SPACE:
                    raise block_device.SpaceExhausted(0) from error
                raise store_file.StoreUnavailable(path, os_error.reason(error)) from error

    @classmethod
    def open(cls, path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> ChunkMap:
        """Open an existing map.  Raises store_file.StoreMissing, store_file.StoreUnavailable, store_file.StoreLocked, StoreDamaged."""
        with store_file.opened(io, path, os.O_RDWR) as fd:
            _lock(fd, path)
            try:
                superblock, damaged = read_both(io, fd, path)
                length = os.fstat(fd).st_size
            except OSError as error:
                raise store_file.StoreUnavailable(path, f"cannot be read: {os_error.reason(error)}") from error
            if (expected := Layout.of(superblock).length) != length:
                fault = f"is {length} bytes long, must be {expected}"
                raise store_file.StoreDamaged(path, "file size", fault, store_file.RESTORE)
            return cls(path, fd, io, superblock, damaged)

    # -- lookups

    def slot(self, chunk: int) -> int:
        """Return the chunk's slot, 0 if it has none."""
        return self._slots[chunk] if chunk >> 9 in self.present else 0

    def written(self, chunk: int) -> int:
        """Return the mask of the chunk's written blocks; 0 if it has no slot and is not confirmed."""
        bits = self.bits(chunk) if chunk >> 9 in self.present and self._slots[chunk] else 0
        if bits != self._low and self.confirmed(chunk):
            return self.full_mask(chunk)
        return bits

    def confirmed(self, chunk: int) -> bool:
        """Return whether the chunk is fully written for certain.

        A caller that looks for chunks with incomplete words must read this word first.
        """
        return chunk >> 15 in self._confirmable and bool(self._confirmed[chunk >> 3] >> (chunk & 7) & 1)

    def confirmed_range(self, first: int, end: int) -> int:
        """Return the mask of the confirmed chunks of [first, end), which should be in one page of slots."""
        if first >> 15 not in self._confirmable:
            return 0
        return int.from_bytes(self._confirmed[first >> 3 : -(-end // 8)], "little") >> (first & 7)

    def bits(self, chunk: int) -> int:
        """Return the mask of the chunk's bits, whether it has a slot or not."""
        if width := self._width:
            start = chunk * width
            return int.from_bytes(self._written[start : start + width], "little")
        bit = chunk << self._shift
        return self._written[bit >> 3] >> (bit & 7) & self._low

    def checksum(self, chunk: int) -> int:
        """Return the recorded checksum, 0 if there is none."""
        return self._checksums[chunk]

    def full_mask(self, chunk: int) -> int:
        """Return the mask of a fully written chunk (the LUN's last chunk may be short)."""
        if chunk < self.chunks - 1:
            return self._low
        blocks = self.superblock.size // self.superblock.block_size
        return (1 << (blocks - chunk * self.blocks_per_chunk)) - 1

    def chunk_length(self, chunk: int) -> int:
        """Return the chunk's length in bytes (the LUN's last chunk may be short)."""
        return min(self.superblock.chunk_size, self.superblock.size - chunk * self.superblock.chunk_size)

    def pages_with_words(self) -> Iterator[int]:
        """Yield the pages of slots, in order, whose chunks may have words of any kind.

        They are more than `present` if slots were lost.
        """
        per_page = PAGE * 8 // SLOTS_PER_PAGE
        after = 0
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
        return first if first * SLOTS_PER_PAGE < self.chunks else _NO_PAGE

    def has_words(self, first: int, end: int) -> bool:
        """Return whether there are any words for chunks [first, end); `first` is the first chunk of a page of slots."""
        words = (
            self._slots[first:end].cast("B"),
            self._written[(first << self._shift) >> 3 : -(-(end << self._shift) // 8)],
            self._checksums[first:end].cast("B"),
            self._confirmed[first >> 3 : -(-end // 8)],
        )
        return any(array.tobytes().strip(b"\0") for array in words)

    def next_page(self, page: int) -> int | None:
        """Return the first page at or after `page` that may hold slots, without reading the map; None if there is none."""
        try:
            return self.present.next_set_bit(page)
        except ValueError:  # none from there on
            return None

    def page_slots(self, page: int) -> list[int]:
        """Return the slots of a page: those of up to `SLOTS_PER_PAGE` chunks from `page * SLOTS_PER_PAGE` on."""
        return self._slots[page * SLOTS_PER_PAGE : (page + 1) * SLOTS_PER_PAGE].tolist()

    def slot_range(self, first: int, end: int) -> list[int]:
        """Return the slots of the chunks of [first, end) that exist; they should be in one page that is present."""
        return self._slots[first:end].tolist()

    # -- stores

    def reserve(self, chunk: int) -> None:
        """Give the four pages that hold the chunk's words their space on disk.  Raises OSError."""
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

    def is_stale(self, chunk: int) -> bool:
        """Return whether an interrupted commit left words of this chunk, to be cleaned before it is published to."""
        if self._slots[chunk]:
            return self._checksums[chunk] != 0 and self.bits(chunk) != self.full_mask(chunk)
        return self._checksums[chunk] != 0 or self.bits(chunk) != 0

    def check_length(self) -> None:
        """Raise CutShort if the file is shorter than its words need: a store would make it long again."""
        if os.lseek(self._fd, 0, os.SEEK_END) < self.layout.length:  # half the cost of fstat
            raise CutShort(errno.EIO, f"the map was cut short by another program: {store_file.RESTORE}")

    def clean(self, chunk: int) -> None:
        """Zero the words that `is_stale` found; `sync` before the next `publish` of the chunk.  Raises OSError."""
        self.record_checksum(chunk, 0)
        if not self._slots[chunk]:
            self._store_bits({chunk: 0})

    def publish(self, chunk: int, slot: int, mask: int, checksum: int) -> int:
        """Publish one chunk as `publish_many`, and return all bits that are set now.  Raises OSError."""
        return self.publish_many([(chunk, slot, mask, checksum)])[0]

    def publish_many(self, entries: Sequence[tuple[int, int, int, int]]) -> list[int]:
        """Mark the blocks of each (chunk, slot, mask, checksum) as written, and return all bits that are set then.

        Their data is already as durable as it must be.  A checksum, as computed, is that of the whole chunk; it is 0
        unless the mask is all of the chunk.  Words of neighbours are stored with one call.

        Raises OSError: then no block is written that was blank before, or `retract` is still to be called for all.
        """
        if len(entries) == 1:
            chunk, slot, mask, checksum = entries[0]
            bits = mask if mask == self._low else self.bits(chunk) | mask
            layout = self.layout
            store, fd = self._io.store, self._fd
            store(fd, slot.to_bytes(8, "little"), layout.slots + chunk * 8)
            if checksum:
                store(fd, checksum.to_bytes(4, "little"), layout.checksums + chunk * 4)
            if width := self._width:
                store(fd, bits.to_bytes(width, "little"), layout.written + chunk * width)
            else:
                self._store_bits({chunk: bits})
            return [bits]
        after: dict[int, int] = {}
        for chunk, _, mask, _ in entries:
            after[chunk] = (after[chunk] if chunk in after else self.bits(chunk)) | mask
        self._store_words(self.layout.slots, 8, {chunk: slot for chunk, slot, _, _ in entries})
        self._store_words(self.layout.checksums, 4, {chunk: crc for chunk, _, _, crc in entries if crc})
        self._store_bits(after)  # last: a block without its bit is blank
        return [after[chunk] for chunk, _, _, _ in entries]

    def confirm(self, chunks: Iterable[int]) -> None:
        """Mark chunks as fully written for certain; all their other words are durable.  Raises OSError."""
        marks: dict[int, int] = {}
        for chunk in chunks:
            at = chunk >> 3
            marks[at] = (marks[at] if at in marks else self._confirmed[at]) | 1 << (chunk & 7)
        self._store_words(self.layout.confirmed, 1, marks)

    def retract(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Take back the blocks of each (chunk, mask), because their publication failed, or could not be made durable.

        The slot stays and is not used again.  Raises OSError.
        """
        after: dict[int, int] = {}
        for chunk, mask in blocks:
            bits = after[chunk] if chunk in after else self.bits(chunk)
            if bits & mask:  # where they were not stored there may be no room to store anything
                after[chunk] = bits & ~mask
        self._store_bits(after)
        self._store_words(self.layout.checksums, 4, dict.fromkeys(after, 0))

    def record_checksum(self, chunk: int, checksum: int) -> None:
        """Record the checksum of a chunk whose last bits were published without one.  Raises OSError."""
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
        page = new.pack()
        for copy in (1, 0) if self.damaged_superblock == 1 else (0, 1):
            storage_io.write_all(self._io, self._fd, [page], COPIES[copy], PAGE)
            self._io.fdatasync(self._fd)
        self.superblock = new
        self.damaged_superblock = None

    def disk_bytes(self) -> int:
        """Return the space that the file takes on disk, in bytes."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        """Unmap, unlock and close the file.  No thread may use the map any longer."""
        for view in self._views:
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
                if copy != self.superblock:
                    faults.append(f"copy {number} of the map's superblock is not the one in force")
        return faults

    def check_gaps(self) -> list[str]:
        """Return the places behind superblocks and arrays that are not zeroes although they must be, a phrase each."""
        layout = self.layout
        blocks = self.chunks * self.blocks_per_chunk
        gaps = [(f"copy {copy} of the superblock", at + USED, 0, at + PAGE) for copy, at in enumerate(COPIES, 1)]
        for name, at, bits, end in (
            ("the slots", layout.slots, self.chunks * 64, layout.written),
            ("the bits", layout.written, blocks, layout.checksums),
            ("the checksums", layout.checksums, self.chunks * 32, layout.confirmed),
            ("the confirmations", layout.confirmed, self.chunks, layout.length),
        ):
            gaps.append((name, at + bits // 8, bits % 8, end))
        return [
            f"behind {name} the map is not zeroes"
            for name, at, bits, end in gaps
            if int.from_bytes(self._map[at:end], "little") >> bits
        ]

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


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise store_file.StoreLocked(path) from error
