# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.powercut --states 1000000 --seed 7`: try that many states; exits with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import sys
import time

from tests.powercut import campaign, replay, workload


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description=__doc__)
    parser.add_argument("--states", type=int, default=20_000, help="at least so many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first case; the next has the next (default: %(default)s)"
    )
    parser.add_argument("--scenario", choices=[scenario.name for scenario in workload.SCENARIOS], help="only this one")
    parser.add_argument("--jobs", type=int, help="processes (default: one for each processor)")
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
