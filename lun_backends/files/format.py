# SPDX-License-Identifier: Apache-2.0
"""The formats of small files of state, which are JSON with a number `format`.

A version refuses what it does not know.  The refusal of a newer format must not look like damage, because the remedy
for damage, a backup, would lose what the newer version wrote.
"""

from __future__ import annotations

import json

REMEDY = "start the newer version again"
"""The remedy for a file of a newer format."""


def newer(text: bytes, known: int) -> str:
    """Return the fault of a file if its format is newer than `known`; an empty text if it is not."""
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    number = found.get("format") if isinstance(found, dict) else None
    return newer_than(number, known) if isinstance(number, int) and number > known else ""


def newer_than(number: int, known: int) -> str:
    """Return the reason for refusing a file of the newer format `number`."""
    return f"it was made by a newer wolun: it has format {number}, and this version reads formats up to {known}"
