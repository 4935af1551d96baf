# SPDX-License-Identifier: Apache-2.0
"""`wolun shell`: one command, a script, or a person at a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from target.control import client
from target.shell import console, root


def run(asked: client.Client, command: str, *, dry_run: bool, keep_going: bool) -> int:
    """Run what is asked for; the exit status: 0 if everything was done."""
    asked.dry_run = dry_run
    person = not command and sys.stdin.isatty()
    shell = console.Shell(asked, _preferences(person))
    root.Root(shell)
    if command:
        return 0 if shell.run_line(command) else 1
    if not person:
        return 0 if shell.run_lines(sys.stdin, keep_going=keep_going) else 1
    try:
        status = asked.status()
    except client.Failed as failed:
        console.explain(console.Refused(failed.refusal.message, failed.refusal.remedy))
        return 1
    console.say(
        f"wolun {status.version}, {status.target} on {status.portal}.  `help` explains, TAB completes, `exit` leaves."
    )
    shell.run_terminal()
    return 0


def _preferences(person: bool) -> Path | None:
    """Where bookmarks and history are; made only for a person."""
    directory = Path(os.environ.get("WOLUN_SHELL_DIR") or "~/.wolun").expanduser()
    return directory if person or directory.is_dir() else None
