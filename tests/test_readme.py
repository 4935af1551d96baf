# SPDX-License-Identifier: Apache-2.0
"""The README's shell examples are run, in their order, against a real daemon with the quickstart's configuration.

| fence       | what happens with it                                                                                 |
| ----------- | ---------------------------------------------------------------------------------------------------- |
| `sh`        | run by bash; only the port is another, since 3260 may be in use                                      |
| `sh make`   | every `make` target in it exists                                                                     |
| `sh kernel` | needs root and a kernel with an iSCSI initiator: its `wolun` commands are checked, the rest is not run |
| `text`      | what the command before it printed; its LUNs and wording are compared                                |
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from target import cli
from tests import daemon, peers

PROJECT = Path(__file__).resolve().parents[1]
QUICKSTART = "127.0.0.1:3260"
BLOCKS = re.findall(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", (PROJECT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[str]:
    """Yield the quickstart, served on a free port, with its state in `var` of `tmp_path`."""
    config = PROJECT / "config" / "quickstart.yaml"
    command: list[str | Path] = [daemon.PROGRAM, "serve", "--config", config, "--state-dir", tmp_path / "var"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--portal", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().decode().split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def normal(text: str) -> str:
    """Without what differs from run to run."""
    return re.sub(r"[0-9.]+ (us|ms|s)\b", "TIME", text)


def test_the_examples_work_in_their_order(tmp_path: Path, portal: str) -> None:
    for program in ("qemu-img", "qemu-io", "mke2fs", "e2fsck", "curl"):
        peers.require(program)
    environment = {
        **os.environ,
        "PATH": f"{daemon.PROGRAM.parent}:{peers.SEARCH_PATH}",
        "WOLUN_STATE_DIR": str(tmp_path / "var"),
    }
    printed = ""
    ran = 0
    for language, mark, text in BLOCKS:
        if (language, mark) == ("sh", ""):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text.replace(QUICKSTART, portal)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            printed = done.stdout.replace(portal, QUICKSTART)
            assert done.returncode == 0, f"{text}\n{printed}\n{done.stderr}"
            ran += 1
        elif language == "text":
            assert normal(printed) == normal(text)
    assert ran >= 6


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)", (PROJECT / "README.md").read_text()))
    assert {"serve", "test"} <= named <= targets


def test_every_wolun_command_that_is_named_exists() -> None:
    text = (PROJECT / "README.md").read_text()
    lines = [line for _, mark, block in BLOCKS if mark == "kernel" for line in block.splitlines()]
    named = [line for line in lines if line.startswith("wolun ")] + re.findall(r"`(wolun [^`…]+)`", text)
    assert len(named) > 8
    for line in named:
        group: click.Command = cli.main
        for word in shlex.split(line, comments=True)[1:]:
            if isinstance(group, click.Group):
                assert word in group.commands, line
                group = group.commands[word]
        assert not isinstance(group, click.Group), line
