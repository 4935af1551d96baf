# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.model`: search all states of the cluster protocol for a wrong snapshot, and let each mutant be found.

Without options the search is for three nodes, two blocks and two snapshots: 28 million states for 8h on LIO.  It begins with
deletions, rollbacks, losses and expulsions (`jobs.pml`), which take a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.model import jobs, spin


def _report(variant: spin.Variant, outcome: spin.Outcome) -> bool:
    verdict = "all states are right" if outcome.right else f"wrong snapshot after {len(outcome.trail)} steps"
    sys.stdout.write(
        f"{variant}: {verdict}; {outcome.states:,} states, {outcome.seconds:.1f} s, {outcome.megabytes:.0f} MB"
        f"{'' if outcome.right == variant.right else '  UNEXPECTED'}\n"
    )
    sys.stdout.flush()
    return outcome.right == variant.right


def _search_jobs(directory: Path) -> bool:
    """Search the model of the jobs, with and without its guards.  Return whether every result was as expected."""
    expected = True
    for work in jobs.WORKS:
        verifier = jobs.Verifier(directory / str(work), work)
        for mutant in ("NONE", *work.mutants):
            outcome = verifier.run(mutant)
            right = outcome.right == (mutant == "NONE")
            verdict = "all states are right" if outcome.right else "a promise was broken"
            sys.stdout.write(
                f"{work}, {mutant}: {verdict}; {outcome.states:,} states{'' if right else '  UNEXPECTED'}\n"
            )
            sys.stdout.flush()
            expected &= right
    return expected


def main() -> int:
    """Run the searches and print their results.  Return 1 if one was not as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--nodes", type=int, choices=(2, 3), default=3, help="default: %(default)s")
    parser.add_argument("--blocks", type=int, choices=(1, 2), default=2, help="default: %(default)s")
    parser.add_argument("--megabytes", type=int, default=7000, help="stop at this much memory (default: %(default)s)")
    parser.add_argument("--kind", type=int, choices=(7, 8), help="only this type of reservation")
    parser.add_argument("--device", choices=("lio", "standard", "overlap"), help="only this device")
    parser.add_argument(
        "--mutant", choices=list(spin.MUTANTS), help="search this mutant with two nodes, and print the way to its error"
    )
    options = parser.parse_args()
    device = {"lio": spin.LIO, "standard": spin.STANDARD, "overlap": spin.OVERLAP, None: None}[options.device]

    def wanted(variant: spin.Variant) -> bool:
        return options.kind in (None, variant.kind) and device in (None, variant.device)

    with tempfile.TemporaryDirectory() as directory:
        expected = options.mutant is not None or _search_jobs(Path(directory))
        small = {
            paths: spin.Verifier(Path(directory, f"small{paths}"), blocks=3 - paths, paths=paths) for paths in (1, 2)
        }
        for variant in filter(wanted, spin.mutants(everywhere=True)):
            if options.mutant in (None, variant.mutant):
                outcome = small[variant.paths].run(variant)
                expected &= _report(variant, outcome)
                if options.mutant:
                    sys.stdout.writelines(f"  {step}\n" for step in outcome.trail)
        if options.mutant is None:
            for variant in filter(wanted, (*spin.OVERLAPPING, *spin.MULTIPATH)):
                expected &= _report(variant, small[variant.paths].run(variant))
            large = spin.Verifier(Path(directory, "large"), options.nodes, options.blocks, options.megabytes)
            for variant in filter(wanted, spin.VARIANTS):
                expected &= _report(variant, large.run(variant))
    return 0 if expected else 1


if __name__ == "__main__":
    sys.exit(main())
