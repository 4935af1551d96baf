# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: invalid lines, and the modules that commands import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import daemon
from tests.target.commands import commanding

VOLUMES = commanding.VOLUMES
# Commands must start fast, so they must not import these modules of the daemon.
HEAVY = {
    "asyncio",
    "fastapi",
    "prometheus_client",
    "pydantic",
    "rich",
    "uvicorn",
    "yaml",
    "lun_backends",
    "target.daemon",
}


@pytest.mark.parametrize(
    "words", ["snapshot show vol0", "snapshot show vol0@", "snapshot show @s", "nonsense", "snapshot"]
)
def test_an_invalid_command_line_is_a_usage_error(shared: daemon.Daemon, words: str) -> None:
    assert shared.run(*words.split(), check=False).returncode == 2


@pytest.mark.parametrize("verb", ["status", "snapshot list", "version", "snapshot show vol0@s --map"])
def test_commands_import_nothing_heavy(served: daemon.Daemon, verb: str) -> None:
    served.run("snapshot", "create", "vol0", "s")
    code = (
        "import sys\nfrom target import cli\n"
        f"try: cli.main(['--state-dir', {str(served.state)!r}, *{verb.split()!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    imported = set(done.stderr.split())
    assert ("target.control.client" in imported) == (verb != "version")  # `version` talks to no daemon
    assert not imported & HEAVY
