# SPDX-License-Identifier: Apache-2.0
"""What changed between two moments of a volume: what an incremental backup reads.

A chunk that changed after a moment was preserved in the snapshot that was newest when it first did (rules 1 and 8, lun_backends/README.md).  So what
changed from snapshot *a* to snapshot *b* is in the write-once devices from *a* up to but without *b*, and nothing else need
be asked: `changed` costs what was preserved, not what the volume could hold.  It may name a chunk that is the same after
all - written with what it held, or written back - and never leaves one out.  `differing` compares the content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyroaring

from lun_backends import block_device
from lun_backends.volumes import errors, snapshot, volume

GRAIN = 4096
"""Bytes that `differing` tells apart."""
_STEP = 1 << 20  # bytes compared at a time
_COARSE = 1 << 16

Range = tuple[int, int]
"""(offset, length) in bytes."""


class WrongOrder(errors.VolumeError):
    """The second snapshot is not younger than the first."""


def changed(owner: volume.Volume, since: str, to: str | None) -> list[Range]:
    """What may have changed from snapshot `since` to snapshot `to`, or to now: in order, merged, whole chunks but at the end.
    What the volume gained in size counts as changed.

    Raises NoSuchSnapshot, WrongOrder, VolumeError, SnapshotInvalid, MediumError, DeviceClosed.
    """
    first, last = owner.snapshot(since), None if to is None else owner.snapshot(to)
    while True:
        links = _between(owner, first, last)
        size = owner.device.size if last is None else last.view.size
        chunks = pyroaring.BitMap()
        try:
            for each in links:
                for extent in each.write_once.extents(0, each.write_once.size):
                    if extent.kind is not block_device.ExtentKind.BLANK:
                        end = extent.offset + extent.length
                        chunks.add_range(extent.offset // owner.chunk_size, -(-end // owner.chunk_size))
        except block_device.DeviceClosed:
            # A snapshot in between was deleted; what it had is in the next older one now.
            if all(each in owner.snapshots for each in links):
                raise
            continue
        if last is None and owner.rolling_back_to is not None:  # what the primary is still to get was not preserved yet
            reason = f"the volume is being rolled back to {owner.rolling_back_to.name!r}"
            raise errors.VolumeError(owner.name, reason, "wait until that is done")
        if last is None:
            chunks.update(owner.unsettled)  # what a rollback has yet to change, and to preserve
        known = first.view.size
        if size > known:
            chunks.add_range(known // owner.chunk_size, -(-size // owner.chunk_size))
        return list(_ranges(chunks, owner.chunk_size, size))


def _between(
    owner: volume.Volume, first: snapshot.Snapshot, last: snapshot.Snapshot | None
) -> tuple[snapshot.Snapshot, ...]:
    """The snapshots from `first` up to but without `last`; all from `first` on if that is None."""
    snapshots = owner.snapshots
    for each in (first, last):
        if each is not None and (each not in snapshots or each.deleting):
            raise errors.NoSuchSnapshot(owner.name, f"{each.name!r} is being deleted", "name another one")
        if each is not None and each.invalid_reason:
            raise block_device.SnapshotInvalid(each.invalid_reason)
    start = snapshots.index(first)
    end = len(snapshots) if last is None else snapshots.index(last)
    if last is not None and end < start:
        raise WrongOrder(
            owner.name, f"{last.name!r} is older than {first.name!r}", "name the older one first, then the younger"
        )
    return snapshots[start:end]


def _ranges(chunks: pyroaring.BitMap, chunk_size: int, size: int) -> Iterator[Range]:
    start = end = 0
    for chunk in chunks:
        if chunk != end:
            if end > start:
                yield start * chunk_size, (end - start) * chunk_size
            start = chunk
        end = chunk + 1
    length = min(end * chunk_size, size) - start * chunk_size
    if length > 0:
        yield start * chunk_size, length


def differing(
    old: block_device.BlockDevice, new: block_device.BlockDevice, ranges: Iterable[Range]
) -> Iterator[tuple[int, list[Range]]]:
    """Of `ranges`, in order, what reads differently on the two devices: (bytes compared, what of them differs, merged within)
    step by step.  What lies beyond the end of `old` differs.  Raises what reading raises.
    """
    ours, theirs = memoryview(bytearray(_STEP)), memoryview(bytearray(_STEP))
    for begin, whole in ranges:
        for offset in range(begin, begin + whole, _STEP):
            length = min(_STEP, begin + whole - offset)
            known = max(0, min(length, old.size - offset))
            found: list[Range] = []
            if known:
                old.readv(offset, [ours[:known]])
                new.readv(offset, [theirs[:known]])
                found = _compare(ours[:known], theirs[:known], offset)
            if known < length:
                found.append((offset + known, length - known))
            yield length, merged(found)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Neighbours joined; the ranges are in order."""
    found: list[Range] = []
    for offset, length in ranges:
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    return found


def _compare(ours: memoryview, theirs: memoryview, offset: int) -> list[Range]:
    if bytes(ours) == bytes(theirs):
        return []
    found = []
    for coarse in range(0, len(ours), _COARSE):
        left, right = bytes(ours[coarse : coarse + _COARSE]), bytes(theirs[coarse : coarse + _COARSE])
        if left != right:
            for start in range(0, len(left), GRAIN):
                piece = left[start : start + GRAIN]
                if piece != right[start : start + GRAIN]:
                    found.append((offset + coarse + start, len(piece)))
    return found
