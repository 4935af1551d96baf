# SPDX-License-Identifier: Apache-2.0
"""Which chunks a node knows to be preserved in the newest snapshot.

A tracker only saves work.  A chunk in it *is* preserved (so nothing but a commit may add it); a chunk not in it may
be preserved all the same, and trying to copy it then costs one refused write.  An empty tracker is therefore always
right, and so is the union of the trackers of several nodes, as long as all are about the same snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyroaring

BitMap = pyroaring.BitMap64


class Tracker:
    """A set of chunk numbers below `chunks`.

    `known` is the bitmap itself, for the one place where a method call would be too dear: `chunk in tracker.known`.
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
        """Whether every chunk from `first` to `last`, both included, is known preserved."""
        return bool(self.known.contains_range(first, last + 1))

    def count(self, first: int, end: int) -> int:
        """How many of the chunks from `first` up to but without `end` are known preserved."""
        return int(self.known.range_cardinality(first, end))

    def add(self, chunk: int) -> None:
        """One more chunk is preserved."""
        self.known.add(chunk)

    def add_many(self, chunks: Iterable[int]) -> None:
        """These chunks are preserved."""
        self.known.update(chunks)

    def add_range(self, first: int, last: int) -> None:
        """The chunks from `first` to `last`, both included, are preserved."""
        self.known.add_range(first, last + 1)
