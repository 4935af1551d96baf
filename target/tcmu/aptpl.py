# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations of the kernel's target that outlive it (APTPL, SPC-4 5.12.5).

The kernel itself handles the reservations of TCMU devices.  It writes persistent ones to a file, named for the serial
number of the device, but it never reads such a file.  rtslib reads it: when it makes the device, it hands each
registration back to the kernel.  A registration, and the reservation of its holder, is in force as soon as the holder's
LUN is mapped.

This module looks at the file first, for three reasons:

* The kernel writes the file in place, and a power cut may leave a part of it.  rtslib would take the part for the
  whole.
* The kernel writes types as two hexadecimal digits, but reads them as C does.  There, 08 (all registrants) is no
  number, and the device would not come up.
* If any initiator may log in, the kernel maps LUNs for an initiator only at its login.  So the kernel must learn from
  us which initiators have registrations.

The file is text: `KEY=VALUE` in lines between `PR_REG_START: N` and `PR_REG_END: N`, for each registration.
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
    """The file is damaged; the text names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The owner of a registration: the initiator's name, and its transport, `iscsi` or `loopback` in lower case."""

    initiator: str
    fabric: str


def load(path: Path) -> tuple[Registration, ...]:
    """Return the registrations of a device; none if there is no file.  Raises Damaged, OSError."""
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
    """Rewrite the types in the form that the kernel reads.  Raises OSError."""
    text = _text(path)
    if text is not None and (readable := _TYPE.sub(r"\1=\2", text)) != text:
        small_file.replace(path, readable.encode())


def _text(path: Path) -> str | None:
    """Return the text of the file, without the kernel's zero at its end; None if there is no file.  Raises OSError."""
    try:
        return path.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except FileNotFoundError:
        return None
