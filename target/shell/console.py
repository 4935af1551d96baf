# SPDX-License-Identifier: Apache-2.0
"""The command line of the shell: configshell's command line with additions.

* Names may contain `+`, and paths `*` and `?` inside a name (initiator patterns).  A path that ends with `/*` means all
  children.
* Errors go to standard error as a sentence and a remedy, and the exit status reports them.
* `--dry-run` in a line applies to that line; `--force` and the like are another spelling of `force=true`.
* Nothing is logged to a file, and a line with a secret is not stored in the history.
* Completions are listed without querying the terminal for its cursor position, so any terminal works.
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

from target import messages, printable, show
from target.control import client

T = TypeVar("T")
SECRET_WORDS = ("password=", "mutual_password=")
_OPTION = re.compile(r"(?<!\S)--([a-z][a-z-]*)(?:=(\S*))?(?!\S)")
_HERE = "`help` lists the commands of this node"
_LOOK = "`ls` lists the existing nodes, and TAB completes their names"
_ELSEWHERE = {
    "backstores": "use /volumes, which takes the place of /backstores in targetcli",
    "loopback": "set `lio: {loopback: true}` in the configuration file to see the LUNs as disks of this host",
}
"""Remedies for paths that only targetcli has."""


class Refused(node.ExecutionError):
    """The refusal of a command: a sentence and a remedy."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    @classmethod
    def because(cls, refusal: messages.Refusal) -> Refused:
        """Return the exception for a refusal of the daemon."""
        return cls(refusal.message, refusal.remedy)


class _Log(log.Log):
    """A log that writes messages to standard error, never to a file, and drops the debug messages of configshell."""

    def _log(self, level: str, message: object) -> None:
        if level in ("info", "warning", "error", "critical"):
            sys.stderr.write(f"{printable.lines(str(message))}\n")
            sys.stderr.flush()

    def debug(self, msg: object) -> None:
        pass

    def verbose(self, msg: object) -> None:
        pass


class Facts:
    """The daemon's answers: each question is asked at most once per command line."""

    def __init__(self, asked: client.Client) -> None:
        self.client = asked
        self._known: dict[str, Any] = {}

    def forget(self) -> None:
        """Forget all answers and close the connection, because the daemon closes idle connections anyway."""
        self._known.clear()
        self.client.close()

    def get(self, what: str, ask: Callable[[], T]) -> T:
        """Return the answer to the question called `what`, with each text in it as one printable line."""
        return self.get_exactly(what, lambda: printable.message(ask()))

    def get_exactly(self, what: str, ask: Callable[[], T]) -> T:
        """Return the answer to the question called `what`, and call `ask` if it is not known yet."""
        if what not in self._known:
            self._known[what] = ask()
        answer: T = self._known[what]
        return answer

    def has(self, what: str) -> bool:
        """Return whether the answer to `what` is known."""
        return what in self._known


