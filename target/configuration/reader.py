# SPDX-License-Identifier: Apache-2.0
"""The reader of configuration files: it returns `settings.Settings`, or explains each mistake by file and line.

The reader composes a file into YAML nodes first, because nodes know their line.  It builds plain values from them, and
pydantic checks these.  For a mistake that pydantic finds at a path like `volumes[0].chunk_size`, the reader looks up
the node's line.  All problems of a file are reported at once, in the order of the lines.

Scalars follow YAML 1.2's core schema instead of YAML 1.1: `on`, `yes`, `2026-11-22` and `12:30` are strings, because
the author of a name like that meant a string.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from target import printable
from target.configuration import settings
from target.configuration.values import Where


@dataclass(frozen=True)
class Problem:
    """One mistake, at `file`:`line` (counted from 1)."""

    file: str
    line: int
    path: str
    what: str

    def __str__(self) -> str:
        return printable.line(f"{self.file}:{self.line}: {self.path + ': ' if self.path else ''}{self.what}")


class ConfigurationError(Exception):
    """A configuration file that cannot be used, with all its mistakes."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1 are inherited otherwise


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", ["t", "f"]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:0|[1-9][0-9]*)\.[0-9]+$", list("-+0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def load(path: Path) -> settings.Settings:
    """Return the settings in the file at `path`.

    Raise ConfigurationError, or OSError if the file cannot be read.
    """
    return parse(path.read_bytes(), str(path))


def parse(text: str | bytes, file: str) -> settings.Settings:
    """Return the settings in `text`, which came from `file`, or raise ConfigurationError."""
    reader = _Reader(file)
    value = reader.read(text)
    try:
        read = settings.Settings.model_validate(value)
    except pydantic.ValidationError as error:
        problems = [problem for details in error.errors() for problem in reader.explain(details)]
        raise ConfigurationError(_in_order(problems)) from None
    neighbours = [reader.problem(where, what) for where, what in read.problems().items()]
    if neighbours:
        raise ConfigurationError(_in_order(neighbours))
    return read


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line)


def spell(where: Where) -> str:
    """Return the path as users write it: `volumes[0].chunk_size` for ("volumes", 0, "chunk_size")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")


class _Reader:
    """One YAML text as plain values, with the line of each of them."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._lines: dict[Where, int] = {(): 1}  # of the key, where there is one; else of the value
        self._problems: list[Problem] = []

    def read(self, text: str | bytes) -> object:
        """Return the plain value, or raise ConfigurationError.  An empty text is an empty mapping."""
        try:
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
                value = {} if node is None else self._value(loader, node, (), ())
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            what = ", ".join(part for part in (error.context, error.problem) if part)
            raise ConfigurationError([Problem(self._file, line, "", f"this is not YAML: {what}")]) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            what = f"this is not YAML: {str(error).splitlines()[0]}"
            raise ConfigurationError([Problem(self._file, 1, "", what)]) from None
        if self._problems:
            raise ConfigurationError(_in_order(self._problems))
        return value

    def problem(self, where: Where, what: str) -> Problem:
        """Return the problem `what` at the line of `where`, or of the nearest value around it that is in the file."""
        known = where
        while known not in self._lines:
            known = known[:-1]
        return Problem(self._file, self._lines[known], spell(where), what)

    def _value(self, loader: _Loader, node: yaml.Node, where: Where, above: tuple[yaml.Node, ...]) -> object:
        self._lines.setdefault(where, node.start_mark.line + 1)
        if node in above:
            self._problems.append(self.problem(where, "this alias contains itself"))
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self._value(loader, item, (*where, index), (*above, node)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return dict(self._items(loader, node, where, (*above, node)))
        if not node.tag.startswith("tag:yaml.org,2002:"):
            self._problems.append(self.problem(where, f"tags like {node.tag} have no meaning here"))
            return None
        return loader.construct_object(node)

    def _items(
        self, loader: _Loader, node: yaml.MappingNode, where: Where, above: tuple[yaml.Node, ...]
    ) -> Iterator[tuple[str, object]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problems.append(Problem(self._file, line, spell(where), "a key must be a plain word"))
                continue
            key = str(key_node.value)
            path = (*where, key)
            if key in seen:
                self._problems.append(
                    Problem(self._file, line, spell(path), f"this key stands on line {seen[key]} already")
                )
                continue
            seen[key] = self._lines[path] = line
            yield key, self._value(loader, value_node, path, above)

    def explain(self, details: Any) -> Iterator[Problem]:
        """Yield a sentence for one of pydantic's errors, or none if other errors explain it."""
        where = self._strip(tuple(details["loc"]))
        kind, given = details["type"], details["input"]
        if kind == "extra_forbidden":
            allowed = list(_model_at(where[:-1]).model_fields)
            yield self.problem(where, f"unknown key;{_meant(str(where[-1]), allowed)} allowed: {', '.join(allowed)}")
            return
        if kind == "missing":
            yield self.problem(where, "this key is missing")
            return
        if kind == "too_short" and given:
            return  # its items are wrong, and are reported one by one
        yield self.problem(where, sentence(details))

    def _strip(self, loc: Where) -> Where:
        """Remove the names of union members, which pydantic puts at the end of a path and the file does not have."""
        while loc and loc not in self._lines and loc[:-1] in self._lines and _is_scalar(loc[:-1]):
            loc = loc[:-1]
        return loc


def sentence(details: Any) -> str:
    """Return what is wrong with a value, from one of pydantic's errors about it."""
    kind, context, given, message = details["type"], details.get("ctx", {}), details["input"], str(details["msg"])
    if kind == "enum":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return f"{given!r} is unknown;{_meant(str(given), allowed)} allowed: {', '.join(allowed)}"
    expected = {
        "string_type": "a string (in quotes, if it looks like a number)",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "path_type": "a path",
        "tuple_type": "a list",
        "model_type": "a group of keys",
        "ip_v4_network": "a network, like 127.0.0.0/8",
        "ip_v6_network": "a network, like 127.0.0.0/8",
    }.get(kind)
    if expected is not None:
        return f"{_shown(given)} is not {expected}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "greater_than_equal":
        return f"{_shown(given)} is too small: at least {context['ge']}"
    if kind == "less_than_equal":
        return f"{_shown(given)} is too large: at most {context['le']}"
    if kind == "too_short":
        return "this list must not be empty"
    if kind == "string_too_long":
        return f"this is too long: at most {context['max_length']} characters"
    return message


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list):
        return "a list"
    return repr(value)


def _meant(given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f" did you mean {close[0]}?" if close else ""


def _step(annotation: Any, part: str | int) -> Any:
    """Return the type at key or index `part` of a value of type `annotation`; None if there is none."""
    for option in typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,):
        if isinstance(part, int) and typing.get_origin(option) is tuple:
            return typing.get_args(option)[0]
        if isinstance(option, type) and issubclass(option, pydantic.BaseModel) and part in option.model_fields:
            return option.model_fields[str(part)].annotation
    return None


def _type_at(where: Where) -> Any:
    annotation: Any = settings.Settings
    for part in where:
        annotation = _step(annotation, part)
    if isinstance(annotation, types.UnionType):  # a group of keys that may be left out
        groups = [option for option in typing.get_args(annotation) if _is_group(option)]
        return groups[0] if len(groups) == 1 else annotation
    return annotation


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _model_at(where: Where) -> type[pydantic.BaseModel]:
    model = _type_at(where)
    if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)):
        raise TypeError(f"{spell(where)} is not a group of keys")
    return model


def _is_scalar(where: Where) -> bool:
    return not _is_group(_type_at(where))
