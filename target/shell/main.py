# SPDX-License-Identifier: Apache-2.0
"""`wolun shell`: run one command, a script, or an interactive session."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from target.control import client
from target.shell import console, root


def run(asked: client.Client, command: str, *, dry_run: bool, keep_going: bool) -> int:
    """Run the command, the script or the session.  Return the exit status: 0 if everything was done."""
    asked.dry_run = dry_run
    asked.way = "shell"
    interactive = not command and sys.stdin.isatty()
    shell = console.Shell(asked, _preferences(interactive))
    root.Root(shell)
    if command:
        return 0 if shell.run_line(command) else 1
    if not interactive:
        return 0 if shell.run_lines(sys.stdin, keep_going=keep_going) else 1
    try:
        status = asked.status()
    except client.Failed as failed:
        console.explain(console.Refused.because(failed.refusal))
        return 1
    console.say(
        f"wolun {status.version}, {status.target} on {status.portal}.  `help` explains, TAB completes, `exit` leaves."
    )
    shell.run_terminal()
    return 0


def _preferences(interactive: bool) -> Path | None:
    """Return the directory for bookmarks and history; it is only created for an interactive session."""
    directory = Path(os.environ.get("WOLUN_SHELL_DIR") or "~/.wolun").expanduser()
    return directory if interactive or directory.is_dir() else None
