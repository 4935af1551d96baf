# SPDX-License-Identifier: Apache-2.0
"""A batch of a log: a header of 4 KiB, and behind it the grains that it describes, 4 KiB each.

The header, little-endian, without padding; *n* is the number of records, and each column has *n* entries:

| bytes       | field                                                                                              |
| ----------- | -------------------------------------------------------------------------------------------------- |
| 8           | magic `WOLUNBAT`                                                                                   |
| 16          | UUID of the snapshot                                                                               |
| 8           | sequence: number of the batch in the log, from 1 on                                                |
| 8           | commit: the batches of one commit share it; it grows by 1                                          |
| 8           | place: the page (4 KiB) of the log that this header is in                                          |
| 4           | CRC32C of the header before; 0 in the first batch                                                  |
| 4           | flags: 1 = all earlier commits were durable when this batch was written; 2 = last of its commit    |
| 4           | *n*                                                                                                |
| 4           | random, another one each time that the store is opened                                             |
| 8 *n*       | the number of the grain: its LBA in units of 4 KiB                                                 |
| 4 *n*       | CRC32C of the grain in this batch                                                                  |
| 4 *n*       | the checksum to record for the grain; 0 = none                                                     |
| *n*         | the blocks of the grain that are written now: bit *b* for block *b*                                |
| *n*         | those among them that this batch adds                                                              |
| *n*         | 1 = the grain is zeroes, and this batch has no page for it; else 0                                 |
| up to 4092  | zeroes                                                                                             |
| 4           | CRC32C of all before                                                                               |

The pages follow in the order of the records.  A grain that is written in part has zeroes in the place of its other
blocks.  Blocks that are added to it later come with the ones before, in a new page: the latest record counts.
"""

from __future__ import annotations

import functools
import itertools
import struct
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import crc32c

PAGE = 4096
MOST = 208
"""The records that fit into a header."""
DURABLE_BEFORE, LAST = 1, 2
"""The flags: all earlier commits were durable; this is the last batch of its commit."""

_MAGIC = b"WOLUNBAT"
_HEAD = struct.Struct("<8s16sQQQIIII")
_CRC = struct.Struct("<I")
_USED = PAGE - _CRC.size
_ZEROES = bytes(PAGE)


class Run(NamedTuple):
    """Neighbouring grains to be stored, from grain `first` on; one entry of each sequence for each of them.

    `sums` are the checksums to record, `crcs` those of the pages.  `data` has the pages, unless the grains are `zeroes`.
    """

    first: int
    crcs: Sequence[int]
    sums: Sequence[int]
    masks: bytes
    added: bytes
    data: bytes | memoryview
    zeroes: bool = False

    @property
    def grains(self) -> int:
        """The number of grains."""
        return len(self.crcs)

    def part(self, begin: int, end: int) -> Run:
        """Return the run of its grains [begin, end)."""
        data = self.data if self.zeroes else memoryview(self.data)[begin * PAGE : end * PAGE]
        return Run(
            self.first + begin, self.crcs[begin:end], self.sums[begin:end], self.masks[begin:end],
            self.added[begin:end], data, self.zeroes,
        )  # fmt: skip


class Record(NamedTuple):
    """One grain of a batch; `page` is its page of the log, None if it is zeroes."""

    grain: int
    crc: int
    checksum: int
    mask: int
    added: int
    page: int | None


class Header(NamedTuple):
    """A header that was read; `end` is the page behind the batch, `crc` is the header's own."""

    sequence: int
    commit: int
    place: int
    chain: int
    flags: int
    records: tuple[Record, ...]
    end: int
    crc: int


@functools.cache
def _columns(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q{count}I{count}I{count}s{count}s{count}s")


def pack(
    snapshot: uuid.UUID, sequence: int, commit: int, place: int, chain: int, flags: int, salt: int, runs: Sequence[Run]
) -> tuple[bytes, int]:
    """Return the header of a batch of up to `MOST` grains, and its CRC."""
    if len(runs) == 1:
        first, crcs, sums, masks, added, _, zeroes = runs[0]
        count = len(crcs)
        grains: Sequence[int] = range(first, first + count)
        marks = b"\1" * count if zeroes else bytes(count)
    else:
        grains = [grain for run in runs for grain in range(run.first, run.first + len(run.crcs))]
        count = len(grains)
        crcs = list(itertools.chain.from_iterable([run.crcs for run in runs]))
        sums = list(itertools.chain.from_iterable([run.sums for run in runs]))
        masks = b"".join([run.masks for run in runs])
        added = b"".join([run.added for run in runs])
        marks = b"".join([b"\1" * len(run.crcs) if run.zeroes else bytes(len(run.crcs)) for run in runs])
    head = _HEAD.pack(_MAGIC, snapshot.bytes, sequence, commit, place, chain, flags, count, salt)
    body = (head + _columns(count).pack(*grains, *crcs, *sums, masks, added, marks)).ljust(_USED, b"\0")
    crc = crc32c.crc32c(body)
    return body + _CRC.pack(crc), crc


def unpack(page: bytes | memoryview, snapshot: uuid.UUID, place: int) -> Header | None:
    """Return the header of the batch of a snapshot in page `place` of its log; None if this is none."""
    if bytes(page[:8]) != _MAGIC or len(page) != PAGE:
        return None
    (crc,) = _CRC.unpack_from(page, _USED)
    if crc != crc32c.crc32c(page[:_USED]):
        return None
    _, owner, sequence, commit, at, chain, flags, count, _ = _HEAD.unpack_from(page)
    if owner != snapshot.bytes or at != place or not 0 < count <= MOST:
        return None
    values = _columns(count).unpack_from(page, _HEAD.size)
    masks, added, marks = values[-3:]
    records = []
    end = place + 1
    for number in range(count):
        where = None if marks[number] else end
        end += where is not None
        records.append(
            Record(
                values[number], values[count + number], values[2 * count + number], masks[number], added[number], where
            )
        )
    return Header(sequence, commit, place, chain, flags, tuple(records), end, crc)
