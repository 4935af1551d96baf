# SPDX-License-Identifier: Apache-2.0
"""Text from outside becomes text that no terminal obeys and no log takes for a record of its own."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target import printable


@dataclasses.dataclass(frozen=True, slots=True)
class Inner:
    text: str
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Outer:
    name: str | None
    number: int
    inner: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vol0", "vol0"),
        ("Größe 1, ε", "Größe 1, ε"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\u202edb", "\\u202edb"),
        ("\x9b31m", "\\x9b31m"),
        ("\udc80", "\\udc80"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_each_character_that_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable.line(text) == shown


@given(st.text())
def test_a_line_is_one_printable_line(text: str) -> None:
    assert printable.line(text).isprintable()


def test_lines_keep_their_newlines_only() -> None:
    assert printable.lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


def test_each_text_of_a_message_is_printable() -> None:
    message = Outer("a\n", 1, (Inner("b\x1b", {"k\x07": "v\x07"}), Inner("c")))
    assert printable.message(message) == Outer("a\\n", 1, (Inner("b\\x1b", {"k\\x07": "v\\x07"}), Inner("c")))
    assert printable.message([message])[0].name == "a\\n"
    good = Outer(None, 1, (Inner("c"),))
    assert printable.message(good) is good, "a message that is printable is not copied"
