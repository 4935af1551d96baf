# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations of the kernel's target that outlive it (APTPL, SPC-4 5.12.5).

For TCMU devices the kernel handles reservations itself.  Those that are to persist it writes to a file named for the device's
serial number, but it never reads one: rtslib does when it makes the device, and gives each registration back.  It is in force,
and so is the reservation of its holder, from when the holder's LUN is mapped.

What is left for us to do is to look at the file first:

* The kernel writes it in place, and a power cut may leave a part of it.  A part is not taken for the whole, as rtslib would.
* The kernel writes types in hexadecimal with two digits, and reads them as C does: 08, all registrants, is no number to it, and
  the device would not come up.
* Where anyone may log in, nobody's LUNs are mapped before they do: who has registrations must be made known.

The file is text, `KEY=VALUE` in lines between `PR_REG_START: N` and `PR_REG_END: N` for each registration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lun_backends.files import small_file

NOTHING = "No Registrations or Reservations"
_BLOCK = re.compile(r"PR_REG_START: (\d+)\n(.*?)PR_REG_END: \1\n", re.DOTALL)
_TYPE = re.compile(r"^(res_type|res_scope)=0([0-9])$", re.MULTILINE)
_NEEDED = frozenset({"initiator_fabric", "initiator_node", "sa_res_key", "target_node", "target_lun", "mapped_lun"})


class Damaged(Exception):
    """The file cannot be understood; says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Whose it is: the initiator's name, and its transport, `iscsi` or `loopback` in small letters."""

    initiator: str
    fabric: str


def load(path: Path) -> tuple[Registration, ...]:
    """What was remembered of a device; nothing if there is no file.  Raises Damaged, OSError."""
    text = _text(path)
    if text is None or text.strip() == NOTHING:
        return ()
    blocks = [
        dict(line.split("=", 1) for line in block[2].splitlines() if "=" in line) for block in _BLOCK.finditer(text)
    ]
    if not blocks or _BLOCK.sub("", text).strip() or not all(fields.keys() >= _NEEDED for fields in blocks):
        raise Damaged(f"{path} is damaged: put it back from a backup, or delete it and let initiators reserve anew")
    return tuple(Registration(fields["initiator_node"], fields["initiator_fabric"].lower()) for fields in blocks)


def make_readable(path: Path) -> None:
    """Write types as the kernel reads them.  Raises OSError."""
    text = _text(path)
    if text is not None and (readable := _TYPE.sub(r"\1=\2", text)) != text:
        small_file.replace(path, readable.encode())


def _text(path: Path) -> str | None:
    """What the file says, without the zero that the kernel puts at its end; None if there is none.  Raises OSError."""
    try:
        return path.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except FileNotFoundError:
        return None
