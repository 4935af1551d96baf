# SPDX-License-Identifier: Apache-2.0
"""Conversion of sizes, times and rates between text and numbers: `64KiB` to 65536 and back.

The settings use it for reading, the commands for writing.  It imports almost nothing, so that commands start fast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SIZE_UNITS: Mapping[str, int] = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "PiB": 1 << 50,
}

SIZE_PATTERN = r"^[0-9]+ ?(B|KiB|MiB|GiB|TiB|PiB)?$"
_SIZE = re.compile(r"([0-9]+) ?([A-Za-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes in `1GiB`, `64 KiB` or `4096`.  Raises ValueError with a suggestion."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a whole number and a unit, like 1GiB or 64KiB")
    number, unit = match.groups()
    factor = SIZE_UNITS.get(unit or "B")
    if factor is None:
        suggestion = next((name for name in SIZE_UNITS if unit and name[0] == unit[0].upper()), None)
        hint = f"did you mean {number}{suggestion}? " if suggestion else ""
        raise ValueError(f"{unit!r} is not a unit of size; {hint}units are {', '.join(SIZE_UNITS)}")
    return int(number) * factor


def exact_size(count: int) -> str:
    """Return the shortest text that `parse_size` reads back as `count`."""
    for name, factor in reversed(list(SIZE_UNITS.items())):
        if count and count % factor == 0:
            return f"{count // factor}{name}"
    return f"{count}B"


def human_size(count: float) -> str:
    """Return a size in three significant digits: `1.25 GiB`."""
    value = float(count)
    for name in SIZE_UNITS:
        if abs(value) < 999.5 or name == "PiB":
            if name == "B" or value == int(value):
                return f"{value:.0f} {name}"
            digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{digits}f} {name}"
        value /= 1024
    raise AssertionError("the loop ends at the largest unit")


def human_percent(part: float, whole: float) -> str:
    """Return a part in percent: `12.5 %`.  A part above zero is never rounded to zero, nor a part below all to 100 %."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "<0.1 %"
    return f"{percent:.1f} %" if percent < 99.95 or part < whole else "100 %"


def human_seconds(seconds: float) -> str:
    """Return a duration for people: `850 us`, `3.2 ms`, `12 s`, `4 min`, `3 h`, `5 d`."""
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds * 1000:.0f} us" if milliseconds < 1 else f"{milliseconds:.1f} ms"
    for limit, factor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
