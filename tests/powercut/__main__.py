# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.powercut --states 1000000 --seed 7`: try that many states; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import sys
import time

from tests.powercut import campaign, replay, workload


def main() -> int:
    """Run the cases and print broken promises.  Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description=__doc__)
    parser.add_argument(
        "--states", type=int, default=20_000, help="the least number of states to try (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="the seed of the first case; each further case adds 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--scenario", choices=[scenario.name for scenario in workload.SCENARIOS], help="try this scenario only"
    )
    parser.add_argument("--jobs", type=int, help="the number of processes (default: one for each processor)")
    options = parser.parse_args()
    scenarios = (replay.find(options.scenario),) if options.scenario else workload.SCENARIOS
    states = failures = 0
    began = time.monotonic()
    for scenario, seed, outcome in campaign.run(options.states, options.seed, scenarios, options.jobs):
        states += outcome.states
        failures += len(outcome.failures)
        sys.stdout.write(f"\r{states} states, {failures} broken promises, {states / (time.monotonic() - began):.0f}/s ")
        for failure in outcome.failures:
            sys.stdout.write(f"\n{scenario.name}, seed {seed}: {campaign.describe(failure)}\n")
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
