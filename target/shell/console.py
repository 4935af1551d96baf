# SPDX-License-Identifier: Apache-2.0
"""The command line of the shell: configshell's, with what it lacks.

* Names may hold `+`, and paths `*` and `?` inside a name (initiator patterns).  A path that ends with `/*` means all children.
* Errors go to standard error as a sentence and a remedy, and the exit status says whether there was one.
* `--dry-run` in a line holds for that line; `--force` and the like are another way to say `force=true`.
* Nothing is logged to a file, and a line with a secret in it is not remembered.
* Completions are listed without asking the terminal where its cursor is, so any terminal will do.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
import readline
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import configshell_fb
import pyparsing
from configshell_fb import console, log, node

from target import show
from target.control import client

T = TypeVar("T")
SECRET_WORDS = ("password=", "mutual_password=")
_OPTION = re.compile(r"(?<!\S)--([a-z][a-z-]*)(?:=(\S*))?(?!\S)")
_HERE = "`help` lists what can be said here"
_LOOK = "`ls` shows what there is, and TAB completes it"
_ELSEWHERE = {
    "backstores": "what targetcli has in /backstores is in /volumes here",
    "loopback": "this host gets the LUNs as disks with `lio: {loopback: true}` in the configuration file",
}
"""Paths of targetcli."""


class Refused(node.ExecutionError):
    """A command was not done: a sentence and a remedy."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class _Log(log.Log):
    """Messages for people on standard error; no file, and none of the debugging that configshell does at every step."""

    def _log(self, level: str, message: object) -> None:
        if level in ("info", "warning", "error", "critical"):
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()

    def debug(self, msg: object) -> None:
        pass

    def verbose(self, msg: object) -> None:
        pass


class Facts:
    """What the daemon says, asked at most once per command line."""

    def __init__(self, asked: client.Client) -> None:
        self.client = asked
        self._known: dict[str, Any] = {}

    def forget(self) -> None:
        """The next look asks anew, over a new connection: a person thinks longer than a daemon keeps one open."""
        self._known.clear()
        self.client.close()

    def get(self, what: str, ask: Callable[[], T]) -> T:
        """The answer to a question that is told from others by `what`."""
        if what not in self._known:
            self._known[what] = ask()
        answer: T = self._known[what]
        return answer

    def has(self, what: str) -> bool:
        """Whether it is known already."""
        return what in self._known


