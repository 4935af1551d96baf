# SPDX-License-Identifier: Apache-2.0
"""Each alert code of the daemon has an explanation, and each explanation belongs to an alert."""

from __future__ import annotations

import ast
from pathlib import Path

import target
from target import explanations

SERVICE = Path(target.__file__).parent / "service"
ALERTS = (SERVICE / "alerts.py", SERVICE / "nodes.py", SERVICE / "status.py")


def _alert_codes() -> set[str]:
    """Return the codes that the source passes to `messages.Alert`, directly or through the name `code`."""
    codes: set[str] = set()
    for node in (node for source in ALERTS for node in ast.walk(ast.parse(source.read_text()))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Alert":
            codes |= _texts(node.args[0])
        elif isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "code" for to in node.targets):
            codes |= _texts(node.value)
    return codes


def _texts(node: ast.expr) -> set[str]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def test_each_alert_has_an_explanation_and_the_reverse() -> None:
    assert _alert_codes() == set(explanations.EXPLANATIONS)


def test_explanations_fit_a_terminal_and_are_whole_sentences() -> None:
    for code, text in explanations.EXPLANATIONS.items():
        assert max(map(len, text.splitlines())) <= 130, code
        assert text[-1] == ".", code