class Shell(configshell_fb.ConfigShell):
    """A shell for the daemon of client `asked`.  It keeps preferences and history in `directory`, if given."""

    _current_node: Any
    _current_completions: list[str]

    def __init__(self, asked: client.Client, directory: Path | None = None) -> None:
        super().__init__(None if directory is None else str(directory))
        self.facts = Facts(asked)
        self.client = asked
        self.generation = 0
        self.log = _Log()
        self.con = console.Console(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)  # the current streams
        # The grammar of a line; the original has no `+` and no patterns in paths.
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
        """Run one line.  Raises ExecutionError, often its subclass Refused."""
        self._renew()
        always_dry = self.client.dry_run
        try:
            if cmdline and not cmdline.startswith("#"):
                cmdline = self._without_options(cmdline)
                # Check the whole line, because configshell's own parser silently ignores the part that it cannot read.
                (self._parser + pyparsing.StringEnd()).parse_string(cmdline)
                _, _, command, *parameters = self._parse_cmdline(cmdline)
                if any(parameters) and not command:
                    raise Refused(f"there is no command in {cmdline}", "write [PATH] COMMAND [PARAMETER...]")
                super().run_cmdline(cmdline)
        except client.Failed as failed:
            raise Refused.because(failed.refusal) from failed
        except pyparsing.ParseException as error:
            what = f"the line cannot be parsed from {cmdline[error.loc :].split()[0]} on"
            raise Refused(what, "write [PATH] COMMAND [PARAMETER...], words without quotes") from None
        finally:
            self.client.dry_run = always_dry
            self._renew()
            if sys.stdin.isatty() and any(word in cmdline for word in SECRET_WORDS):
                with contextlib.suppress(ValueError):
                    readline.remove_history_item(readline.get_current_history_length() - 1)

    def _without_options(self, line: str) -> str:
        """Return the line with `--NAME` written as a parameter; `--dry-run` is removed and takes effect here."""

        def parameter(option: re.Match[str]) -> str:
            name, value = option[1].replace("-", "_"), option[2]
            if name == "dry_run" and value is None:
                self.client.dry_run = True
                return ""
            return f"{name}={'true' if value is None else value}"

        return _OPTION.sub(parameter, line).strip()

    def _execute_command(self, path: str, command: str, pparams: list[str], kparams: dict[str, str]) -> None:
        if not path.endswith("*") or path == "*" or path.endswith("/*"):
            if command == "set" and kparams and not pparams and "group" not in kparams:
                self._refuse_without_group(path, kparams)
            try:
                super()._execute_command(path, command, pparams, kparams)
            except Refused:
                raise
            except node.ExecutionError as error:
                remedy = "" if path.endswith("*") else self._remedy(path or ".", command, pparams, kparams)
                raise Refused(_lower(str(error)), remedy) from None
            return
        # The path is an initiator's pattern that ends with a star; it does not mean "all children".
        try:
            target = self._current_node.get_node(path)
        except ValueError as error:
            raise Refused(str(error)) from None
        result = target.execute_command(command or "cd", pparams if command else ["."], kparams)
        if isinstance(result, node.ConfigNode):
            self._current_node = result

    def _refuse_without_group(self, path: str, given: dict[str, str]) -> None:
        """Raise Refused for a `set` that names no group, with the line that was probably meant."""
        try:
            here = self._current_node.get_node(path or ".")
        except ValueError:
            return  # configshell refuses the path
        groups = {group: here.list_group_params(group, writable=True) for group in here.list_config_groups()}
        for group, names in groups.items():
            meant = [next(iter(difflib.get_close_matches(name, names, 1)), None) for name in given]
            if all(meant):
                pairs = " ".join(f"{name}={value}" for name, value in zip(meant, given.values(), strict=True))
                raise Refused(
                    "`set` needs the name of a group", f"did you mean `set {group} {pairs}`? `set` lists the groups"
                )
        raise Refused(
            f"no group here has {' and '.join(given)}", f"the groups are: {', '.join(sorted(groups))}; `set` lists them"
        )

    def _remedy(self, path: str, command: str, pparams: list[str], kparams: dict[str, str]) -> str:
        """Return the remedy for a command that configshell itself refused."""
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
            known_names = here.list_group_params(group, writable=True) if group in groups else groups
            asked = [name for name in kparams if name not in known_names] if group in groups else [group]
            close = [word for name in asked for word in difflib.get_close_matches(name, known_names, 1)]
            return f"{f'did you mean {close[0]}? ' if close else ''}{what} lists the possible values"
        names = list(inspect.signature(here.get_command_method(command)).parameters)
        close = [known for name in kparams if name not in names for known in difflib.get_close_matches(name, names, 1)]
        syntax = here.get_command_syntax(command)[0].strip()
        return (f"did you mean {close[0]}? " if close else "") + f"write `{syntax}`; `help {command}` explains it"

    def run_line(self, line: str) -> bool:
        """Run one line and explain any error.  Return True if there was none."""
        try:
            self.run_cmdline(line.strip())
        except node.ExecutionError as error:
            explain(error)
            return False
        return True

    def run_lines(self, lines: Iterable[str], *, keep_going: bool) -> bool:
        """Run a script up to the first line that fails, or with `keep_going` all of it.  Return True if no line failed."""
        good = True
        for number, line in enumerate(lines, 1):
            if not self.run_line(line):
                failed = printable.line(_without_secrets(line.strip()))
                sys.stderr.write(f"wolun: the failed line is line {number}: {failed}\n")
                good = False
                if not keep_going:
                    break
            if self._exit:
                break
        return good

    def run_terminal(self) -> None:
        """Run an interactive session until the user leaves it."""
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
            completion: str | None = super()._complete(text, state)
        except (client.Failed, ValueError, AttributeError, IndexError, pyparsing.ParseException):
            return None  # an incomplete line may be invalid
        return completion

    def _complete_token_command(self, text: str, path: str, command: str) -> list[str]:
        commands: list[str] = super()._complete_token_command(text, path, command)
        return sorted(set(commands))

    def _display_completions(self, substitution: str, matches: list[str], max_length: int) -> None:
        width, longest = self.con.get_width(), 2 + max(map(len, matches), default=0)
        columns = max(1, width // longest)
        rows = [matches[start : start + columns] for start in range(0, len(matches), columns)]
        lines = ["".join(match.ljust(longest) for match in row).rstrip() for row in rows]
        self.con.raw_write("\n" + "\n".join(lines) + f"\n{self._get_prompt()}{readline.get_line_buffer()}")


def explain(error: node.ExecutionError) -> None:
    """Print an error and its remedy on standard error."""
    if isinstance(error, Refused):
        text = f"{error.message}\n{show.sentence(error.remedy)}" if error.remedy else error.message
    else:
        text = _lower(str(error))
    sys.stderr.write(f"wolun: {printable.lines(text)}\n")
    sys.stderr.flush()


def say(text: str, *, coloured: bool = False) -> None:
    """Print an answer, with our colours if `coloured`."""
    sys.stdout.write((text if coloured else printable.lines(text)).rstrip("\n") + "\n")
    sys.stdout.flush()


def _located(expression: pyparsing.ParserElement) -> pyparsing.ParserElement:
    """Return an expression that yields a word's start, end and value, as configshell expects them.

    pyparsing's own `Located` wraps the value in a list.
    """
    here = pyparsing.Empty().set_parse_action(lambda _text, place, _tokens: place)
    return pyparsing.Group(here("locn_start") + expression("value") + here.copy().leave_whitespace()("locn_end"))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _without_secrets(line: str) -> str:
    return " ".join(word.partition("=")[0] + "=…" if word.startswith(SECRET_WORDS) else word for word in line.split())


def _colourful() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
