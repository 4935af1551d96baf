# SPDX-License-Identifier: Apache-2.0
"""The run of many cases on all processors."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Iterator, Sequence

from tests.powercut import replay, workload

STATES_PER_CASE = 1500


def run(
    states: int, seed: int, scenarios: Sequence[workload.Scenario] = workload.SCENARIOS, jobs: int | None = None
) -> Iterator[tuple[workload.Scenario, int, replay.Outcome]]:
    """Try at least `states` states.  Yield (scenario, seed, outcome) of each case; case *n* has the seed `seed + n`."""
    jobs = jobs or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    tried = number = 0
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running: dict[concurrent.futures.Future[replay.Outcome], tuple[workload.Scenario, int]] = {}
        while tried < states or running:
            while tried < states and len(running) < jobs * 2:
                scenario = scenarios[number % len(scenarios)]
                future = pool.submit(replay.run_case, scenario, seed + number, STATES_PER_CASE)
                running[future] = (scenario, seed + number)
                number += 1
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                tried += outcome.states
                yield (*running.pop(future), outcome)


def describe(failure: replay.Failure) -> str:
    """Return the failure, and how to repeat it (with writer threads, no two logs are the same)."""
    return (
        f"{failure.problem}\n  cut {failure.cut} after {failure.after}, {failure.choice}\n"
        f"  again: python -m tests.powercut --scenario {failure.scenario} --seed {failure.seed} --states 1"
    )
