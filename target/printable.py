# SPDX-License-Identifier: Apache-2.0
"""Text from outside, made safe to show: names, aliases and labels, anything that a peer or a file says.

A terminal obeys control characters, a log ends a record at a newline, and some characters turn the direction of a line.
So each character that `str.isprintable` rejects is shown as an escape: `\\x1b`, `\\n`, `\\u202e`.  The log, the commands, the
shell and the metrics show text from outside only after one of these functions.  JSON keeps it as it is, in JSON's own escapes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def line(text: str) -> str:
    """Return `text` as one line in which each character can be seen."""
    return text if text.isprintable() else "".join(map(_shown, text))


def lines(text: str) -> str:
    """Return `text` with each of its lines printable.  Newlines stay, so what is on a line must come from us."""
    return "\n".join(map(line, text.split("\n")))


def message(value: T) -> T:
    """Return a message (messages.py), or a list, tuple or dictionary of messages, with each text in it as one line."""
    safe: T = _message(value)
    return safe


def _message(value: Any) -> Any:
    if isinstance(value, str):
        return line(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_message, value))
    if isinstance(value, dict):
        return {_message(key): _message(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        after = {name: _message(item) for name, item in before.items()}
        return value if after == before else dataclasses.replace(value, **after)
    return value


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    number = ord(character)
    if number > 0xFFFF:
        return f"\\U{number:08x}"
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
