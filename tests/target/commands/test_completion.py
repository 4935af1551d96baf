# SPDX-License-Identifier: Apache-2.0
"""Completion of the command line itself in bash and zsh, manual pages, and the version."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

import target
from target import cli
from tests import daemon, peers


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    volumes = "  - {name: vol0, lun: 0, size: 1MiB, snapshots: [monday]}\n  - {name: vol1, lun: 1, size: 1MiB}\n"
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), volumes) as running:
        yield running


def offered(served: daemon.Daemon, line: str) -> list[str]:
    """Return the completions that bash offers at the end of `line`, with the script of `wolun completion`."""
    program = f"""
        eval "$(wolun completion bash)"
        COMP_LINE='{line}'
        COMP_WORDS=({line} "")
        [[ '{line}' == *' ' ]] || unset 'COMP_WORDS[-1]'
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _wolun_completion wolun
        printf '%s\\n' "${{COMPREPLY[@]}}"
        """
    environment = {
        **os.environ,
        "PATH": f"{daemon.PROGRAM.parent}:{os.environ['PATH']}",
        "WOLUN_STATE_DIR": str(served.state),
    }
    done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("wolun sna", ["snapshot"]),
        ("wolun snapshot verif", ["verify"]),
        ("wolun snapshot create ", ["vol0", "vol1"]),
        ("wolun snapshot list vol1", ["vol1"]),
        ("wolun snapshot show v", ["vol0@monday"]),
        ("wolun shell --dry", ["--dry-run"]),
    ],
)
def test_bash_completes_verbs_options_and_names(served: daemon.Daemon, line: str, expected: list[str]) -> None:
    assert offered(served, line) == expected


def test_without_a_daemon_there_are_no_completions(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_WOLUN_COMPLETE": "bash_complete",
        "COMP_WORDS": "wolun snapshot create ",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(
        [daemon.PROGRAM],
        env={**environment, "WOLUN_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


SHELLS = {
    "bash": ("--norc", "--noprofile", "-i", 'eval "$(wolun completion bash)"'),
    "zsh": ("-f", "-i", 'autoload -Uz compinit && compinit -u -D; eval "$(wolun completion zsh)"'),
}


@pytest.fixture(scope="module", params=SHELLS)
def typed(request: pytest.FixtureRequest, served: daemon.Daemon) -> Iterator[Callable[[str], str]]:
    """Yield a function that types a line into an interactive shell with completion and returns its output."""
    *options, setup = SHELLS[request.param]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("INPUTRC", "ZDOTDIR", "PROMPT_COMMAND")},
        "PATH": f"{daemon.PROGRAM.parent}:{os.environ['PATH']}",
        "WOLUN_STATE_DIR": str(served.state),
        "TERM": "dumb",
    }
    shell = pexpect.spawn(
        peers.require(request.param), options, env=environment, dimensions=(50, 200), encoding="utf-8", timeout=60
    )

    def run(line: str) -> str:
        shell.send(line + "\n")
        shell.expect_exact("<ready>")
        return str(shell.before)

    shell.sendline(f"{setup}; PS1='<'ready'>'")  # in pieces, so that its echo is not taken for the prompt
    shell.expect_exact("<ready>")
    yield run
    shell.close(force=True)


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("wolun vers\t", target.VERSION),
        ("wolun --vers\t", target.VERSION),
        ("wolun sna\tsho\tv\t--ma\t", "vol0@monday"),  # the verbs, existing names, and an option
    ],
)
def test_tab_completes_in_a_real_shell(typed: Callable[[str], str], line: str, printed: str) -> None:
    assert printed in typed(line).partition("\n")[2]  # below the line itself


def test_the_option_version_prints_the_version(served: daemon.Daemon) -> None:
    assert served.run("--version").stdout == f"wolun {target.VERSION}\n"


def test_manual_pages_have_the_text_of_help(tmp_path: Path) -> None:
    program = daemon.PROGRAM.with_name("click-man")
    subprocess.run([program, "--target", tmp_path, "wolun"], check=True, capture_output=True, timeout=120)
    for name, command in cli.main.commands.items():
        page = (tmp_path / f"wolun-{name}.1").read_text().replace("\\-", "-")
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in page
