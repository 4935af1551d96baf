# SPDX-License-Identifier: Apache-2.0
"""The contents of a thin store: which blocks are written, in order of address, and whether they are still intact.

Regions that were never written to are skipped without reading their map.  So the cost grows with the written blocks,
not with the size of the LUN.  Nothing here needs a lock: the result may or may not have blocks that become written
meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyroaring

from lun_backends.stores import chunk_file, store_file
from lun_backends.stores.chunk_map import SLOTS_PER_PAGE, ChunkMap
from lun_backends.stores.contract import NOTHING, ChunkReport, Verdict

CHECKED_AT_OPEN = 2048
"""The pages of slots that opening a store checks; a million chunks take 0.1 s.  Larger maps are left to `verify`."""


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
    page = first // SLOTS_PER_PAGE
    while (present := chunk_map.next_page(page)) is not None:
        base = present * SLOTS_PER_PAGE
        if base >= end:
            return
        low = max(first, base)  # so that a lookup of one chunk does not read the whole page
        high = min(end, base + SLOTS_PER_PAGE)
        confirmed = chunk_map.confirmed_range(low, high)
        for index, slot in enumerate(chunk_map.slot_range(low, high), low):
            if confirmed >> (index - low) & 1:
                yield index, chunk_map.full_mask(index)
            elif slot and (bits := chunk_map.bits(index)):
                yield index, bits
        page = present + 1


def verify(
    chunk_map: ChunkMap, file: chunk_file.ChunkFile, passed_over: pyroaring.BitMap = NOTHING
) -> Iterator[ChunkReport]:
    """Read every chunk that has data, except those `passed_over`, and compare; yield a report per chunk, in order.

    | confirmed | slot | bits | checksum | data      | verdict                                                             |
    | --------- | ---- | ---- | -------- | --------- | ------------------------------------------------------------------- |
    | any       | yes  | all  | yes      | fits      | good, unless another chunk has the same slot                        |
    | any       | yes  | all  | yes      | does not  | damaged                                                             |
    | yes       | no   | any  | any      | -         | damaged: reads fail                                                 |
    | yes       | yes  | some | any      | any       | damaged in the map; blocks read as if all bits were there           |
    | any       | yes  | all  | none     | -         | unverifiable                                                        |
    | no        | yes  | some | any      | -         | unverifiable: written in part                                       |
    | no        | a word but not both of these | - | unverifiable: reads as blank; an interrupted commit left it, or rot |
    """
    slots = pyroaring.BitMap64()
    for page in chunk_map.pages_with_words():
        base = page * SLOTS_PER_PAGE
        end = min(base + SLOTS_PER_PAGE, chunk_map.chunks)
        if chunk_map.has_words(base, end):
            for chunk in range(base, end):
                if chunk not in passed_over and (report := _verify(chunk_map, file, chunk, slots)) is not None:
                    yield report


def _verify(
    chunk_map: ChunkMap, file: chunk_file.ChunkFile, chunk: int, slots: pyroaring.BitMap64
) -> ChunkReport | None:
    confirmed = chunk_map.confirmed(
        chunk
    )  # before the others: a chunk that is being committed must not look incomplete
    slot, bits, expected = chunk_map.slot_range(chunk, chunk + 1)[0], chunk_map.bits(chunk), chunk_map.checksum(chunk)
    if not (confirmed or slot or bits or expected):
        return None
    offset, length = chunk * file.chunk_size, chunk_map.chunk_length(chunk)

    def report(verdict: Verdict, reason: str) -> ChunkReport:
        return ChunkReport(offset, length, verdict, reason)

    if confirmed and not slot:
        return report(Verdict.DAMAGED, "the map has lost where it is; reads of it fail")
    if slot in slots:
        return report(Verdict.DAMAGED, f"it shares slot {slot} with chunk {_chunk_in(chunk_map, slot)}")
    if slot:
        slots.add(slot)
    if not slot or not (bits or confirmed):
        return report(Verdict.UNVERIFIABLE, "it reads as blank, but the map has words of it")
    whole = bits == chunk_map.full_mask(chunk)
    if not whole and not confirmed:
        return report(Verdict.UNVERIFIABLE, "it is written in part")
    if not expected:
        return report(Verdict.UNVERIFIABLE, "no checksum is recorded")
    try:
        checksum = file.check(slot, length)
    except OSError as error:
        return report(Verdict.DAMAGED, f"it cannot be read: {error.strerror}")
    if checksum != expected:
        return report(Verdict.DAMAGED, f"CRC32C is {checksum:#010x}, was {expected:#010x} when written")
    if not whole:
        return report(Verdict.DAMAGED, "the map has lost which of its blocks are written; its data is as it was")
    return ChunkReport(offset, length, Verdict.GOOD)


def _chunk_in(chunk_map: ChunkMap, slot: int) -> int:
    """Return the first chunk with that slot.  Raises LookupError if there is none."""
    for page in chunk_map.pages_with_words():
        slots = chunk_map.page_slots(page)
        if slot in slots:
            return page * SLOTS_PER_PAGE + slots.index(slot)
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
        slots = [slot for slot in chunk_map.page_slots(page) if slot]
        if slots and max(slots) >= limit:
            chunk = page * SLOTS_PER_PAGE + chunk_map.page_slots(page).index(max(slots))
            fault = f"chunk {chunk} is in slot {max(slots)}, the chunk file ends before slot {limit}"
            raise store_file.StoreDamaged(chunk_map.path, "slots", fault, store_file.RESTORE)
        seen.update(slots)
        count += len(slots)
        if len(seen) != count:
            fault = f"two chunks share a slot (within or before chunk {(page + 1) * SLOTS_PER_PAGE - 1})"
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
