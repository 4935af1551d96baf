# SPDX-License-Identifier: Apache-2.0
"""`make conformance`: libiscsi's suite against a volume of wolun and a file behind tgtd, side by side.

The program prints the tests that fail or are skipped at either target, and the sums.  The exit code is 1 if a result of
wolun differs from expected.yaml.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests import daemon, peers
from tests.bench import servers
from tests.conformance import suite

SIZE = 64 << 20
VOLUME = f"  - {{name: vol, lun: 0, size: {SIZE}, physical_block_size: 128KiB}}\n"  # see expected.yaml


def _all(url: str) -> list[suite.Result]:
    results = []
    for family in suite.FAMILIES:
        for result in suite.run(url, family):
            results.append(suite.Result(f"{family}.{result.name}", result.outcome, result.detail))
    return results


def main() -> int:
    """Run the suite against both targets; return the exit code."""
    console = Console()
    peers.require("tgtd")
    with tempfile.TemporaryDirectory() as directory:
        with daemon.Daemon(Path(directory), VOLUME) as wolun:
            ours = _all(wolun.url(0))
        backing = Path(directory) / "tgtd.img"
        with backing.open("wb") as file:
            file.truncate(SIZE)
        with servers.tgtd(Path(directory), backing) as peer:
            theirs = {result.name: result for result in _all(peer.url)}
    table = Table("test", "wolun", "tgtd", "reason")
    for result in ours:
        other = theirs.pop(result.name, suite.Result(result.name, suite.Outcome.FAILED, "did not run"))
        if {result.outcome, other.outcome} != {suite.Outcome.PASSED}:
            table.add_row(result.name, result.outcome.value, other.outcome.value, result.detail or other.detail)
            theirs[result.name] = other
        theirs[result.name] = other
    console.print(table)
    for name, results in (("wolun", ours), ("tgtd", list(theirs.values()))):
        counts = Counter(result.outcome for result in results)
        console.print(
            f"{name:6} {len(results)} tests: "
            + ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in suite.Outcome)
        )
    deviations = suite.deviations(
        [suite.Result(result.name.partition(".")[2], result.outcome, result.detail) for result in ours], "primary"
    )
    for line in deviations:
        console.print(f"wolun: {line}")
    return 1 if deviations else 0


if __name__ == "__main__":
    sys.exit(main())
