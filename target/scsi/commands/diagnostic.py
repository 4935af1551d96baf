# SPDX-License-Identifier: Apache-2.0
"""SEND DIAGNOSTIC: the self-tests (SPC-4 6.42 and 5.12).

| SELF-TEST CODE          | action                                                                           |
| ----------------------- | -------------------------------------------------------------------------------- |
| 0 with SELFTEST         | the default self-test: reads the first, the middle and the last block            |
| 1, 5: short             | the same, and log page 10h keeps the result                                      |
| 2, 6: extended          | is refused: `wolun snapshot verify` and a plain read do more than it could       |
| 4: abort                | is refused: a test has ended when its command ends, also one "in the background" |
"""

from __future__ import annotations

import contextlib

from lun_backends import block_device
from target.scsi import sense, transfer
from target.scsi.logical_unit import ItlNexus, LogicalUnit, SelfTest
from target.scsi.sense import Asc, CheckCondition, Sense, SenseKey
from target.scsi.task import Task

PASSED, FAILED_IN_A_SEGMENT = 0x0, 0x7  # SPC-4 table 369
BACKGROUND_SHORT, FOREGROUND_SHORT = 1, 5


def send_diagnostic(itl: ItlNexus, task: Task, nowait: bool) -> None:
    """Run SEND DIAGNOSTIC; a default or foreground test that fails ends with HARDWARE ERROR (3Eh/03h)."""
    unit, cdb = itl.unit, task.cdb
    code, default = cdb[1] >> 5, bool(cdb[1] & 0x04)
    if int.from_bytes(cdb[3:5]):  # there are no diagnostic pages
        raise sense.invalid_field(3)
    if code not in (0, BACKGROUND_SHORT, FOREGROUND_SHORT) or (default and code):
        raise sense.invalid_field(1, 7)
    if code or default:
        if nowait:
            raise block_device.WouldBlock
        result = _run(unit, code)
        if code:
            unit.keep_self_test(result)
        if result.outcome and code != BACKGROUND_SHORT:
            raise CheckCondition(Sense(SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST))
    transfer.good(task)


def _run(unit: LogicalUnit, code: int) -> SelfTest:
    """Read three blocks, and return the result.  A blank block does not count as a failure."""
    block = memoryview(bytearray(unit.block_size))
    for lba in sorted({0, unit.blocks // 2, unit.blocks - 1}):
        try:
            with contextlib.suppress(block_device.BlankBlock):
                unit.device.readv(lba << unit.shift, [block])
        except block_device.BlockDeviceError as error:
            return SelfTest(code, FAILED_IN_A_SEGMENT, unit.age_hours, lba, sense.from_error(error))
    return SelfTest(code, PASSED, unit.age_hours)
