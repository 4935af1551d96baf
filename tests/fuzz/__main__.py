# SPDX-License-Identifier: Apache-2.0
"""`make fuzz`: fuzz every target for its share of `--seconds`, starting from the kept corpus.

New inputs stay in var/fuzz, where the next run starts.  An input that breaks a target stays there as well; the output
names it.  `--keep` adds to the kept corpus those inputs that reach new code.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from tests.fuzz import targets

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("corpus")
FOUND = ROOT / "var" / "fuzz"
MAX_LENGTH = 2048
TIMEOUT = 20  # seconds for one input
MEMORY_MIB = 1024


def _command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.one", name, f"-max_len={MAX_LENGTH}", *arguments]


@click.command()
@click.option("--seconds", default=600, show_default=True, help="For all targets together.")
@click.option("--keep", is_flag=True, help="Add the new inputs to the kept corpus.")
@click.argument("names", nargs=-1, type=click.Choice(list(targets.TARGETS)))
def main(seconds: int, keep: bool, names: tuple[str, ...]) -> None:
    """Fuzz the named targets, or all of them."""
    chosen = names or tuple(targets.TARGETS)
    broken = []
    for name in chosen:
        kept, found = KEPT / name, FOUND / name
        kept.mkdir(parents=True, exist_ok=True)
        found.mkdir(parents=True, exist_ok=True)
        limits = (
            f"-max_total_time={max(1, seconds // len(chosen))}",
            f"-timeout={TIMEOUT}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-artifact_prefix={FOUND}/{name}-",
            "-print_final_stats=1",
            "-verbosity=0",
        )
        click.echo(f"{name}:")
        if subprocess.run(_command(name, *limits, str(found), str(kept)), cwd=ROOT).returncode:
            broken.append(name)
        elif keep:
            subprocess.run(_command(name, "-merge=1", str(kept), str(found)), cwd=ROOT, check=True)
    if broken:
        raise click.ClickException(f"broken: {', '.join(broken)}; the inputs are in {FOUND}")


if __name__ == "__main__":
    main()
