# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench [PART ...]`: measure wolun against its peers, both in the same run, and print ratios.

Ratios can be compared between machines, absolute figures cannot.  Run it on an otherwise idle machine.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.bench import common, measure, rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, type=click.Choice(list(rows.PARTS)), metavar="[PART]...")
@click.option("--rounds", default=5, show_default=True, help="Counted rounds of each side.")
@click.option("--seconds", default=4, show_default=True, help="Length of a timed load.")
@click.option("--writes", default=100_000, show_default=True, help="4 KiB writes in a counted load.")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="The directory for images (needs 8 GiB)."
)
@click.option(
    "--json", "as_json", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows to this file, too."
)
def main(
    parts: tuple[str, ...], rounds: int, seconds: int, writes: int, directory: Path | None, as_json: Path | None
) -> None:
    """Measure all PARTs, or the given ones, and print one row each: our rate, the peer's, the ratio, the bar."""
    console = Console(width=None if Console().is_terminal else 190)
    for line in rows.machine():
        console.print(line, highlight=False)
    measured: list[measure.Row] = []
    for part in parts or rows.PARTS:
        base = Path(tempfile.mkdtemp(prefix="wolun-bench-", dir=directory))
        try:
            for row in rows.PARTS[part](common.Settings(base, rounds, seconds, writes)):
                console.print(f"{row.work}: {row.result} (bar {row.bar})", highlight=False)
                measured.append(row)
        finally:
            shutil.rmtree(base)
    table = Table("work", "wolun: median (range)", "peer: median (range)", "result", "bar", "met")
    for row in measured:
        met = "" if row.met is None else "yes" if row.met else "NO"
        table.add_row(row.work, row.ours, row.peer, row.result, row.bar, met)
    console.print(table)
    if as_json is not None:
        as_json.write_text(json.dumps([dataclasses.asdict(row) for row in measured], indent=2) + "\n")


if __name__ == "__main__":
    main()
