# SPDX-License-Identifier: Apache-2.0
"""The shell examples of the documents, run against a real daemon with the configuration of the quickstart.

The blocks of a page run in their order, with a daemon for each page.  `vagrant/README.md` has a test of its own
(`tests/lab`).  So has the transcript of `target/shell/README.md` (`tests/target/shell/test_terminal.py`).

| fence       | check                                                                                                |
| ----------- | ---------------------------------------------------------------------------------------------------- |
| `sh`        | bash runs it, with another port, because 3260 may be in use                                          |
| `sh make`   | every `make` target in it exists                                                                     |
| `sh kernel` | not run, because it needs root and a kernel's iSCSI initiator; its `wolun` commands must exist       |
| `text`      | the output of the command before it has the same LUNs and wording                                    |
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
PAGES = sorted(
    path
    for top in ("README.md", "config/**/*.md", "lun_backends/**/*.md", "target/**/*.md", "tests/**/*.md")
    for path in PROJECT.glob(top)
)
TEXTS = {str(page.relative_to(PROJECT)): page.read_text() for page in PAGES}
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#([^)]+))?\)")


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
    """Return the text without the parts that differ from run to run."""
    return re.sub(r"[0-9.]+ (us|ms|s)\b", "TIME", text)


def shell_blocks(text: str) -> list[str]:
    return [block for language, mark, block in BLOCK.findall(text) if (language, mark) == ("sh", "")]


def test_pages_with_examples_are_found() -> None:
    """Without this test, a page that was moved would no longer be tested."""
    assert len(shell_blocks(TEXTS["README.md"])) >= 5
    assert len(shell_blocks(TEXTS["target/exports/README.md"])) >= 3
    assert len(shell_blocks(TEXTS["target/commands/README.md"])) >= 1


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if shell_blocks(text)])
def test_examples_work_in_their_order(tmp_path: Path, portal: str, page: str) -> None:
    for program in ("qemu-img", "qemu-io", "mke2fs", "e2fsck", "curl"):
        peers.require(program)
    environment = {
        **os.environ,
        "PATH": f"{daemon.PROGRAM.parent}:{peers.SEARCH_PATH}",
        "WOLUN_STATE_DIR": str(tmp_path / "var"),
    }
    printed = ""
    for language, mark, text in BLOCK.findall(TEXTS[page]):
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
        elif language == "text":
            assert normal(printed) == normal(text)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for page, text in TEXTS.items():
        code = "\n".join([*(block for _, _, block in BLOCK.findall(text)), *re.findall(r"`([^`\n]+)`", text)])
        assert set(re.findall(r"\bmake (\w[\w-]*)", code)) <= targets, page
    assert {"serve", "test"} <= set(re.findall(r"^make (\w+)", TEXTS["README.md"], re.MULTILINE))


def test_links_lead_to_existing_files_and_sections() -> None:
    for page, text in TEXTS.items():
        for target, heading in LINK.findall(text):
            path = (PROJECT / page).parent / target
            assert path.exists(), f"{page}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
                assert heading in {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings}, target


def test_named_wolun_commands_exist() -> None:
    named = []
    for text in TEXTS.values():
        lines = [line for _, mark, block in BLOCK.findall(text) if mark == "kernel" for line in block.splitlines()]
        named += [line for line in lines if line.startswith("wolun ")] + re.findall(r"`(wolun [^`…\n]+)`", text)
    assert len(named) > 8
    for line in named:
        group: click.Command = cli.main
        for word in shlex.split(line, comments=True)[1:]:
            if isinstance(group, click.Group) and not word.startswith("--"):
                assert word in group.commands, line
                group = group.commands[word]
        assert group is not cli.main or line == "wolun --version", line
