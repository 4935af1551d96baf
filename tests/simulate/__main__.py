# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.simulate --seeds 1000000`: simulate that many clusters; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Iterator

from lun_backends.cluster.guards import Guards
from tests.simulate import wires, world

_CHUNK = 250


def _some(job: tuple[int, int, str | None]) -> list[str]:
    first, count, mutant = job
    wrong = []
    for seed in range(first, first + count):
        try:
            world.run(seed, without(mutant))
        except wires.Wrong as problem:
            wrong.append(str(problem))
    return wrong


def without(mutant: str | None) -> Guards:
    """Return the guards of the protocol without that one."""
    return Guards(**{mutant: False}) if mutant else Guards()


def campaign(
    seeds: int, first: int = 0, mutant: str | None = None, jobs: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Run the seeds from `first` on.  Yield how many ran and the broken promises among them, chunk by chunk."""
    work = [(at, min(_CHUNK, first + seeds - at), mutant) for at in range(first, first + seeds, _CHUNK)]
    with multiprocessing.Pool(jobs) as pool:
        for (_, count, _), wrong in zip(work, pool.imap(_some, work), strict=True):
            yield count, wrong


def main() -> int:
    """Run the campaign and print broken promises.  Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--jobs", type=int, help="the number of processes (default: one for each processor)")
    parser.add_argument(
        "--without",
        choices=[guard.name for guard in dataclasses.fields(Guards)],
        help="take this guard out, and stop when that is found",
    )
    options = parser.parse_args()
    began = time.monotonic()
    ran = broken = 0
    for count, wrong in campaign(options.seeds, options.seed, options.without, options.jobs):
        ran += count
        broken += len(wrong)
        sys.stdout.writelines(f"\n{problem}" for problem in wrong)
        sys.stdout.write(f"\r{ran} seeds, {broken} broken promises, {ran / (time.monotonic() - began):.0f}/s ")
        sys.stdout.flush()
        if broken and options.without:
            break
    sys.stdout.write("\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
