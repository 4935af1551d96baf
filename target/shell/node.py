# SPDX-License-Identifier: Apache-2.0
"""The base class of all nodes of the tree, and functions that nodes share.

A node lists its children when the tree is shown, and again after each command line.  A command is a method
`ui_command_NAME`.  Its docstring is its help and names each parameter.  `choices` returns the possible values of a
parameter for completion.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from configshell_fb import node

from target import messages, refusals, show
from target.control import client
from target.shell import console

BOOLEANS = ("true", "false")


class Node(node.ConfigNode):
    """A node of the tree; `list_children` makes its children."""

    def __init__(self, name: str, parent: Node | None, shell: console.Shell | None = None) -> None:
        self._kids: set[node.ConfigNode] = set()
        self._listed = -1
        super().__init__(name, parent, shell)

    # -- children ------------------------------------------------------------------------------------------------

    def list_children(self) -> None:
        """Make the children: each call of `Child(name, self, …)` adds one."""

    @property
    def _children(self) -> set[node.ConfigNode]:
        if self._listed != self.shell.generation:
            self._listed = self.shell.generation  # first, because each new child adds itself to this set
            self._kids = set()
            self.list_children()
        return self._kids

    @_children.setter
    def _children(self, kids: set[node.ConfigNode]) -> None:
        self._kids = kids

    # -- the daemon ----------------------------------------------------------------------------------------------

    @property
    def asked(self) -> client.Client:
        """Return the client of the daemon."""
        daemon: client.Client = self.shell.client
        return daemon

    @property
    def facts(self) -> console.Facts:
        """Return the daemon's answers to this command line."""
        facts: console.Facts = self.shell.facts
        return facts

    def volumes(self) -> list[messages.Volume]:
        """Return all volumes."""
        return self.facts.get("volumes", self.asked.volumes)

    def snapshots(self) -> list[messages.Snapshot]:
        """Return all snapshots."""
        return self.facts.get("snapshots", self.asked.snapshots)

    def status(self) -> messages.Status:
        """Return the daemon's status."""
        return self.facts.get("status", self.asked.status)

    def units(self) -> list[str]:
        """Return the names of all logical units."""
        return [lun.unit for lun in self.facts.get("luns", self.asked.luns)]

    def follow(self, job: messages.Job, doing: str, *, cancel: bool = True, held: bool = False) -> None:
        """Wait for a job, with a progress bar on a terminal.

        With `cancel`, Ctrl-C cancels the job; with `held`, each end of this process does.  Raises Refused.
        """
        last = job
        try:
            with (
                show.progress(f"{doing} {job.subject}", enabled=True) as update,
                self.asked.holding(job) if held else contextlib.nullcontext(),
            ):
                for last in self.asked.watch(job):
                    update(last.done, last.total)
        except KeyboardInterrupt:
            self.asked.close()
            if not cancel:
                raise
            self.asked.cancel(job)
            *_, last = self.asked.watch(last)
        if last.refusal is not None:
            raise console.Refused.because(last.refusal)
        if last.state == "cancelled":
            raise console.Refused.because(refusals.cancelled(doing, job))
        if last.damaged_bytes:
            console.say(show.damage(last))

    def done(self, text: str) -> None:
        """Print what was done, or with `--dry-run` what was checked."""
        console.say(f"checked, not done: {text}" if self.asked.dry_run else text)

    def explained(
        self, mine: str, group: str | None, parameter: dict[str, str], options: Sequence[str] = ("force",)
    ) -> bool:
        """Pass `set` to configshell, unless it sets only existing parameters of the group `mine`.

        The `options` do not count as parameters.  If some parameters of `mine` do not exist, configshell gets only those, and
        refuses them.  Return True if configshell handled the command.
        """
        names = self.list_group_params(mine, writable=True)
        unknown = {name: value for name, value in parameter.items() if name not in (*names, *options)}
        if group == mine and not unknown and set(parameter) - set(options):
            return False
        super().ui_command_set(group, **(unknown if group == mine and unknown else parameter))
        return True

    def only_checks(self, what: str) -> bool:
        """Return True with `--dry-run`, after printing the action.  For requests that the daemon cannot only check."""
        if self.asked.dry_run:
            console.say(f"not done: {what}")
        return self.asked.dry_run

    # -- completion ----------------------------------------------------------------------------------------------

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values of `parameter` of `command`, `given` the others; None if any value is possible."""
        return None

    def get_completion_method(self, command: str) -> Callable[[dict[str, str], str, str], list[str]] | None:
        """Return the function with which configshell completes the parameters of `command`."""
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
    """The group of parameters for which `set` also accepts `force=true`."""

    def ui_complete_set(self, parameters: dict[str, str], text: str, current_param: str) -> list[str]:
        """Return the completions of `set`."""
        completions: list[str] = super().ui_complete_set(parameters, text, current_param)
        if not self.forced_group or parameters.get("group") != self.forced_group:
            return completions
        if current_param == "force":
            return one_of(BOOLEANS, text)
        known = self.list_group_params(self.forced_group, writable=True)
        if current_param not in ("group", *known) and "force" not in parameters and "force".startswith(text):
            completions.append("force=")
        return completions

    # -- help ----------------------------------------------------------------------------------------------------

    help_intro = """
                 This is the tree of all objects that wolun serves.  A command line is

                     [PATH] COMMAND [PARAMETER...]

                 Parameters are given in order or as NAME=VALUE.  `ls` shows the tree from the current node down,
                 `cd PATH` changes the current node, TAB completes names, and `help COMMAND` explains a command.
                 Changes take effect at once; `/ saveconfig` saves them to the configuration file.
                 """


class Leaf(Node):
    """A node without children and commands of its own."""

    def __init__(self, name: str, parent: Node, text: str, *, healthy: bool | None = None) -> None:
        super().__init__(name, parent)
        self._text = text
        self._healthy = healthy

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        return self._text, self._healthy


def one_of(possible: Iterable[str], text: str) -> list[str]:
    """Return the values that begin with `text`.  A space behind a single value marks it as complete."""
    matching = [value for value in possible if value.startswith(text)]
    return [f"{matching[0]} "] if len(matching) == 1 and not matching[0].endswith("/") else matching


def flag(value: str, name: str) -> bool:
    """Parse a boolean, also in the spellings of targetcli (1, yes, 0, no).  Raises Refused."""
    word = {"1": "true", "yes": "true", "0": "false", "no": "false"}.get(value.lower(), value.lower())
    if word not in BOOLEANS:
        raise console.Refused(f"{name}={value} is not true or false")
    return word == "true"


def number(value: str | None, name: str) -> int | None:
    """Parse a whole number.  Raises Refused."""
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise console.Refused(f"{name}={value} is not a number")
    return int(value)


def files(text: str = "") -> list[str]:
    """Return the files on this machine whose path begins with `text`."""
    directory, _, start = text.rpartition("/")
    place = Path(directory or ("/" if text.startswith("/") else ".")).expanduser()
    if not place.is_dir():
        return []
    prefix = f"{directory}/" if "/" in text else ""
    return sorted(
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in place.iterdir() if path.name.startswith(start)
    )


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Return a line per row, with the values aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def export(text: str, file: str | None) -> None:
    """Print a piece of configuration, or write it to a new file.  Raises Refused."""
    if file is None:
        console.say(text)
        return
    try:
        with Path(file).open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise console.Refused(
            f"{file} cannot be written: {error.strerror}", "name a file that does not exist"
        ) from error
    console.say(f"wrote {file}")


def plural(count: int, noun: str) -> str:
    """Return `count` and the noun, in the plural unless `count` is 1."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
