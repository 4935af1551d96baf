# SPDX-License-Identifier: Apache-2.0
"""The blocks of vagrant/README.md, as steps for any set of the four machines.

| fence           | meaning                                                                                      |
| --------------- | -------------------------------------------------------------------------------------------- |
| `sh MACHINE...` | commands to type as root on each of the machines, one after the other; they must succeed     |
| `sh host`       | commands to type where Vagrant runs                                                          |
| `text`          | the output of the block before, on each of its machines; `...` stands for text that varies   |
|                 | within a line, and on a line of its own for any number of lines                              |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "vagrant/README.md"
HOST = "host"
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """Commands to type on a machine, and the output that the page shows; None if it shows none."""

    machine: str
    commands: str
    shown: str | None


@dataclass(eq=False)
class NotTrue(Exception):
    """A step whose output differs from the page."""

    step: Step
    printed: str

    def __str__(self) -> str:
        return f"on {self.step.machine}:\n{self.step.commands}shows:\n{self.step.shown}printed:\n{self.printed}"


def steps(text: str) -> Iterator[Step]:
    """Yield the steps of a walk-through, in their order."""
    blocks = [(language, words.split(), body) for language, words, body in _BLOCK.findall(text)]
    for index, (language, machines, body) in enumerate(blocks):
        following = blocks[index + 1] if index + 1 < len(blocks) else None
        shown = following[2] if following is not None and following[0] == "text" else None
        for machine in machines if language == "sh" else ():
            yield Step(machine, body, shown)


def check(step: Step, printed: str) -> None:
    """Raise NotTrue if a step's output differs from the page; where the page shows none, there must be none."""
    lines = [
        "(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
        for line in (step.shown or "").strip().splitlines()
    ]
    if not re.fullmatch("".join(lines), f"{printed.strip()}\n".lstrip("\n")):
        raise NotTrue(step, printed)


def walk(type_on: Callable[[Step], str | None], show: Callable[[Step], None]) -> int:
    """Run each step with `type_on`, after `show`, and return the number of steps.

    `type_on` returns the output, or None if it does not matter.  Raise NotTrue, and the errors of `type_on`.
    """
    ran = 0
    for step in steps(README.read_text("utf-8")):
        show(step)
        printed = type_on(step)
        if printed is not None:
            check(step, printed)
        ran += 1
    return ran
