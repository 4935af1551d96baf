# SPDX-License-Identifier: Apache-2.0
"""The grains that a node knows to be preserved in the newest snapshot.

A *grain* is 4 KiB of a LUN: bytes `n * GRAIN` to `(n + 1) * GRAIN`; the LUN's last grain may be shorter.  Every
preservation covers whole grains, and no write changes a grain before all of it is preserved.  So a grain that a write-once
device has only in part has not changed since.  The rest of the code rests on this: `GRAIN` can never become larger.

A tracker only saves work.  A grain in it *is* preserved, so only a commit may add it.  A grain not in it may be preserved all
the same; an attempt to copy it then costs one refused write.  So an empty tracker is always right.  The union of the trackers
of several nodes would be right, too, if all are about the same snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyroaring

from lun_backends import block_device
from lun_backends.block_device import ExtentKind

GRAIN = 4096
"""The bytes of a grain: the smallest unit of copy-on-write, of tracking and of differences."""
SHIFT = GRAIN.bit_length() - 1

BitMap = pyroaring.BitMap64

Grains = tuple[int, int]
"""Grains [first, end)."""


class Tracker:
    """A set of grain numbers below `grains`.

    `known` is the bitmap itself, for the one place where a method call would cost too much: `grain in tracker.known`.
    """

    __slots__ = ("grains", "known")

    def __init__(self, grains: int) -> None:
        self.grains = grains
        self.known = pyroaring.BitMap64()

    def __contains__(self, grain: int) -> bool:
        return grain in self.known

    def __len__(self) -> int:
        return len(self.known)

    def __iter__(self) -> Iterator[int]:
        return iter(self.known)

    def covers(self, first: int, last: int) -> bool:
        """Return whether every grain from `first` to `last`, both included, is known to be preserved."""
        return bool(self.known.contains_range(first, last + 1))

    def count(self, first: int, end: int) -> int:
        """Return how many of the grains of [first, end) are known to be preserved."""
        return int(self.known.range_cardinality(first, end))

    def add(self, grain: int) -> None:
        """Add a grain that is preserved."""
        self.known.add(grain)

    def add_all(self, ranges: Iterable[Grains]) -> None:
        """Add the grains of the [first, end) ranges, which are preserved."""
        add_to(self.known, ranges)

    def add_range(self, first: int, last: int) -> None:
        """Add the grains from `first` to `last`, both included, which are preserved."""
        self.known.add_range(first, last + 1)


def add_to(grains: BitMap, ranges: Iterable[Grains]) -> BitMap:
    """Add [first, end) ranges to a set, and return the set."""
    singles: list[int] = []
    for first, end in ranges:
        if end - first == 1:
            singles.append(first)
        else:
            grains.add_range(first, end)
    grains.update(singles)
    return grains


def runs(grains: BitMap) -> Iterator[Grains]:
    """Yield a set as [first, end) ranges, in order, neighbours joined.  The set must not change meanwhile."""
    if not grains:
        return
    end, last = grains.min(), grains.max()
    gaps = grains.flip(end, last + 2)  # one behind the last number, too
    while end <= last:
        first = grains.next_set_bit(end)
        end = gaps.next_set_bit(first)
        yield first, end


def bytes_of(grains: BitMap, size: int) -> Iterator[tuple[int, int]]:
    """Yield the (offset, length) of the grains of a LUN of `size` bytes, in order, neighbours joined."""
    for first, end in runs(grains):
        if (offset := first << SHIFT) < size:
            yield offset, min(end << SHIFT, size) - offset


def count(size: int) -> int:
    """Return the number of grains of a LUN of `size` bytes."""
    return -(-size // GRAIN)


def touched(device: block_device.BlockDevice) -> Iterator[Grains]:
    """Yield [first, end) ranges of the grains of which a write-once device has any block, in order; they may overlap."""
    for offset, end in _written(device):
        yield offset >> SHIFT, -(-end >> SHIFT)


def whole(device: block_device.BlockDevice) -> Iterator[Grains]:
    """Yield [first, end) ranges of the grains that a write-once device has as a whole, in order."""
    for offset, end in _written(device):
        first, stop = -(-offset >> SHIFT), count(end) if end == device.size else end >> SHIFT
        if stop > first:
            yield first, stop


def _written(device: block_device.BlockDevice) -> Iterator[tuple[int, int]]:
    """Yield [offset, end) in bytes of what is written, neighbours joined.

    An extent may be reported in two parts, if the second part was written meanwhile.
    """
    begin = stop = 0
    for extent in device.extents(0, device.size):
        if extent.kind is ExtentKind.BLANK:
            continue
        if extent.offset != stop:
            if stop > begin:
                yield begin, stop
            begin = extent.offset
        stop = extent.offset + extent.length
    if stop > begin:
        yield begin, stop
