# SPDX-License-Identifier: Apache-2.0
"""Histograms of how long the commands of a unit take, by kind of command, cheap enough for the hot path.

A bucket's bound is a power of two in microseconds, so that the bucket of a duration is the number of its bits.  Every
32nd command that runs at once is measured, and counts for 32.  Each command that has to wait is measured: from the first try
on, with its wait for a worker, for a disk or for a limit.  Counts may be a little low, like those of `logical_unit.Counters`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

SHIFT: Final = 4
"""The first bucket is for durations below 16 microseconds, which is faster than a command can be."""
BUCKETS: Final = 22
"""Then come 32, 64 and so on, up to 33 seconds; the last bucket has no bound."""
SAMPLE: Final = 32
"""One of so many commands that run at once is measured.  A power of two."""

KINDS: Final = {
    "read": frozenset({0x08, 0x28, 0x88, 0xA8}),
    "write": frozenset({0x0A, 0x2A, 0x8A, 0xAA, 0x2E, 0x8E, 0xAE, 0x89, 0x9C, 0x41, 0x93, 0x7F}),
    "sync": frozenset({0x35, 0x91}),
    "unmap": frozenset({0x42}),
    "copy": frozenset({0x83}),
}
"""The opcodes of each kind; all others are `other`."""
OTHER: Final = "other"


class Row:
    """The histogram of one kind of command."""

    __slots__ = ("counts", "microseconds")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.microseconds = 0

    def add(self, seconds: float, weight: int) -> None:
        """Count `weight` commands that took so long."""
        taken = int(seconds * 1_000_000)
        self.microseconds += taken * weight
        bucket = (taken >> SHIFT).bit_length()
        self.counts[bucket if bucket < BUCKETS else -1] += weight

    def buckets(self) -> Iterator[tuple[float | None, int]]:
        """Yield (upper bound in seconds, the number of commands up to it); the last bound is None: all of them."""
        for index, total in enumerate(itertools.accumulate(list(self.counts))):
            yield (None if index == BUCKETS - 1 else (1 << index + SHIFT) / 1_000_000), total


class Latencies:
    """The histograms of a unit: by opcode for the hot path, by kind for reports."""

    __slots__ = ("by_kind", "by_opcode")

    def __init__(self) -> None:
        self.by_kind = {kind: Row() for kind in (*KINDS, OTHER)}
        of = {opcode: self.by_kind[kind] for kind, opcodes in KINDS.items() for opcode in opcodes}
        self.by_opcode: Sequence[Row] = [of.get(opcode, self.by_kind[OTHER]) for opcode in range(256)]
