# SPDX-License-Identifier: Apache-2.0
"""The shell's refusals, and the answers of the daemon that it remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
from configshell_fb import node

from target import messages
from target.control import client
from target.shell import console


def test_a_refusal_is_a_sentence_and_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    console.explain(console.Refused.because(messages.Refusal("in-use", "vol0 is in use", "stop using it first")))
    assert capsys.readouterr().err == "wolun: vol0 is in use\nStop using it first.\n"


def test_text_from_outside_is_printable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.explain(console.Refused("v\x1b[2J failed", "try\x07 again"))
    console.say("a\x9b31m\nb")
    shown = capsys.readouterr()
    assert (shown.err, shown.out) == ("wolun: v\\x1b[2J failed\nTry\\x07 again.\n", "a\\x9b31m\nb\n")
    facts = console.Facts(client.Client(tmp_path))
    alert = messages.Alert("c", "s", "a\n\x1b[31mforged", "wait")
    assert facts.get("alerts", lambda: [alert])[0].message == "a\\n\\x1b[31mforged"
    assert facts.get_exactly("the same", lambda: [alert]) == [alert]


def test_a_refusal_of_configshell_has_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    console.explain(node.ExecutionError("No such path /x"))
    assert capsys.readouterr().err == "wolun: no such path /x\n"


def test_a_question_is_asked_once_until_the_answers_are_forgotten(tmp_path: Path) -> None:
    facts = console.Facts(client.Client(tmp_path))
    answers = iter((1, 2))
    assert not facts.has("count")
    assert [facts.get("count", lambda: next(answers)) for _ in range(2)] == [1, 1]
    assert facts.has("count")
    facts.forget()
    assert facts.get("count", lambda: next(answers)) == 2


def test_an_answer_of_none_is_remembered(tmp_path: Path) -> None:
    facts = console.Facts(client.Client(tmp_path))
    asked = []
    for _ in range(2):
        assert facts.get("nothing", lambda: asked.append(1)) is None
    assert len(asked) == 1
