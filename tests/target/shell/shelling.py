# SPDX-License-Identifier: Apache-2.0
"""Functions that run lines of `wolun shell` against a daemon of a test."""

from __future__ import annotations

import contextlib
import io
import subprocess

from target.configuration import reader, settings
from target.control import client
from target.shell import main
from tests import daemon


def program(served: daemon.Daemon, *words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run `wolun shell` in a process of its own."""
    return subprocess.run(
        [daemon.PROGRAM, "--state-dir", served.state, "shell", *words],
        input=script, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def shell(served: daemon.Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in this process, which is faster."""
    asked = client.Client(served.state)
    dry_run = words[0] == "--dry-run"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.run(asked, " ".join(words[dry_run:]), dry_run=dry_run, keep_going=False)
    asked.close()
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def good(served: daemon.Daemon, *words: str) -> str:
    """Return the output of a line that must succeed."""
    done = shell(served, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(served: daemon.Daemon, *words: str) -> str:
    """Return the error of a line that must be refused."""
    done = shell(served, *words)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("wolun: ")
    return done.stderr


def running(served: daemon.Daemon) -> settings.Settings:
    """Return the configuration that `saveconfig` writes."""
    asked = client.Client(served.state)
    file = served.directory / "running.yaml"
    file.unlink(missing_ok=True)
    asked.save_configuration(str(file))
    return reader.load(file)