class Shell(configshell_fb.ConfigShell):
    """A shell on the daemon that `asked` talks to.  Preferences and history are kept in `directory`, if one is given."""

    _current_node: Any
    _current_completions: list[str]

    def __init__(self, asked: client.Client, directory: Path | None = None) -> None:
        super().__init__(None if directory is None else str(directory))
        self.facts = Facts(asked)
        self.client = asked
        self.generation = 0
        self.log = _Log()
        self.con = console.Console(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)  # as they are now
        # What a line looks like; the original has no `+`, and no patterns in paths.
        word = pyparsing.Word(pyparsing.alphanums + "_")
        value = pyparsing.Word(pyparsing.alphanums + r"?;&*$!#,=_\+/.<>()~@:-%[]")
        keyword = pyparsing.Word(pyparsing.alphanums + r"_\-")
        named = _located(keyword + pyparsing.Suppress("=") + pyparsing.Opt(value, default=""))("kparams*")
        plain = _located(value)("pparams*")
        bookmark = pyparsing.Regex(r"@([A-Za-z0-9:_.]|-)+")
        name = r"[A-Za-z0-9:_.\[\]+*?!@-]"
        path = pyparsing.Regex(rf"{name}*/({name}|/)*") | ".." | "."
        where = _located(bookmark | path | "*")("path")
        command = _located(word)("command")
        self._parser = pyparsing.Opt(where) + pyparsing.Opt(command) + pyparsing.ZeroOrMore(named | plain)
        if not _colourful():
            self.prefs.autosave = False
            self.prefs["color_mode"] = False

    # -- running -------------------------------------------------------------------------------------------------

    def run_cmdline(self, cmdline: str) -> None:
        """Run one line.  Raises ExecutionError, which Refused is one of."""
        self._renew()
        always_dry = self.client.dry_run
        try:
            if cmdline and not cmdline.startswith("#"):
                cmdline = self._without_options(cmdline)
                # What configshell's own parsing does not understand it would leave out in silence.
                (self._parser + pyparsing.StringEnd()).parse_string(cmdline)
                _, _, command, *parameters = self._parse_cmdline(cmdline)
                if any(parameters) and not command:
                    raise Refused(f"there is no command in {cmdline}", "write [PATH] COMMAND [PARAMETER...]")
                super().run_cmdline(cmdline)
        except client.Failed as failed:
            raise Refused(failed.refusal.message, failed.refusal.remedy) from failed
        except pyparsing.ParseException as error:
            what = f"this cannot be read from {cmdline[error.loc :].split()[0]} on"
            raise Refused(what, "write [PATH] COMMAND [PARAMETER...], words without quotes") from None
        finally:
            self.client.dry_run = always_dry
            self._renew()
            if sys.stdin.isatty() and any(word in cmdline for word in SECRET_WORDS):
                with contextlib.suppress(ValueError):
                    readline.remove_history_item(readline.get_current_history_length() - 1)

    def _without_options(self, line: str) -> str:
        """The line with `--NAME` spelt as a parameter; a `--dry-run` is done what it says of instead."""

        def parameter(option: re.Match[str]) -> str:
            name, value = option[1].replace("-", "_"), option[2]
            if name == "dry_run" and value is None:
                self.client.dry_run = True
                return ""
            return f"{name}={'true' if value is None else value}"

        return _OPTION.sub(parameter, line).strip()

    def _execute_command(self, path: str, command: str, pparams: list[str], kparams: dict[str, str]) -> None:
        if not path.endswith("*") or path == "*" or path.endswith("/*"):
            try:
                super()._execute_command(path, command, pparams, kparams)
            except Refused:
                raise
            except node.ExecutionError as error:
                remedy = "" if path.endswith("*") else self._remedy(path or ".", command, pparams, kparams)
                raise Refused(_lower(str(error)), remedy) from None
            return
        # An initiator's pattern that ends with a star, not "all children".
        try:
            target = self._current_node.get_node(path)
        except ValueError as error:
            raise Refused(str(error)) from None
        result = target.execute_command(command or "cd", pparams if command else ["."], kparams)
        if isinstance(result, node.ConfigNode):
            self._current_node = result

    def _remedy(self, path: str, command: str, pparams: list[str], kparams: dict[str, str]) -> str:
        """What to do about a command that configshell itself refused."""
        try:
            here = self._current_node.get_node(path)
        except ValueError:
            return _ELSEWHERE.get(path.strip("/").partition("/")[0], _LOOK)
        known = here.list_commands()
        if command and command not in known:
            close = difflib.get_close_matches(command, known, 1)
            return f"did you mean {close[0]}? {_HERE}" if close else _HERE
        if command in ("ls", "cd", ""):
            return _LOOK
        if command == "help":
            return _HERE
        if command in ("set", "get"):
            group = kparams.get("group") or next(iter(pparams), "")
            groups = here.list_config_groups()
            what = f"`{command} {group}`" if group in groups else f"`{command}`"
            return f"{what} lists what there is"
        names = list(inspect.signature(here.get_command_method(command)).parameters)
        close = [known for name in kparams if name not in names for known in difflib.get_close_matches(name, names, 1)]
        syntax = here.get_command_syntax(command)[0].strip()
        return (f"did you mean {close[0]}? " if close else "") + f"write `{syntax}`; `help {command}` explains it"

    def run_line(self, line: str) -> bool:
        """Run one line and explain what goes wrong; whether nothing did."""
        try:
            self.run_cmdline(line.strip())
        except node.ExecutionError as error:
            explain(error)
            return False
        return True

    def run_lines(self, lines: Iterable[str], *, keep_going: bool) -> bool:
        """Run a script, up to the first line that fails unless `keep_going`; whether none did."""
        good = True
        for number, line in enumerate(lines, 1):
            if not self.run_line(line):
                sys.stderr.write(f"wolun: that was line {number}: {_without_secrets(line.strip())}\n")
                good = False
                if not keep_going:
                    break
            if self._exit:
                break
        return good

    def run_terminal(self) -> None:
        """Talk to a person until they leave."""
        while not self._exit:
            try:
                self.run_interactive()
            except node.ExecutionError as error:
                explain(error)

    def _renew(self) -> None:
        self.facts.forget()
        self.generation += 1

    # -- completion ----------------------------------------------------------------------------------------------

    def _complete(self, text: str, state: int) -> str | None:
        try:
            if state == 0:
                self._renew()
                self._current_completions = []
            found: str | None = super()._complete(text, state)
        except (client.Failed, ValueError, AttributeError, IndexError, pyparsing.ParseException):
            return None  # half a line need not make sense
        return found

    def _complete_token_command(self, text: str, path: str, command: str) -> list[str]:
        found: list[str] = super()._complete_token_command(text, path, command)
        return sorted(set(found))

    def _display_completions(self, substitution: str, matches: list[str], max_length: int) -> None:
        width, longest = self.con.get_width(), 2 + max(map(len, matches), default=0)
        columns = max(1, width // longest)
        rows = [matches[start : start + columns] for start in range(0, len(matches), columns)]
        lines = ["".join(each.ljust(longest) for each in row).rstrip() for row in rows]
        self.con.raw_write("\n" + "\n".join(lines) + f"\n{self._get_prompt()}{readline.get_line_buffer()}")


def explain(error: node.ExecutionError) -> None:
    """Tell a person what was not done, and what to do."""
    if isinstance(error, Refused):
        remedy = f"\n{show.sentence(error.remedy)}" if error.remedy else ""
        sys.stderr.write(f"wolun: {error.message}{remedy}\n")
    else:
        sys.stderr.write(f"wolun: {_lower(str(error))}\n")
    sys.stderr.flush()


def say(text: str) -> None:
    """Print an answer."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def _located(expression: pyparsing.ParserElement) -> pyparsing.ParserElement:
    """What configshell wants to know of a word: where it begins and ends, and its value, which pyparsing's own `Located` has
    in a list.
    """
    here = pyparsing.Empty().set_parse_action(lambda _text, place, _tokens: place)
    return pyparsing.Group(here("locn_start") + expression("value") + here.copy().leave_whitespace()("locn_end"))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _without_secrets(line: str) -> str:
    return " ".join(word.partition("=")[0] + "=…" if word.startswith(SECRET_WORDS) else word for word in line.split())


def _colourful() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
