# SPDX-License-Identifier: Apache-2.0
"""The model of deletions and rollbacks: every state is right, and each missing guard is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import peers

MODEL = Path(__file__).with_name("jobs.pml")
DELETIONS, ROLLBACKS = 0, 1
MUTANTS = {name: int(number) for name, number in re.findall(r"^#define (\w+) (\d+)\b", MODEL.read_text(), re.MULTILINE)}
FOR_ROLLBACKS = {"RESTORE_BLINDLY", "LATE_ROLLED_BACK", "OPEN_FOR_ROLLBACK"}


@pytest.fixture(scope="module", params=[DELETIONS, ROLLBACKS], ids=["deletions", "rollbacks"])
def verifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    directory = tmp_path_factory.mktemp("jobs")
    shutil.copy(MODEL, directory)
    for command in (
        [peers.require("spin"), f"-DWORK={request.param}", "-a", MODEL.name],
        [peers.require("gcc"), "-O2", "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return request.param, directory


def is_right(directory: Path, mutant: str) -> bool:
    """Return whether all states are right."""
    environment = {**os.environ, "MUTANT": str(MUTANTS[mutant])}
    done = subprocess.run(
        ["./pan", "-m1000000"], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert "errors: " in done.stdout
    assert "max search depth too small" not in done.stdout
    assert ("assertion violated" in done.stdout) == ("errors: 0" not in done.stdout)
    return "errors: 0" in done.stdout


def test_every_state_of_the_jobs_is_right(verifier: tuple[int, Path]) -> None:
    assert is_right(verifier[1], "NONE")


def test_missing_guard_is_found(verifier: tuple[int, Path]) -> None:
    work, directory = verifier
    guards = FOR_ROLLBACKS if work == ROLLBACKS else set(MUTANTS) - FOR_ROLLBACKS - {"NONE"}
    assert [name for name in sorted(guards) if is_right(directory, name)] == []
