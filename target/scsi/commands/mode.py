# SPDX-License-Identifier: Apache-2.0
"""MODE SENSE and MODE SELECT, (6) and (10), and the mode pages (SPC-4 6.9 ff., 7.5; SBC-4 6.5).

One parameter can be changed, WCE, until the daemon ends.  MODE SELECT accepts the values of all others that are in force, and
refuses other ones.

| page | content |
| --- | --- |
| 01h read-write error recovery | nothing special |
| 08h caching | WCE = 1: a write is stable only after SYNCHRONIZE CACHE or with FUA; 0: when it ends, or on a write-protected unit |
| 0Ah control | commands may be reordered; D_SENSE; TAS = 1: TASK ABORTED answers a command that another initiator ended |
| 1Ch informational exceptions control | none are reported |
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from lun_backends.block_device import WouldBlock
from target.scsi import sense, transfer
from target.scsi.logical_unit import ItlNexus, LogicalUnit
from target.scsi.sense import Asc
from target.scsi.task import Task

WP = 0x80
DPOFUA = 0x10

CHANGEABLE, SAVED = 1, 3  # page control
ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF


def _error_recovery(unit: LogicalUnit) -> bytes:
    return bytes(10)


_WCE = 0x04
_CACHING = 0x08


def _caching(unit: LogicalUnit) -> bytes:
    return struct.pack(">B17x", 0x00 if unit.write_protected or not unit.write_cache else _WCE)


def _changeable(unit: LogicalUnit, code: int, length: int) -> bytes:
    """Return the mask of the bits of a page that MODE SELECT can change."""
    wce = code == _CACHING and not unit.write_protected
    return (bytes((_WCE,)) if wce else b"").ljust(length, b"\0")


def _control(unit: LogicalUnit) -> bytes:
    d_sense = 0x04 if unit.descriptor_sense else 0x00
    return struct.pack(">BBBBHHH", d_sense, 0x10, 0, 0x40, 0, 0xFFFF, 0)  # QUEUE ALGORITHM MODIFIER 1: unrestricted


def _informational_exceptions(unit: LogicalUnit) -> bytes:
    return bytes(10)


PAGES: dict[int, Callable[[LogicalUnit], bytes]] = {
    0x01: _error_recovery,
    0x08: _caching,
    0x0A: _control,
    0x1C: _informational_exceptions,
}


def pages(unit: LogicalUnit, control: int, code: int, subpage: int) -> bytes | None:
    """Return the requested mode pages; None if there is no such page.

    The default values are those in force.
    """
    if subpage not in (0, ALL_SUBPAGES):
        return None
    codes = sorted(PAGES) if code == ALL_PAGES else [code]
    data = b""
    for page in codes:
        if page not in PAGES:
            return None
        body = PAGES[page](unit)
        data += bytes((page, len(body))) + (_changeable(unit, page, len(body)) if control == CHANGEABLE else body)
    return data


def _block_descriptor(unit: LogicalUnit, *, long: bool) -> bytes:
    if long:
        return struct.pack(">Q4xI", unit.blocks, unit.block_size)
    return struct.pack(">II", min(unit.blocks, 0xFFFFFFFF), unit.block_size)


def mode_sense(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run MODE SENSE(6) and (10)."""
    unit, cdb = itl.unit, task.cdb
    ten = cdb[0] == 0x5A
    control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if control == SAVED:
        raise sense.illegal_request(Asc.SAVING_PARAMETERS_NOT_SUPPORTED)
    data = pages(unit, control, code, subpage)
    if data is None:
        raise sense.invalid_field(2 if subpage in (0, ALL_SUBPAGES) else 3)
    long = ten and bool(cdb[1] & 0x10)
    descriptor = b"" if cdb[1] & 0x08 else _block_descriptor(unit, long=long)
    specific = DPOFUA | (WP if itl.write_protected else 0)
    length = len(descriptor) + len(data)
    if ten:
        header = struct.pack(">HBBBxH", length + 6, 0, specific, 1 if long and descriptor else 0, len(descriptor))
        allocation_length = int.from_bytes(cdb[7:9])
    else:
        header = struct.pack(">BBBB", length + 3, 0, specific, len(descriptor))
        allocation_length = cdb[4]
    transfer.reply(task, header + descriptor + data, allocation_length)


def _check_block_descriptor(unit: LogicalUnit, given: bytes, start: int, *, long: bool) -> None:
    """Refuse another capacity or block size; a number of blocks of 0, or all ones, keeps the capacity (SBC-4 6.5.2)."""
    blocks = int.from_bytes(given[:8] if long else given[:4])
    block_size = int.from_bytes(given[12:16] if long else given[5:8])
    ones = (1 << 64 if long else 1 << 32) - 1
    if blocks not in (0, ones, unit.blocks if long else min(unit.blocks, ones)):
        raise sense.invalid_parameter(start)
    if block_size != unit.block_size:
        raise sense.invalid_parameter(start + (12 if long else 5))


def mode_select(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run MODE SELECT(6) and (10): GOOD if every page equals that of MODE SENSE but for WCE; saving is not supported."""
    unit, cdb = itl.unit, task.cdb
    ten = cdb[0] == 0x55
    length = int.from_bytes(cdb[7:9]) if ten else cdb[4]
    if cdb[1] & 0x01:  # SP
        raise sense.invalid_field(1, 0)
    given = transfer.joined(task, length)
    write_cache = unit.write_cache
    if length:
        header = 8 if ten else 4
        if length < header:
            raise sense.parameter_list_length()
        descriptor_length = int.from_bytes(given[6:8]) if ten else given[3]
        long = ten and bool(given[4] & 1)
        position = header + descriptor_length
        if position > length:
            raise sense.parameter_list_length()
        if descriptor_length not in (0, 16 if long else 8):
            raise sense.invalid_parameter(6 if ten else 3)
        if descriptor_length:
            _check_block_descriptor(unit, given[header:position], header, long=long)
        while position < length:
            code = given[position] & 0x3F
            if given[position] & 0x40 or code not in PAGES:  # no subpages
                raise sense.invalid_parameter(position)
            if position + 2 > length or position + 2 + given[position + 1] > length:
                raise sense.parameter_list_length()
            body = PAGES[code](unit)
            asked = bytearray(given[position + 1 : position + 2 + len(body)])
            if code == _CACHING and not unit.write_protected and len(asked) > 1:
                write_cache = bool(asked[1] & _WCE)
                asked[1] = asked[1] & ~_WCE | body[0] & _WCE
            different = transfer.first_difference(bytes((len(body),)) + body, bytes(asked))
            if given[position + 1] != len(body) or different is not None:
                raise sense.invalid_parameter(position + 1 + (different or 0))
            position += 2 + len(body)
    if write_cache != unit.write_cache:
        if nowait:
            raise WouldBlock
        unit.set_write_cache(write_cache, task=task)
        if unit.changed_by is not None:
            unit.changed_by(itl.nexus.port.initiator, f"MODE SELECT, WCE {int(write_cache)}, {unit.name}")
        unit.attention(*divmod(Asc.MODE_PARAMETERS_CHANGED, 256), excluding=itl.nexus)
    transfer.good(task)
