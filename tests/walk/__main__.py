# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.walk --steps 10000 --seed 7`: take that many steps; exit with 1 at the first wrong byte."""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

from tests.walk import walker

_A_WALK = 500  # steps of one daemon


def walk(steps: int, seed: str, directory: Path) -> collections.Counter[str]:
    """Take `steps` steps with a new daemon.  Return how many of each kind.  Raise Wrong, which names seed and step."""
    with walker.Walker(directory, seed) as walking:
        taken = "start"
        for number in range(steps):
            try:
                taken = walking.step()
            except walker.Wrong as wrong:
                where = f"seed {seed}, {walking.setting}, step {number}, after: {taken}"
                raise walker.Wrong(f"{where}: {wrong}") from wrong
        return walking.steps


def main() -> int:
    """Walk and print what was done.  Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.walk", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="the number of steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first walk (default: %(default)s)")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    began, number = time.monotonic(), 0
    while (left := options.steps - counts.total()) > 0:
        with tempfile.TemporaryDirectory(prefix="wolun-walk-") as name:
            try:
                counts += walk(min(left, _A_WALK), f"{options.seed + number}", Path(name))
            except walker.Wrong as wrong:
                sys.stdout.write(f"{wrong}\n")
                return 1
        number += 1
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
        sys.stdout.write(f"{counts.total()} steps in {time.monotonic() - began:.0f} s: {kinds}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
