# SPDX-License-Identifier: Apache-2.0
"""spin's verifier for `jobs.pml`: deletions, rollbacks, losses and expulsions, each with the mutants that make it wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import peers

_MODEL = Path(__file__).with_name("jobs.pml")
NUMBERS: Mapping[str, int] = {
    name: int(number) for name, number in re.findall(r"^#define (\w+) (\d+)\b", _MODEL.read_text(), re.MULTILINE)
}
"""The numbers of the mutants by their names; NONE is the protocol itself."""


@dataclass(frozen=True)
class Work:
    """A part of the model: its number there, and the mutants that it finds with the reservation of that kind."""

    name: str
    number: int
    kind: int
    mutants: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}, {self.kind}h" if self.name == "losses" else self.name


WORKS = (
    Work("deletions", 0, 8, ("MOVE_EARLY", "HIDDEN_TARGET", "NO_TARGET_NAME")),
    Work("rollbacks", 1, 8, ("RESTORE_BLINDLY", "LATE_ROLLED_BACK", "OPEN_FOR_ROLLBACK", "SOURCE_LOST")),
    Work("losses", 2, 8, ("NO_LOSS_FENCE", "OLDER_STAY")),
    Work("losses", 2, 7, ("NO_LOSS_LOOK", "OLDER_STAY")),
    Work("expulsions", 3, 8, ("ANSWERS_LATER", "EXPELLED_JOINS", "EXPELLED_NO_J3")),
)


@dataclass(frozen=True)
class Outcome:
    """The result of a search: a promise was broken, or every state was seen."""

    right: bool
    states: int


class Verifier:
    """The program that spin makes of one part of the model."""

    def __init__(self, directory: Path, work: Work) -> None:
        """Build it in `directory`."""
        self._directory = directory
        self._work = work
        directory.mkdir(exist_ok=True)
        shutil.copy(_MODEL, directory)
        for command in (
            [peers.require("spin"), f"-DWORK={work.number}", "-a", _MODEL.name],
            [peers.require("gcc"), "-O2", "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"],
        ):
            subprocess.run(command, cwd=directory, check=True, capture_output=True)

    def run(self, mutant: str = "NONE") -> Outcome:
        """Search all states, up to the first broken promise.  Raise RuntimeError if the search ended early."""
        environment = {**os.environ, "MUTANT": str(NUMBERS[mutant]), "KIND": str(self._work.kind)}
        printed = subprocess.run(
            ["./pan", "-m1000000"], cwd=self._directory, env=environment, capture_output=True, text=True, check=False
        ).stdout
        states = re.search(r"([\d.e+]+) states, stored", printed)
        broken = "assertion violated" in printed
        if states is None or broken == ("errors: 0" in printed) or "max search depth too small" in printed:
            raise RuntimeError(f"{self._work}, {mutant}: {printed}")
        return Outcome(not broken, int(float(states[1])))
