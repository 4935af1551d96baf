# SPDX-License-Identifier: Apache-2.0
"""Pairs of measurements: two sides in turn (A B A B ...), with the median of each side and of the neighbours' ratios.

A machine's speed drifts, but two neighbouring rounds run at about the same speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report; `bar` is the text of the goal, and `met` is None if the figure is only reported."""

    work: str
    ours: str
    peer: str
    result: str
    bar: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Rates of both sides, round by round."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Return the median of the rounds' ratios, ours over the peer's."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.ours, self.peer, strict=True))

    def row(self, work: str, *, unit: str, at_least: float | None, peer: str) -> Row:
        """Return the report's line for a rate where more is better."""
        met = None if at_least is None else self.ratio >= at_least
        return Row(
            work,
            f"{statistics.median(self.ours):,.0f} {unit} ({min(self.ours):,.0f}-{max(self.ours):,.0f})",
            f"{peer} {statistics.median(self.peer):,.0f} ({min(self.peer):,.0f}-{max(self.peer):,.0f})",
            f"{self.ratio:.2f}x",
            "report" if at_least is None else f">= {at_least}x",
            met,
        )


def alternate(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> Pair:
    """Run both sides `rounds` times in turn, after one uncounted warm-up of each; the first side alternates."""
    ours()
    peer()
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        for side, results in ((ours, mine), (peer, theirs))[:: 1 if number % 2 == 0 else -1]:
            results.append(side())
    return Pair(tuple(mine), tuple(theirs))
