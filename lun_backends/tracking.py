# SPDX-License-Identifier: Apache-2.0
"""The chunks that a node knows to be preserved in the newest snapshot.

A tracker only saves work.  A chunk in it *is* preserved, so only a commit may add it.  A chunk not in it may be preserved all
the same; an attempt to copy it then costs one refused write.  So an empty tracker is always right.  The union of the trackers
of several nodes would be right, too, if all are about the same snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyroaring

BitMap = pyroaring.BitMap64


class Tracker:
    """A set of chunk numbers below `chunks`.

    `known` is the bitmap itself, for the one place where a method call would cost too much: `chunk in tracker.known`.
    """

    __slots__ = ("chunks", "known")

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.known = pyroaring.BitMap64()

    def __contains__(self, chunk: int) -> bool:
        return chunk in self.known

    def __len__(self) -> int:
        return len(self.known)

    def __iter__(self) -> Iterator[int]:
        return iter(self.known)

    def covers(self, first: int, last: int) -> bool:
        """Return whether every chunk from `first` to `last`, both included, is known to be preserved."""
        return bool(self.known.contains_range(first, last + 1))

    def count(self, first: int, end: int) -> int:
        """Return how many of the chunks of [first, end) are known to be preserved."""
        return int(self.known.range_cardinality(first, end))

    def add(self, chunk: int) -> None:
        """Add a chunk that is preserved."""
        self.known.add(chunk)

    def add_many(self, chunks: Iterable[int]) -> None:
        """Add chunks that are preserved."""
        self.known.update(chunks)

    def add_range(self, first: int, last: int) -> None:
        """Add the chunks from `first` to `last`, both included, which are preserved."""
        self.known.add_range(first, last + 1)
