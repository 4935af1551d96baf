# SPDX-License-Identifier: Apache-2.0
"""The page `config/first-day.md`, run in a fresh root of Debian 12: every command, and every line that it prints.

Times, sizes that depend on the machine, and identities are masked on both sides.  A line `...` stands for any lines.

The commands run in namespaces of their own, without a network; only those of apt-get reach the registry.  No systemd runs
in the root, so `root.served` starts the daemon as the unit would, after the installation.  The night at the heading "The
next day" is a stop and a start of the daemon: no clock is moved.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.packaging import root

PAGE = Path(__file__).resolve().parents[2] / "config/first-day.md"
MASKS = (
    (r"[0-9]+(\.[0-9]+)? (us|ms|s|min|h)\b", "TIME"),
    (r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} UTC", "MOMENT"),
    (r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z", "MOMENT"),
    (r"process [0-9]+", "process PID"),
    (r"[0-9.]+ [TG]iB of [0-9.]+ [TG]iB free", "SPACE free"),
    (r"[0-9.]+ [KM]iB +[0-9.<]+ %", "SPACE"),
    (r"debugfs [0-9.]+ \(.*\)", "debugfs VERSION"),
)


@dataclass(frozen=True)
class Step:
    """A command of the page, its output there, and the heading above it."""

    heading: str
    command: str
    output: str


def steps(page: str) -> Iterator[Step]:
    """Yield the steps of a page."""
    heading = ""
    for part in re.finditer(r"^## ([^\n]*)$|^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        heading = part[1] or heading
        for command in re.split(r"^# ", part[2] or "", flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            yield Step(heading, line, output)


def masked(text: str) -> str:
    """Return the text without what differs from run to run."""
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def fits(printed: str, page: str) -> bool:
    """Return whether a command printed what the page says."""
    pattern = re.escape(masked(page)).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, masked(printed), re.DOTALL) is not None


def test_a_line_that_differs_is_found() -> None:
    assert fits("held for 3.1 ms\nLUN 1\n", "held for 540 us\nLUN 1\n")
    assert not fits("held for 3.1 ms\nLUN 2\n", "held for 540 us\nLUN 1\n")
    assert not fits("LUN 1\nand more\n", "LUN 1\n")
    assert fits("Reading ...\nSetting up wolun\n", "...\n")


def test_page_is_what_happens(base: root.Root, debs: Path, cache: Path, tmp_path: Path) -> None:
    fresh = root.Root(tmp_path / "root", cache)
    subprocess.run(["cp", "-a", "--reflink=auto", base.directory, fresh.directory], check=True)
    (package,) = debs.glob("wolun_*.deb")
    subprocess.run(["cp", package, fresh.directory / "root/wolun.deb"], check=True)
    days = list(steps(PAGE.read_text()))
    assert len(days) > 12
    first = days.pop(0)
    assert first.command.startswith("apt-get install")
    done = fresh.run(
        f"cd /root && DEBIAN_FRONTEND=noninteractive {first.command} systemd-standalone-sysusers", network=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with fresh.shell() as shell, contextlib.ExitStack() as running:
        shell.good("cd /root")
        running.enter_context(root.served(shell))
        today = False
        for step in days:
            if step.heading == "The next day" and not today:
                today = True
                running.close()
                running.enter_context(root.served(shell))
            status, printed = shell.run(step.command)
            assert status == 0, f"{step.command}: {printed}"
            assert fits(printed, step.output), f"{step.command}\n{printed}"
