# SPDX-License-Identifier: Apache-2.0
"""Commands that every device has (SPC-4 clause 6).

INQUIRY, REPORT LUNS, TEST UNIT READY, REQUEST SENSE, and the reports of supported operation codes and task management
functions.  START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL are here, too.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable

from lun_backends import block_device
from target.scsi import sense, transfer
from target.scsi.commands import inquiry
from target.scsi.logical_unit import CommandRow, ItlNexus
from target.scsi.task import Task
from target.scsi.unit_kind import UnitKind

REPORT_LUNS_WELL_KNOWN_LUN = 0xC101 << 48


def lun_field(number: int) -> int:
    """Return the 8-byte LUN of a unit for REPORT LUNS: peripheral addressing below 256, flat above (SAM-5 4.7.7)."""
    return (number if number < 256 else 0x4000 | number) << 48


def test_unit_ready(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run TEST UNIT READY.  An invalid snapshot is not ready, and only a read discovers that."""
    unit = itl.unit
    if unit.kind is not UnitKind.PRIMARY:
        block = memoryview(bytearray(unit.block_size))
        # One bad or blank block does not make a unit unready.
        with contextlib.suppress(block_device.BlankBlock, block_device.MediumError):
            if not nowait:
                unit.device.readv(0, [block])
            elif not unit.device.read_now(0, unit.block_size, [block]):
                raise block_device.WouldBlock
    transfer.good(task)


def check_inquiry(cdb: bytes | memoryview) -> tuple[bool, int, int]:
    """Return EVPD, page code and allocation length of an INQUIRY; refuse a page code without EVPD."""
    evpd = bool(cdb[1] & 1)
    if cdb[2] and not evpd:
        raise sense.invalid_field(2)
    return evpd, cdb[2], int.from_bytes(cdb[3:5])


def inquiry_(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run INQUIRY."""
    evpd, code, allocation_length = check_inquiry(task.cdb)
    if evpd:
        data = inquiry.page(itl.unit, code, itl.nexus.target_name)
        if data is None:
            raise sense.invalid_field(2)
    else:
        data = inquiry.for_unit(itl.unit)
    transfer.reply(task, data, allocation_length)


def reply_sense(task: Task, reported: sense.Sense) -> None:
    """Answer REQUEST SENSE: sense data as parameter data, in the format that DESC asks for."""
    transfer.reply(task, reported.pack(descriptor=bool(task.cdb[1] & 1)), task.cdb[4])


def request_sense(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REQUEST SENSE: report the oldest unit attention, if any (other sense data went with its status)."""
    reply_sense(task, itl.take_attention() or sense.NO_SENSE)


def reply_luns(task: Task, numbers: Iterable[int]) -> None:
    """Answer REPORT LUNS, by SELECT REPORT (SPC-4 table 293)."""
    match task.cdb[2]:
        case 0x00:
            luns = [lun_field(number) for number in sorted(numbers)]
        case 0x01:
            luns = [REPORT_LUNS_WELL_KNOWN_LUN]
        case 0x02:
            luns = [lun_field(number) for number in sorted(numbers)] + [REPORT_LUNS_WELL_KNOWN_LUN]
        case _:
            raise sense.invalid_field(2)
    transfer.reply(task, struct.pack(f">I4x{len(luns)}Q", 8 * len(luns), *luns), int.from_bytes(task.cdb[6:10]))


def report_luns(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REPORT LUNS; this initiator then needs no unit attention about changed LUNs."""
    reply_luns(task, itl.nexus.luns)
    itl.nexus.luns_reported()


def start_stop_unit(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run START STOP UNIT: flush the device, as a drive would; there is no medium to spin, load or eject (SBC-4 5.31)."""
    if task.cdb[4] & 0x02:  # LOEJ: the medium is not removable
        raise sense.invalid_field(4, 1)
    if not task.cdb[4] & 0x04:  # NO_FLUSH
        if nowait:
            raise block_device.WouldBlock
        itl.unit.device.flush()
    transfer.good(task)


def prevent_allow(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run PREVENT ALLOW MEDIUM REMOVAL: the medium is not removable, so its removal is always prevented."""
    transfer.good(task)


def _timeouts(command: CommandRow) -> bytes:
    return struct.pack(">HxBII", 0x0A, 0, 0, command.timeout)


def report_supported_operation_codes(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REPORT SUPPORTED OPERATION CODES (SPC-4 6.35), from the table that dispatches."""
    options, opcode, action, allocation_length = struct.unpack_from(">BBHI", task.cdb, 2)
    timeouts = bool(options & 0x80)
    rows = itl.unit.commands.rows
    option = options & 7
    if option == 0:
        data = bytearray(4)
        for row in rows:
            flags = (1 if row.service_action is not None else 0) | (2 if timeouts else 0)
            data += struct.pack(">BxHxBH", row.opcode, row.service_action or 0, flags, len(row.usage))
            data += _timeouts(row) if timeouts else b""
        data[0:4] = struct.pack(">I", len(data) - 4)
        transfer.reply(task, data, allocation_length)
        return
    same = [row for row in rows if row.opcode == opcode]
    has_actions = any(row.service_action is not None for row in same)
    if option > 3 or (option == 1 and has_actions) or (option == 2 and same and not has_actions):
        raise sense.invalid_field(2, 2)
    row_action = action if has_actions else None if option == 1 or action == 0 else action
    supported = next((row for row in same if row.service_action == row_action), None)
    if supported is None:
        data = bytearray(struct.pack(">BBH", 0, 1, 0))
    else:
        usage = bytearray(supported.usage)
        if supported.service_action is not None:
            usage[1] = usage[1] & 0xE0 | supported.service_action  # the usage map holds the service action's own value
        data = bytearray(struct.pack(">BBH", 0, 3 | (0x80 if timeouts else 0), len(usage))) + usage
        data += _timeouts(supported) if timeouts else b""
    transfer.reply(task, data, allocation_length)


TASK_MANAGEMENT_FUNCTIONS = 0x80 | 0x40 | 0x10 | 0x08 | 0x02
"""ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET."""


def report_supported_tmf(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.36), with timeouts if REPD asks for them."""
    data = bytes((TASK_MANAGEMENT_FUNCTIONS, 0, 0, 0))
    if task.cdb[2] & 0x80:
        data = bytes((TASK_MANAGEMENT_FUNCTIONS, 0, 0, 12, 0, 0, 0, 0)) + bytes(8)
    transfer.reply(task, data, int.from_bytes(task.cdb[6:10]))
