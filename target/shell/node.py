# SPDX-License-Identifier: Apache-2.0
"""What all nodes of the tree have in common.

A node's children are listed when somebody looks, and again after each command line.  A command is a method
`ui_command_NAME`, whose docstring is its help and names every parameter; what a parameter may be is said by `choices`,
which completion asks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from configshell_fb import node

from target import messages, show
from target.control import client
from target.shell import console

BOOLEANS = ("true", "false")


class Node(node.ConfigNode):
    """A node; `list_children` makes its children."""

    def __init__(self, name: str, parent: Node | None, shell: console.Shell | None = None) -> None:
        self._kids: set[node.ConfigNode] = set()
        self._listed = -1
        super().__init__(name, parent, shell)

    # -- children ------------------------------------------------------------------------------------------------

    def list_children(self) -> None:
        """Make the children, by `Child(name, self, …)`."""

    @property
    def _children(self) -> set[node.ConfigNode]:
        if self._listed != self.shell.generation:
            self._listed = self.shell.generation  # before, because the children enter themselves here
            self._kids = set()
            self.list_children()
        return self._kids

    @_children.setter
    def _children(self, kids: set[node.ConfigNode]) -> None:
        self._kids = kids

    # -- the daemon ----------------------------------------------------------------------------------------------

    @property
    def asked(self) -> client.Client:
        """The daemon."""
        found: client.Client = self.shell.client
        return found

    @property
    def facts(self) -> console.Facts:
        """What it said already."""
        found: console.Facts = self.shell.facts
        return found

    def volumes(self) -> list[messages.Volume]:
        """All volumes."""
        return self.facts.get("volumes", self.asked.volumes)

    def snapshots(self) -> list[messages.Snapshot]:
        """All snapshots."""
        return self.facts.get("snapshots", self.asked.snapshots)

    def status(self) -> messages.Status:
        """The daemon at a glance."""
        return self.facts.get("status", self.asked.status)

    def units(self) -> list[str]:
        """The names of all logical units."""
        return [each.unit for each in self.facts.get("luns", self.asked.luns)]

    def follow(self, job: messages.Job, doing: str, *, cancel: bool = True) -> None:
        """Wait for a job, with a bar on a terminal; Ctrl-C cancels it, if that may be.  Raises Refused."""
        last = job
        try:
            with show.progress(f"{doing} {job.subject}", enabled=True) as update:
                for last in self.asked.watch(job):
                    update(last.done, last.total)
        except KeyboardInterrupt:
            self.asked.close()
            if not cancel:
                raise
            self.asked.cancel(job)
            *_, last = self.asked.watch(last)
        if last.refusal is not None:
            raise console.Refused(last.refusal.message, last.refusal.remedy)
        if last.state == "cancelled":
            raise console.Refused(f"{doing} {job.subject} was cancelled", "say it again if that was not you")

    def done(self, text: str) -> None:
        """Tell what was done - or would be."""
        console.say(f"checked, not done: {text}" if self.asked.dry_run else text)

    def explained(self, mine: str, group: str | None, parameter: dict[str, str]) -> bool:
        """Leave `set` to configshell unless it sets parameters (`force` aside) of the group `mine`, all of which there are;
        of some that there are not it hears of those alone, and refuses them.  Gives whether it was left to it.
        """
        names = self.list_group_params(mine, writable=True)
        strange = {name: value for name, value in parameter.items() if name not in (*names, "force")}
        if group == mine and not strange and set(parameter) - {"force"}:
            return False
        super().ui_command_set(group, **(strange if group == mine and strange else parameter))
        return True

    def only_checks(self, what: str) -> bool:
        """With `--dry-run`, tell what would be done, for a request that the daemon cannot check without doing it."""
        if self.asked.dry_run:
            console.say(f"not done: {what}")
        return self.asked.dry_run

    # -- completion ----------------------------------------------------------------------------------------------

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """What `parameter` of `command` may be, `given` the others; None if it can be anything."""
        return None

    def get_completion_method(self, command: str) -> Callable[[dict[str, str], str, str], list[str]] | None:
        """For configshell: completes the parameters of `command`."""
        own: Callable[[dict[str, str], str, str], list[str]] | None = super().get_completion_method(command)
        if own is not None:
            return own

        def complete(given: dict[str, str], text: str, parameter: str) -> list[str]:
            possible = self.choices(command, parameter, given)
            if possible is None:
                default = inspect.signature(self.get_command_method(command)).parameters.get(parameter)
                possible = BOOLEANS if default is not None and default.default in BOOLEANS else ()
            return one_of(possible, text)

        return complete

    forced_group = ""
    """The group of parameters in which `set` takes `force=true`, too."""

    def ui_complete_set(self, parameters: dict[str, str], text: str, current_param: str) -> list[str]:
        """For completion of `set`."""
        found: list[str] = super().ui_complete_set(parameters, text, current_param)
        if not self.forced_group or parameters.get("group") != self.forced_group:
            return found
        if current_param == "force":
            return one_of(BOOLEANS, text)
        known = self.list_group_params(self.forced_group, writable=True)
        if current_param not in ("group", *known) and "force" not in parameters and "force".startswith(text):
            found.append("force=")
        return found

    # -- help ----------------------------------------------------------------------------------------------------

    help_intro = """
                 This is the tree of what wolun serves.  A line is

                     [PATH] COMMAND [PARAMETER...]

                 with parameters in order or as NAME=VALUE.  `ls` shows the tree from here on, `cd PATH` goes there,
                 TAB completes everything, `help COMMAND` explains a command.  Changes act at once; `/ saveconfig`
                 writes them into the configuration file.
                 """


class Leaf(Node):
    """Something to be looked at."""

    def __init__(self, name: str, parent: Node, text: str, *, healthy: bool | None = None) -> None:
        super().__init__(name, parent)
        self._text = text
        self._healthy = healthy

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        return self._text, self._healthy


def one_of(possible: Iterable[str], text: str) -> list[str]:
    """Those that begin like `text`; a space behind the only one says that it is complete."""
    found = [each for each in possible if each.startswith(text)]
    return [f"{found[0]} "] if len(found) == 1 and not found[0].endswith("/") else found


def flag(value: str, name: str) -> bool:
    """True or false, also said as targetcli's users do.  Raises Refused."""
    word = {"1": "true", "yes": "true", "0": "false", "no": "false"}.get(value.lower(), value.lower())
    if word not in BOOLEANS:
        raise console.Refused(f"{name}={value} is neither true nor false")
    return word == "true"


def number(value: str | None, name: str) -> int | None:
    """A whole number.  Raises Refused."""
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise console.Refused(f"{name}={value} is no number")
    return int(value)


def files(text: str = "") -> list[str]:
    """Files on this machine whose path begins like `text`."""
    directory, _, start = text.rpartition("/")
    place = Path(directory or ("/" if text.startswith("/") else ".")).expanduser()
    if not place.is_dir():
        return []
    prefix = f"{directory}/" if "/" in text else ""
    return sorted(
        f"{prefix}{each.name}{'/' if each.is_dir() else ''}" for each in place.iterdir() if each.name.startswith(start)
    )


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """A line for each thing known."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def export(text: str, file: str | None) -> None:
    """Print a piece of configuration, or write it into a new file.  Raises Refused."""
    if file is None:
        console.say(text)
        return
    try:
        with Path(file).open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise console.Refused(f"{file} cannot be written: {error.strerror}", "name a file that is not there") from error
    console.say(f"wrote {file}")


def plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
