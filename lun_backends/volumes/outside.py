# SPDX-License-Identifier: Apache-2.0
"""The blocks of a snapshot that an initiator wrote to a write-once LUN (`stores.outside`).

A snapshot reads a block from its own write-once LUN, or from the next newer one that has it.  So a mark counts for a
snapshot if it is on one of these, and no older one of them has the whole chunk.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import pyroaring

from lun_backends.block_device import ExtentKind
from lun_backends.volumes.snapshot import Snapshot
from lun_backends.write_once import WriteOnce


@dataclass(frozen=True, slots=True)
class Written:
    """`length` bytes from byte `offset` on, whole chunks; `kept_in` is the UUID of the snapshot that stores them."""

    offset: int
    length: int
    kept_in: uuid.UUID


def found(needed: Sequence[Snapshot], chunk_size: int) -> list[Written]:
    """Return the extents of the snapshot `needed[0]` that initiators wrote, in order of address.

    `needed` are this snapshot and all newer ones.

    A lost snapshot counts as one without marks.  Raises DeviceClosed, SnapshotInvalid.
    """
    size = needed[0].view.size
    older: list[WriteOnce] = []
    kept_in: dict[int, uuid.UUID] = {}
    for snapshot in needed:
        device = snapshot.write_once
        if not isinstance(device, WriteOnce):
            continue
        for chunk in device.chunks_written_outside - pyroaring.BitMap64(kept_in):
            if chunk * chunk_size < size and not any(_has_all(other, chunk, chunk_size) for other in older):
                kept_in[chunk] = snapshot.uuid
        older.append(device)
    extents: list[Written] = []
    for chunk in sorted(kept_in):
        offset, uuid_ = chunk * chunk_size, kept_in[chunk]
        length = min(chunk_size, size - offset)
        if extents and extents[-1].kept_in == uuid_ and extents[-1].offset + extents[-1].length == offset:
            last = extents.pop()
            offset, length = last.offset, last.length + length
        extents.append(Written(offset, length, uuid_))
    return extents


def _has_all(device: WriteOnce, chunk: int, chunk_size: int) -> bool:
    """Return whether the write-once LUN has every block of a chunk."""
    offset = chunk * chunk_size
    length = min(chunk_size, device.size - offset)
    return length > 0 and all(extent.kind is ExtentKind.DATA for extent in device.extents(offset, length))


def sentence(extents: Sequence[Written], name: str, block_size: int) -> str:
    """Return a sentence that names the blocks of snapshot `name` that initiators wrote, for a refusal."""
    first, last = extents[0].offset // block_size, (extents[0].offset + extents[0].length) // block_size - 1
    more = f" and {len(extents) - 1} more extents" if len(extents) > 1 else ""
    return (
        f"initiators wrote to blocks {first} to {last}{more} of {name!r} in a write-once LUN, so they may not be what the "
        "volume held"
    )
