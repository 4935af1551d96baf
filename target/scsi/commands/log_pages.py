# SPDX-License-Identifier: Apache-2.0
"""LOG SENSE and its pages (SPC-4 6.20 and 7.3; SBC-4 6.4), those that `smartctl -a` reads from a disk.

| page | content |
| --- | --- |
| 00h, 00h/FFh | the pages, without and with subpages |
| 02h, 03h | the bytes written and read, and the number of permanent failures |
| 06h | errors that are not of the medium |
| 10h | the results of the newest self-tests |
| 2Fh | informational exceptions: none, and no temperature |

Counters begin at zero when the daemon starts, and a unit's initiators share them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from target.scsi import sense, transfer
from target.scsi.logical_unit import SELF_TESTS_KEPT, ItlNexus, LogicalUnit
from target.scsi.task import Task

CUMULATIVE = 1  # page control
ALL_SUBPAGES = 0xFF
_BINARY = 0x03  # FORMAT AND LINKING: a binary list; the counters' parameters differ in that they may be set to zero
_COUNTER = 0x00

Parameters = list[tuple[int, int, bytes]]
"""Parameter code, control byte, value."""


def _errors(processed: int, uncorrected: int) -> Parameters:
    """Return the parameters of an error counter page (SPC-4 7.3.8): nothing is ever corrected here."""
    values = (0, 0, 0, 0, 0, processed, uncorrected)
    return [(code, _COUNTER, value.to_bytes(8)) for code, value in enumerate(values)]


def _write_errors(unit: LogicalUnit) -> Parameters:
    return _errors(unit.counters.bytes_written, unit.counters.write_errors)


def _read_errors(unit: LogicalUnit) -> Parameters:
    return _errors(unit.counters.bytes_read, unit.counters.read_errors)


def _other_errors(unit: LogicalUnit) -> Parameters:
    counters = unit.counters
    count = max(0, counters.errors - counters.read_errors - counters.write_errors)
    return [(0, _COUNTER, count.to_bytes(8))]


def _self_tests(unit: LogicalUnit) -> Parameters:
    """Return the results, newest first; a parameter without a result is zeroes (SPC-4 7.3.19)."""
    results = []
    for test in unit.self_tests():
        failed = test.sense
        results.append(
            struct.pack(
                ">BBHQBBBx",
                test.code << 5 | test.outcome,
                0,
                min(test.hours, 0xFFFF),
                (1 << 64) - 1 if test.lba is None else test.lba,
                0 if failed is None else failed.key,
                0 if failed is None else failed.asc >> 8,
                0 if failed is None else failed.asc & 0xFF,
            )
        )
    results += [bytes(16)] * (SELF_TESTS_KEPT - len(results))
    return [(code, _BINARY, value) for code, value in enumerate(results, 1)]


def _informational_exceptions(unit: LogicalUnit) -> Parameters:
    return [(0, _BINARY, bytes((0, 0, 0xFF, 0)))]  # ASC, ASCQ, and an unknown temperature


PAGES: dict[int, Callable[[LogicalUnit], Parameters]] = {
    0x02: _write_errors,
    0x03: _read_errors,
    0x06: _other_errors,
    0x10: _self_tests,
    0x2F: _informational_exceptions,
}


def _page(unit: LogicalUnit, code: int, subpage: int, pointer: int) -> bytes:
    """Return a log page with its header.  Raises CheckCondition."""
    if code == 0 and subpage in (0, ALL_SUBPAGES):
        codes = (0, *PAGES)
        body = bytes(codes) if not subpage else b"".join(bytes((known, 0)) for known in codes)
        if subpage:
            body = bytes((0, 0, 0, ALL_SUBPAGES)) + body[2:]
    elif code in PAGES and subpage == 0:
        parameters = [entry for entry in PAGES[code](unit) if entry[0] >= pointer]
        if not parameters:
            raise sense.invalid_field(5)
        body = b"".join(
            struct.pack(">HBB", number, control, len(value)) + value for number, control, value in parameters
        )
    else:
        raise sense.invalid_field(3 if subpage else 2)
    return struct.pack(">BBH", (0x40 if subpage else 0) | code, subpage, len(body)) + body


def log_sense(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run LOG SENSE: the cumulative values; none are saved, and there are no thresholds."""
    cdb = task.cdb
    if cdb[2] >> 6 != CUMULATIVE:
        raise sense.invalid_field(2, 7)
    data = _page(itl.unit, cdb[2] & 0x3F, cdb[3], int.from_bytes(cdb[5:7]))
    transfer.reply(task, data, int.from_bytes(cdb[7:9]))
