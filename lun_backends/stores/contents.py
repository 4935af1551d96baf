# SPDX-License-Identifier: Apache-2.0
"""What a thin store holds: which blocks are written, in order of address, and whether they are still what was written.

Regions never written to are skipped without their map being read, so all of this costs what is written, not what the LUN
could hold.  Nothing here needs a lock: blocks that become written meanwhile are seen or not.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import pyroaring

from lun_backends.stores import chunk_file, chunk_map

CHECKED_AT_OPEN = 2048
"""Pages of slots that opening a store checks; a million chunks take it 0.1 s.  Larger maps are left to `verify`."""


class Verdict(enum.Enum):
    """What `verify` found of a chunk."""

    GOOD = "good"
    UNVERIFIABLE = "unverifiable"  # no checksum is recorded: written in part, or by a commit that was interrupted
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """One chunk of a scrub; `offset` and `length` are bytes of the LUN."""

    offset: int
    length: int
    verdict: Verdict
    reason: str = ""


def extents(map_: chunk_map.ChunkMap, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
    """(first block, blocks, written?) over the range, neighbours merged; untouched regions cost nothing."""
    at = first
    for begin, end in _written_runs(map_, first, first + count):
        if begin > at:
            yield at, begin - at, False
        yield begin, end - begin, True
        at = end
    if first + count > at:
        yield at, first + count - at, False


def _written_runs(map_: chunk_map.ChunkMap, first: int, end: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of written blocks, in order, neighbours merged."""
    per_chunk = map_.blocks_per_chunk
    run_begin = run_end = first
    for chunk, bits in chunks_written(map_, first // per_chunk, -(-end // per_chunk)):
        base = chunk * per_chunk
        if base < first:
            bits &= -1 << (first - base)
        if base + per_chunk > end:
            bits &= (1 << (end - base)) - 1
        while bits:
            low = lowest(bits)
            length = lowest(~(bits >> low))
            if base + low != run_end:
                if run_end > run_begin:
                    yield run_begin, run_end
                run_begin = base + low
            run_end = base + low + length
            bits &= -1 << (low + length)
    if run_end > run_begin:
        yield run_begin, run_end


def chunks_written(map_: chunk_map.ChunkMap, first: int, end: int) -> Iterator[tuple[int, int]]:
    """(chunk, mask of its written blocks) for chunks of [first, end) that have any, in order.  Regions never written
    to are skipped without being read."""
    page = first // chunk_map.SLOTS_PER_PAGE
    while (found := map_.next_page(page)) is not None:
        base = found * chunk_map.SLOTS_PER_PAGE
        if base >= end:
            return
        low = max(first, base)  # a lookup of one chunk must not cost the whole page
        for index, slot in enumerate(map_.slot_range(low, min(end, base + chunk_map.SLOTS_PER_PAGE)), low):
            if slot and (bits := map_.bits(index)):
                yield index, bits
        page = found + 1


def verify(map_: chunk_map.ChunkMap, file: chunk_file.ChunkFile, first: int, end: int) -> Iterator[ChunkReport]:
    """Read every chunk that has data, of chunks [first, end), and compare; one report per chunk, in order."""
    for chunk, bits in chunks_written(map_, first, end):
        offset, length = chunk * file.chunk_size, map_.chunk_length(chunk)
        expected = map_.checksum(chunk)
        if not expected or bits != map_.full_mask(chunk):
            yield ChunkReport(offset, length, Verdict.UNVERIFIABLE)
            continue
        try:
            found = file.checksum_of(map_.slot(chunk), length)
        except OSError as error:
            yield ChunkReport(offset, length, Verdict.DAMAGED, f"cannot be read: {error.strerror}")
            continue
        if found == expected:
            yield ChunkReport(offset, length, Verdict.GOOD)
        else:
            why = f"CRC32C is {found:#010x}, was {expected:#010x} when written"
            yield ChunkReport(offset, length, Verdict.DAMAGED, why)


def check_slots(map_: chunk_map.ChunkMap, limit: int) -> None:
    """Raises StoreDamaged if a slot lies beyond the chunk file or two chunks share one, as far as that
    is cheap to know; the chunk file ends before slot `limit`."""
    pages = len(map_.present)
    if pages > CHECKED_AT_OPEN:
        return
    seen = pyroaring.BitMap64()
    count = 0
    page = map_.next_page(0)
    while page is not None:
        slots = [slot for slot in map_.page_slots(page) if slot]
        if slots and max(slots) >= limit:
            chunk = page * chunk_map.SLOTS_PER_PAGE + map_.page_slots(page).index(max(slots))
            found = f"chunk {chunk} is in slot {max(slots)}, the chunk file ends before slot {limit}"
            raise chunk_map.StoreDamaged(map_.path, "slots", found, chunk_map.RESTORE)
        seen.update(slots)
        count += len(slots)
        if len(seen) != count:
            found = f"two chunks share a slot (within or before chunk {(page + 1) * chunk_map.SLOTS_PER_PAGE - 1})"
            raise chunk_map.StoreDamaged(map_.path, "slots", found, chunk_map.RESTORE)
        page = map_.next_page(page + 1)


def lowest(mask: int) -> int:
    """The number of the lowest bit set."""
    return (mask & -mask).bit_length() - 1
