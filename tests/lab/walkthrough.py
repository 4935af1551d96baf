# SPDX-License-Identifier: Apache-2.0
"""The blocks of vagrant/README.md, as steps that can be run wherever the four machines are.

| fence                | what happens with it                                                                       |
| -------------------- | ------------------------------------------------------------------------------------------ |
| `sh MACHINE...`      | typed as root on each of the machines, one after the other, which must succeed                |
| `sh host`            | typed where Vagrant is                                                                     |
| `text`               | what the block before it prints, on every one of its machines; `...` stands for what varies,  |
|                      | within a line, and on a line of its own for any number of lines                            |
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
    """Commands that are typed on a machine, and what is shown of what they print: None if nothing is."""

    machine: str
    commands: str
    shown: str | None


@dataclass(eq=False)
class NotTrue(Exception):
    """A step printed something else than is shown."""

    step: Step
    printed: str

    def __str__(self) -> str:
        return f"on {self.step.machine}:\n{self.step.commands}shows:\n{self.step.shown}printed:\n{self.printed}"


def steps(text: str) -> Iterator[Step]:
    """The steps of a walk-through, in their order."""
    blocks = [(language, words.split(), body) for language, words, body in _BLOCK.findall(text)]
    for index, (language, machines, body) in enumerate(blocks):
        following = blocks[index + 1] if index + 1 < len(blocks) else None
        shown = following[2] if following is not None and following[0] == "text" else None
        for machine in machines if language == "sh" else ():
            yield Step(machine, body, shown)


def check(step: Step, printed: str) -> None:
    """Raises NotTrue if a step's output is not what is shown; where none is shown, nothing may be printed."""
    lines = [
        "(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
        for line in (step.shown or "").strip().splitlines()
    ]
    if not re.fullmatch("".join(lines), f"{printed.strip()}\n".lstrip("\n")):
        raise NotTrue(step, printed)


def walk(type_on: Callable[[Step], str | None], tell: Callable[[Step], None]) -> int:
    """Run every step with `type_on`, which gives what was printed, None if that is of no concern, and `tell` before it; the number of steps.

    Raises NotTrue, and what `type_on` raises.
    """
    ran = 0
    for step in steps(README.read_text("utf-8")):
        tell(step)
        printed = type_on(step)
        if printed is not None:
            check(step, printed)
        ran += 1
    return ran
