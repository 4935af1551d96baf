# SPDX-License-Identifier: Apache-2.0
"""The names of iSCSI nodes, and the one form in which they are compared (RFC 7143 4.2.7, RFC 3722).

| kind   | form                                                                     |
| ------ | ------------------------------------------------------------------------ |
| `iqn.` | `iqn.YEAR-MONTH.REVERSED-DOMAIN`, and perhaps `:ANYTHING`                |
| `eui.` | 16 hexadecimal digits                                                    |
| `naa.` | 16 or 32 hexadecimal digits                                              |

A name has at most 223 bytes of UTF-8, the letters and digits of any language, `-`, `.` and `:`, and no capitals.  A
name that comes with capitals is put into this form, because its user meant the same node.  `_` is accepted, too,
although RFC 3722 refuses it, because many initiators' names contain host names with `_`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAXIMUM = 223
"""Bytes of a name (RFC 7143 4.2.7.1)."""

_FORM = re.compile(
    r"iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[^:.][^:]*(?::.+)?|eui\.[0-9a-f]{16}|naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})"
)
_OTHER_ASCII = re.compile(r"[^a-z0-9.:_\-\u0080-\U0010ffff]")


class NotAName(ValueError):
    """The text is not the name of an iSCSI node; the message says why."""


def normal_form(name: str) -> str:
    """Return the form of a name in which names are compared.  Raises NotAName."""
    if len(name.encode("utf-8", "surrogatepass")) > MAXIMUM:
        raise NotAName(f"it has more than {MAXIMUM} bytes")
    normal = name.lower() if name.isascii() else _prepared(name)
    if refused := _OTHER_ASCII.search(normal):
        raise _refused(refused[0])
    if not _FORM.fullmatch(normal):
        raise NotAName("it is not iqn.YEAR-MONTH.REVERSED-DOMAIN:ANYTHING, eui. with 16 or naa. with 16 or 32 digits")
    if len(normal.encode()) > MAXIMUM:
        raise NotAName(f"it has more than {MAXIMUM} bytes")
    return normal


def find(name: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` of the node that is called `name`, in its own spelling; None if there is none."""
    wanted = comparable(name)
    return next((other for other in known if comparable(other) == wanted), None)


def comparable(name: str) -> str:
    """Return the normal form of a name.  Return other text unchanged: files of older versions may have such names."""
    try:
        return normal_form(name)
    except NotAName:
        return name


def _refused(character: str) -> NotAName:
    return NotAName(f"it has the character U+{ord(character):04X}")


def _prepared(name: str) -> str:
    """Return a name that is not ASCII after RFC 3722's profile of stringprep.  Raises NotAName."""
    import stringprep  # few names need it
    from unicodedata import ucd_3_2_0

    folded = "".join(stringprep.map_table_b2(char) for char in name if not stringprep.in_table_b1(char))
    normal = ucd_3_2_0.normalize("NFKC", folded)
    for character in normal:
        if character == "\u3002" or any(
            prohibited(character)
            for prohibited in (
                stringprep.in_table_a1,  # not assigned in Unicode 3.2
                stringprep.in_table_c11_c12,
                stringprep.in_table_c21_c22,
                stringprep.in_table_c3,
                stringprep.in_table_c4,
                stringprep.in_table_c5,
                stringprep.in_table_c6,
                stringprep.in_table_c7,
                stringprep.in_table_c8,
                stringprep.in_table_c9,
            )
        ):
            raise _refused(character)
    if any(map(stringprep.in_table_d1, normal)):  # it is written from right to left, RFC 3454 6
        mixed = any(map(stringprep.in_table_d2, normal))
        if mixed or not (stringprep.in_table_d1(normal[0]) and stringprep.in_table_d1(normal[-1])):
            raise NotAName("it mixes directions of writing")
    return normal
