# SPDX-License-Identifier: Apache-2.0
"""The contents of a thin store: which blocks are written, in order of address, and whether they are still intact.

Regions that were never written to are skipped without reading their map.  So the cost grows with the written blocks,
not with the size of the LUN.  Nothing here needs a lock: the result may or may not have blocks that become written
meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pyroaring

from lun_backends.stores import chunk_file, store_file
from lun_backends.stores.chunk_map import ZEROES, ChunkMap
from lun_backends.stores.contract import NOTHING, ChunkReport, Verdict

CHECKED_AT_OPEN = 2048
"""The pages of slots that opening a store checks, in 0.1 s.  Larger maps are left to `verify`."""


class Chunks(Protocol):
    """A set of chunk numbers."""

    def __contains__(self, chunk: int, /) -> bool: ...


def extents(chunk_map: ChunkMap, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (first block, blocks, written?) over the range, adjacent ones merged; untouched regions cost nothing."""
    at = first
    for begin, end in _written_runs(chunk_map, first, first + count):
        if begin > at:
            yield at, begin - at, False
        yield begin, end - begin, True
        at = end
    if first + count > at:
        yield at, first + count - at, False


def _written_runs(chunk_map: ChunkMap, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges [begin, end) of written blocks, in order, adjacent ones merged."""
    per_chunk = chunk_map.blocks_per_chunk
    run_begin = run_end = first
    for chunk, bits in chunks_written(chunk_map, first // per_chunk, -(-end // per_chunk)):
        base = chunk * per_chunk
        if base < first:
            bits &= -1 << (first - base)
        if base + per_chunk > end:
            bits &= (1 << (end - base)) - 1
        for low, high in runs(bits):
            if base + low != run_end:
                if run_end > run_begin:
                    yield run_begin, run_end
                run_begin = base + low
            run_end = base + high
    if run_end > run_begin:
        yield run_begin, run_end


def chunks_written(chunk_map: ChunkMap, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (chunk, mask of its written blocks) for the chunks of [first, end) that have any, in order.

    This skips regions that were never written to, and does not read their map.
    """
    per_page = chunk_map.chunks_per_page
    if (end - 1) // per_page == first // per_page:  # a look at a few chunks is frequent
        for chunk in range(first, end):
            if bits := chunk_map.written(chunk):
                yield chunk, bits
        return
    for page in chunk_map.pages_with_words(first // per_page):
        base = page * per_page
        if base >= end:
            return
        low = max(first, base)  # so that a lookup of one chunk does not read the whole page
        high = min(end, base + per_page, chunk_map.chunks)
        confirmed = chunk_map.confirmed_range(low, high)
        slots = chunk_map.page_slots(page) if page in chunk_map.present else []
        for chunk in range(low, high):
            known = confirmed >> (chunk - low) & 1 or (slots and slots[chunk - base])
            if known and (bits := chunk_map.written(chunk)):
                yield chunk, bits


def verify(chunk_map: ChunkMap, file: chunk_file.ChunkFile, passed_over: Chunks = NOTHING) -> Iterator[ChunkReport]:
    """Read every chunk that has data, except those `passed_over`, and compare.

    Yield a report for each run of blocks of a chunk with the same verdict, in order of address.

    | confirmed | slot | bits            | checksum | data     | verdict                                                 |
    | --------- | ---- | --------------- | -------- | -------- | ------------------------------------------------------- |
    | any       | yes  | all of a grain   | yes      | fits     | good, unless another chunk has the same slot            |
    | any       | yes  | all of a grain   | yes      | does not | damaged                                                 |
    | any       | yes  | all of a grain   | none     | -        | unverifiable                                            |
    | any       | yes  | some of a grain  | any      | -        | unverifiable: written in part                           |
    | any       | any  | it is not known which are set | - | -     | damaged                                                 |
    | yes       | no, or no bits         | any      | -        | damaged: reads fail                                     |
    | no        | a word but not both of these | -  | -        | unverifiable: reads as blank; an interrupted commit left |
    |           |                        |          |          | it, or rot                                              |
    """
    slots = pyroaring.BitMap64()
    for page in chunk_map.pages_with_words():
        base = page * chunk_map.chunks_per_page
        if chunk_map.has_words(page):
            for chunk in range(base, min(base + chunk_map.chunks_per_page, chunk_map.chunks)):
                if chunk not in passed_over:
                    yield from _Chunk(chunk_map, file, chunk).reports(slots)


class _Chunk:
    """A chunk that is verified."""

    def __init__(self, chunk_map: ChunkMap, file: chunk_file.ChunkFile, chunk: int) -> None:
        self._map, self._file, self._chunk = chunk_map, file, chunk
        # before the others: a chunk that is being committed must not look incomplete
        self._confirmed = chunk_map.confirmed(chunk)
        self._slot = chunk_map.slot_of(chunk)
        self._torn = chunk_map.torn(chunk)
        self._bits = chunk_map.bits(chunk)
        self._grains = -(-chunk_map.chunk_length(chunk) // chunk_map.grain)
        self._expected = chunk_map.checksums(chunk, 0, self._grains)

    def reports(self, slots: pyroaring.BitMap64) -> Iterator[ChunkReport]:
        """Yield the reports; `slots` are those of the chunks before."""
        chunk_map = self._map
        slot, full = self._slot, chunk_map.full_mask(self._chunk)
        if not (self._confirmed or slot or self._bits or self._torn or any(self._expected)):
            return
        if self._confirmed and not slot:
            yield from self._report(full, Verdict.DAMAGED, "the map has lost where it is; reads of it fail")
            return
        if slot in slots:
            other = _chunk_in(chunk_map, slot)
            yield from self._report(full, Verdict.DAMAGED, f"it shares slot {slot} with chunk {other}")
            return
        if slot and slot != ZEROES:
            slots.add(slot)
        lost = "the map has lost which of its blocks are written"
        if not ((slot and self._bits) or self._torn):
            yield from self._report(full, Verdict.UNVERIFIABLE, "it reads as blank, but the map has words of it")
        else:
            yield from self._merged(lost)

    def _merged(self, lost: str) -> Iterator[ChunkReport]:
        last: ChunkReport | None = None
        for report in self._judged(lost):
            if (
                last is not None
                and (last.verdict, last.reason) == (report.verdict, report.reason)
                and last.offset + last.length == report.offset
            ):
                last = ChunkReport(last.offset, last.length + report.length, last.verdict, last.reason)
                continue
            if last is not None:
                yield last
            last = report
        if last is not None:
            yield last

    def _judged(self, lost: str) -> Iterator[ChunkReport]:
        """Yield reports grain by grain."""
        chunk_map = self._map
        data: memoryview | OSError | None = None
        for grain in range(self._grains):
            whole = chunk_map.grain_mask(self._chunk, grain)
            bits, torn = self._bits & whole, self._torn & whole
            expected = self._expected[grain]
            if torn and not (torn == whole and expected and chunk_map.grain == self._file.chunk_size):
                yield from self._report(torn, Verdict.DAMAGED, lost)
            elif bits and bits != whole and not torn:
                yield from self._report(bits, Verdict.UNVERIFIABLE, "it is written in part")
            elif bits and not expected:
                yield from self._report(bits, Verdict.UNVERIFIABLE, "no checksum is recorded")
            elif bits or torn:
                if data is None:
                    data = self._data()
                if isinstance(data, OSError):
                    yield from self._report(whole, Verdict.DAMAGED, f"it cannot be read: {data.strerror}")
                    continue
                at = grain * chunk_map.grain
                piece = data[at : at + chunk_map.grain_length(self._chunk, grain)]
                checksum = chunk_file.checksum([piece])
                if len(piece) < chunk_map.grain_length(self._chunk, grain):
                    yield from self._report(whole, Verdict.DAMAGED, "it cannot be read: the chunk file ends before it")
                elif checksum != expected:
                    reason = f"CRC32C is {checksum:#010x}, was {expected:#010x} when written"
                    yield from self._report(whole, Verdict.DAMAGED, reason)
                elif torn:
                    yield from self._report(whole, Verdict.DAMAGED, f"{lost}; its data is as it was")
                else:
                    yield from self._report(whole, Verdict.GOOD, "")

    def _data(self) -> memoryview | OSError:
        length = self._map.chunk_length(self._chunk)
        if self._slot == ZEROES:
            return memoryview(bytes(length))
        try:
            return self._file.read_from_disk(self._slot, length)
        except OSError as error:
            return error

    def _report(self, mask: int, verdict: Verdict, reason: str) -> Iterator[ChunkReport]:
        """Yield a report for each run of blocks of a mask."""
        block = self._map.superblock.block_size
        base = self._chunk * self._map.superblock.chunk_size
        for begin, end in runs(mask):
            yield ChunkReport(base + begin * block, (end - begin) * block, verdict, reason)


def _chunk_in(chunk_map: ChunkMap, slot: int) -> int:
    """Return the first chunk with that slot.  Raises LookupError if there is none."""
    for page in chunk_map.pages_with_words():
        slots = chunk_map.page_slots(page)
        if slot in slots:
            return page * chunk_map.chunks_per_page + slots.index(slot)
    raise LookupError(slot)


def check_slots(chunk_map: ChunkMap, limit: int) -> None:
    """Raise StoreDamaged if a slot lies beyond the chunk file, or if two chunks share one.

    The chunk file ends before slot `limit`.  Maps of more than `CHECKED_AT_OPEN` pages are not checked.
    """
    pages = len(chunk_map.present)
    if pages > CHECKED_AT_OPEN:
        return
    seen = pyroaring.BitMap64()
    count = 0
    page = chunk_map.next_page(0)
    while page is not None:
        slots = [slot for slot in chunk_map.page_slots(page) if slot and not (slot == ZEROES and chunk_map.zero_marks)]
        if slots and max(slots) >= limit:
            chunk = page * chunk_map.chunks_per_page + chunk_map.page_slots(page).index(max(slots))
            fault = f"chunk {chunk} is in slot {max(slots)}, the chunk file ends before slot {limit}"
            raise store_file.StoreDamaged(chunk_map.path, "slots", fault, store_file.RESTORE)
        seen.update(slots)
        count += len(slots)
        if len(seen) != count:
            fault = f"two chunks share a slot (within or before chunk {(page + 1) * chunk_map.chunks_per_page - 1})"
            raise store_file.StoreDamaged(chunk_map.path, "slots", fault, store_file.RESTORE)
        page = chunk_map.next_page(page + 1)


def lowest(mask: int) -> int:
    """Return the number of the lowest bit that is set."""
    return (mask & -mask).bit_length() - 1


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges [begin, end) of the bits that are set, in order."""
    while mask:
        begin = lowest(mask)
        end = begin + lowest(~(mask >> begin))
        yield begin, end
        mask &= -1 << end
