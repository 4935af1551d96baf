# SPDX-License-Identifier: Apache-2.0
"""TransportIDs of iSCSI initiator ports (SPC-4 7.6.4.6).

| byte | |
| --- | --- |
| 0    | TPID FORMAT (bits 7-6), PROTOCOL IDENTIFIER 5h |
| 2-3  | ADDITIONAL LENGTH, a multiple of four, at least 20 |
| 4-   | format 01b: `<iSCSI name>,i,0x<ISID>`, NUL-terminated and padded; format 00b: the name alone |
"""

from __future__ import annotations

import re
import struct

from target import iscsi_name
from target.scsi import sense
from target.scsi.reservations.persistent_reservation import InitiatorPort

ISCSI = 0x05
NAME_ONLY, NAME_AND_ISID = 0x00, 0x40
_MINIMUM = 20
_PORT = re.compile(r"(?P<name>[^,]+),i,0x(?P<isid>[0-9a-fA-F]{1,12})")


def pack(port: InitiatorPort) -> bytes:
    """Return the TransportID of a port."""
    if port.isid:
        code, text = NAME_AND_ISID, f"{port.initiator},i,0x{port.isid}"
    else:
        code, text = NAME_ONLY, port.initiator
    name = text.encode() + b"\0"
    name = name.ljust(max(_MINIMUM, len(name) + 3 & ~3), b"\0")
    return struct.pack(">BxH", code | ISCSI, len(name)) + name


def unpack(data: bytes, start: int) -> tuple[InitiatorPort, int]:
    """Return the port named at `data[start:]`, and the end of the TransportID; a port of format 00b has no ISID.

    Raises CheckCondition with a pointer into the parameter list.
    """
    if len(data) - start < 4 + _MINIMUM:
        raise sense.parameter_list_length()
    code, length = struct.unpack_from(">BxH", data, start)
    if code & 0x3F != ISCSI or code & 0xC0 not in (NAME_ONLY, NAME_AND_ISID):
        raise sense.invalid_parameter(start)
    end = start + 4 + length
    if length < _MINIMUM or length % 4:
        raise sense.invalid_parameter(start + 2)
    if end > len(data):
        raise sense.parameter_list_length()
    raw, nul, _ = data[start + 4 : end].partition(b"\0")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise sense.invalid_parameter(start + 4) from None
    if not nul:
        raise sense.invalid_parameter(start + 4)
    if code & 0xC0 == NAME_AND_ISID:
        match = _PORT.fullmatch(text)
        if match is None:
            raise sense.invalid_parameter(start + 4)
        name, isid = match["name"], match["isid"].lower().zfill(12)
    else:
        name, isid = text, ""
    try:
        return InitiatorPort(iscsi_name.normal_form(name), isid), end
    except iscsi_name.NotAName:
        raise sense.invalid_parameter(start + 4) from None
