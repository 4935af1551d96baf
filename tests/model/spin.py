# SPDX-License-Identifier: Apache-2.0
"""spin's verifier for `cluster.pml`: built once for a number of nodes, blocks and paths, then run for any variant of the model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import peers

MODEL = Path(__file__).with_name("cluster.pml")
_DEFINITION = re.compile(r"^#define ([A-Z][A-Z0-9_]*) (\d+)\b", re.MULTILINE)
_RECORD = re.compile(r"\[(\d+) ")


def _section(begin: str, end: str) -> dict[str, int]:
    text = MODEL.read_text(encoding="utf-8")
    return {name: int(number) for name, number in _DEFINITION.findall(text[text.index(begin) : text.index(end)])}


MUTANTS: Mapping[str, int] = _section("#define NONE", "/* The next step of a node")
"""The names of the protocol without one of its guards; NONE is the protocol itself."""
STEPS: Mapping[int, str] = {number: name for name, number in _section("#define J1", "#define KEY").items()}

EXCLUSIVE, WRITE_EXCLUSIVE = 8, 7
STANDARD, LIO, OVERLAP = 0, 1, 2
"""The devices: SPC-4's and LIO's, with PREEMPT AND ABORT as one step; LIO's, with PREEMPT and LOGICAL UNIT RESET."""
_NAMES = {STANDARD: "SPC-4", LIO: "LIO", OVERLAP: "LIO with reset"}

_FOR_WRITE_EXCLUSIVE = {"B2_NO_LOOK", "NO_VIEW_LOOK"}
_FOR_OVERLAP = {"NO_RESET", "ABANDONED"}
_FOR_PATHS = {"LATE_PATH", "EARLY_J3"}
_FOR_LIO = {"B1_OLD_RULE", "NO_J4_KEYS", "F2_BEFORE_F1", "CHANGED_KEY", "EARLY_KEY"}


@dataclass(frozen=True)
class Variant:
    """A reservation type, a device, and a mutant's name."""

    kind: int = EXCLUSIVE
    device: int = LIO
    mutant: str = "NONE"
    paths: int = 1  # of each node to the device

    @property
    def right(self) -> bool:
        """Whether no snapshot can become wrong: there is no mutant, or its guard is not needed here."""
        return (
            self.mutant == "NONE"
            or (self.mutant in _FOR_WRITE_EXCLUSIVE and self.kind == EXCLUSIVE)
            or (self.mutant in _FOR_LIO and self.device == STANDARD)
            or (self.mutant in _FOR_OVERLAP and self.device != OVERLAP)
            or (self.mutant in _FOR_PATHS and self.paths == 1)
        )

    def __str__(self) -> str:
        return f"{self.kind}h, {_NAMES[self.device]}, {self.mutant}{', two paths' if self.paths > 1 else ''}"


VARIANTS = tuple(Variant(kind, device) for kind in (EXCLUSIVE, WRITE_EXCLUSIVE) for device in (LIO, STANDARD))
"""The protocol itself, for each reservation type on each device whose commands are one step each."""
OVERLAPPING = (Variant(EXCLUSIVE, OVERLAP), Variant(WRITE_EXCLUSIVE, OVERLAP))
"""The protocol itself on the device with the most states, where a node may die while its command waits."""
MULTIPATH = (
    *(Variant(kind, device, paths=2) for kind in (EXCLUSIVE, WRITE_EXCLUSIVE) for device in (LIO, STANDARD)),
    Variant(EXCLUSIVE, OVERLAP, paths=2),
)
"""The protocol itself with two paths from each node."""


def mutants(everywhere: bool = False) -> list[Variant]:
    """Return each mutant on a device where it makes a snapshot wrong, or on every device."""
    names = [name for name in MUTANTS if name not in {"NONE", *_FOR_OVERLAP, *_FOR_PATHS}]
    special = [Variant(EXCLUSIVE, OVERLAP, name) for name in sorted(_FOR_OVERLAP)]
    special += [Variant(EXCLUSIVE, device, name, 2) for name in sorted(_FOR_PATHS) for device in (LIO, STANDARD)]
    if everywhere:
        return [Variant(variant.kind, variant.device, name) for name in names for variant in VARIANTS] + special
    return special + [
        Variant(WRITE_EXCLUSIVE if name in _FOR_WRITE_EXCLUSIVE else EXCLUSIVE, LIO, name) for name in names
    ]


class SearchFailed(Exception):
    """The search ended early: too little memory, or too little depth.  It proves nothing."""


@dataclass(frozen=True)
class Outcome:
    """The result of a search: a wrong snapshot was found, or every state was seen."""

    right: bool
    states: int
    seconds: float
    megabytes: float
    trail: tuple[str, ...]  # the steps to the wrong snapshot


class Verifier:
    """The program that spin makes of the model, for some numbers of nodes, blocks and paths."""

    def __init__(self, directory: Path, nodes: int = 2, blocks: int = 2, megabytes: int = 7000, paths: int = 1) -> None:
        """Build the verifier in `directory`.  It stops at that many megabytes."""
        self._directory = directory
        directory.mkdir(exist_ok=True)
        self._size = [f"-DNODES={nodes}", f"-DBLOCKS={blocks}", f"-DPATHS={paths}"]
        self._depth = 20_000_000 if nodes > 2 else 1_000_000
        self._spin = peers.require("spin")
        shutil.copy(MODEL, directory)
        self._call([self._spin, *self._size, "-a", MODEL.name])
        # Partial order reduction gains nothing: each step of a node touches what all nodes share.
        self._call(
            [peers.require("gcc"), "-O2", "-w", "-DSAFETY", "-DNOREDUCE", f"-DMEMLIM={megabytes}", "-o", "pan", "pan.c"]
        )
        self._table = "-w26" if nodes > 2 else "-w20"

    def run(self, variant: Variant) -> Outcome:
        """Search all states of the variant, up to the first wrong snapshot.  Raise SearchFailed if the search ended early."""
        environment = {
            "KIND": str(variant.kind),
            "TAGS": str(int(variant.device != STANDARD)),
            "OVERLAP": str(int(variant.device == OVERLAP)),
            "MUTANT": str(MUTANTS[variant.mutant]),
        }
        trail = self._directory / f"{MODEL.name}.trail"
        trail.unlink(missing_ok=True)
        printed = self._call(["./pan", f"-m{self._depth}", self._table], environment)
        if "assertion violated" in printed:
            steps = tuple(self._replay(environment))
        elif trail.exists() or "errors: 0" not in printed or "not completed" in printed or "too small" in printed:
            raise SearchFailed(f"{variant}: {printed}")
        else:
            steps = ()
        return Outcome(
            not steps,
            int(float(_number(r"([\d.e+]+) states, stored", printed))),
            float(_number(r"elapsed time ([\d.e+-]+) seconds", printed)),
            float(_number(r"([\d.]+)\s+total actual memory usage", printed)),
            steps,
        )

    def _replay(self, environment: Mapping[str, str]) -> list[str]:
        constants = [f"-D{name}={value}" for name, value in environment.items()]
        printed = self._call([self._spin, *self._size, *constants, "-t", MODEL.name])
        lines = [line.strip() for line in printed.splitlines() if line.strip().startswith("node ")]
        return [_RECORD.sub(lambda match: f"[{STEPS[int(match[1])]} ", " ".join(line.split())) for line in lines]

    def _call(self, command: list[str], environment: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=self._directory,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode and command[0] != "./pan" and "-t" not in command:
            raise SearchFailed(f"{' '.join(command)}: {done.stdout}")
        return done.stdout


def _number(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SearchFailed(text)
    return match[1]
