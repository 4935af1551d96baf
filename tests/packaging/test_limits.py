# SPDX-License-Identifier: Apache-2.0
"""The numbers of `config/limits.md` are those of the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from target import descriptors, units
from target.configuration import settings, values

CONFIG = Path(__file__).resolve().parents[2] / "config"
PAGE = (CONFIG / "limits.md").read_text()


def number(text: str) -> int:
    """Return the number that a cell of the table means."""
    text = text.replace(",", "").strip()
    if text == "8 EiB less one byte":
        return (8 << 60) - 1
    return units.parse_size(text)


def test_enforced_limits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `([a-z_.]+)\.([A-Z_]+)` \|$", PAGE, re.MULTILINE)
    assert len(rows) > 12
    for cell, module, name in rows:
        assert number(cell) == getattr(importlib.import_module(module), name), name


def test_defaults_are_those_of_the_code() -> None:
    portal = settings.Portal()
    assert f"| {portal.sessions} sessions;" in PAGE
    assert f"| {portal.memory >> 20} MiB, shared by all sessions | {values.MEMORY_MINIMUM >> 20} MiB or more |" in PAGE
    found = re.search(r"^LimitNOFILE=([0-9]+)$", (CONFIG / "wolun.service").read_text(), re.MULTILINE)
    assert found is not None
    assert f"{int(found[1]):,} open files" in PAGE
    assert descriptors.enough_for(int(found[1])) > 100_000
