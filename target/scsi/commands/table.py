# SPDX-License-Identifier: Apache-2.0
"""The one table of commands: for the dispatch, the check of every CDB, and REPORT SUPPORTED OPERATION CODES.

A row's `usage` is the CDB usage data of SPC-4 6.35.3: a mask of the bits that the unit looks at.  A CDB with any other
bit set is refused with INVALID FIELD IN CDB and a pointer to that bit.  This check comes before every handler, so the
unit never ignores a protection, NACA or reserved bit in silence.

READ and WRITE of 10 and 16 bytes have a `fast` handler in front, which does the plain case itself and hands every other
case to the checked handler.  FUA_NV (bit 1 of READ and WRITE), which SBC-3 made obsolete, is accepted and means
nothing: there is no non-volatile cache.  `command_set.py` has the columns of a row and the commands of one kind of
unit.
"""

from __future__ import annotations

import functools

from target.scsi.command_set import ALL, NONE, NOT_WRITE_ONCE, PRIMARY, Command, UnitCommands
from target.scsi.commands import block, compare, diagnostic, extended_copy, log_pages, mode, primary, reserve, thin
from target.scsi.logical_unit import Check, Handler, RangeOf
from target.scsi.reservations.persistent_reservation import Permission
from target.scsi.unit_kind import UnitKind


def _row(
    name: str,
    usage: str,
    handler: Handler,
    *,
    service_action: int | None = None,
    kinds: frozenset[UnitKind] = ALL,
    fast: Handler | None = None,
    plain: frozenset[UnitKind] = NONE,
    writes: bool = False,
    concerns_others: bool = False,
    range_written: RangeOf | None = None,
    check: Check | None = None,
    attention_exempt: bool = False,
    atomic: bool = False,
    needs: Permission = Permission.EVERYTHING,
    despite_reserve: bool = False,
    timeout: int = 30,
) -> Command:
    mask = bytes.fromhex(usage)
    return Command(
        name,
        mask[0],
        mask,
        handler,
        service_action,
        kinds,
        fast,
        plain,
        writes,
        concerns_others,
        range_written,
        check,
        attention_exempt,
        atomic,
        needs,
        despite_reserve,
        timeout,
    )


_PERSISTENT_RESERVE_OUT = 0x5F


def _reservation(
    name: str, opcode: int, action: int, handler: Handler, usage: str = "00 00 00 00 00 ff ff 00"
) -> Command:
    """Return a row of PERSISTENT RESERVE IN or OUT, whose handlers look at the reservation themselves."""
    return _row(
        name,
        f"{opcode:02x} 1f {usage}",
        handler,
        service_action=action,
        concerns_others=opcode == _PERSISTENT_RESERVE_OUT,
        needs=Permission.NOTHING,
    )


_OUT = "ff 00 00 ff ff ff ff 00"


# fmt: off
COMMANDS: tuple[Command, ...] = (
    _row("TEST UNIT READY",      "00 00 00 00 00 00", primary.test_unit_ready, needs=Permission.NOTHING),
    _row("REQUEST SENSE",        "03 01 00 00 ff 00", primary.request_sense, attention_exempt=True, needs=Permission.NOTHING, despite_reserve=True),
    _row("READ(6)",              "08 1f ff ff ff 00", block.read, needs=Permission.READ),
    _row("WRITE(6)",             "0a 1f ff ff ff 00", block.write, writes=True, check=block.transfer_range, range_written=block.cdb_range),
    _row("INQUIRY",              "12 01 ff ff ff 00", primary.inquiry_, attention_exempt=True, needs=Permission.NOTHING, despite_reserve=True),
    _row("MODE SELECT(6)",       "15 11 00 00 ff 00", mode.mode_select, concerns_others=True),
    _row("RESERVE(6)",           "16 00 00 00 00 00", reserve.reserve_spc2, concerns_others=True, needs=Permission.NOTHING, despite_reserve=True),
    _row("RELEASE(6)",           "17 00 00 00 00 00", reserve.release_spc2, needs=Permission.NOTHING, despite_reserve=True),
    _row("MODE SENSE(6)",        "1a 08 ff ff ff 00", mode.mode_sense, needs=Permission.READ),
    _row("START STOP UNIT",      "1b 01 00 0f f7 00", primary.start_stop_unit, concerns_others=True),
    _row("SEND DIAGNOSTIC",      "1d f7 00 ff ff 00", diagnostic.send_diagnostic, timeout=60),
    _row("PREVENT ALLOW MEDIUM REMOVAL", "1e 00 00 00 03 00", primary.prevent_allow, concerns_others=True),
    _row("READ CAPACITY(10)",    "25 00 00 00 00 00 00 00 00 00", block.read_capacity_10, needs=Permission.NOTHING, despite_reserve=True),
    _row("READ(10)",             "28 1a ff ff ff ff 1f ff ff 00", block.read, fast=block.fast_read_10, plain=ALL, needs=Permission.READ),
    _row("WRITE(10)",            "2a 1a ff ff ff ff 1f ff ff 00", block.write, fast=block.fast_write_10, plain=PRIMARY, writes=True, check=block.transfer_range, range_written=block.cdb_range),
    _row("WRITE AND VERIFY(10)", "2e 16 ff ff ff ff 1f ff ff 00", compare.write_and_verify, writes=True, check=block.transfer_range, range_written=block.cdb_range),
    _row("VERIFY(10)",           "2f 16 ff ff ff ff 1f ff ff 00", compare.verify, needs=Permission.READ),
    _row("PRE-FETCH(10)",        "34 02 ff ff ff ff 1f ff ff 00", block.pre_fetch, needs=Permission.READ),
    _row("SYNCHRONIZE CACHE(10)", "35 02 ff ff ff ff 1f ff ff 00", block.synchronize_cache, timeout=120),
    _row("WRITE SAME(10)",       "41 08 ff ff ff ff 1f ff ff 00", thin.write_same, kinds=NOT_WRITE_ONCE, writes=True, check=thin.write_same_range, timeout=300),
    _row("UNMAP",                "42 00 00 00 00 00 1f ff ff 00", thin.unmap, kinds=NOT_WRITE_ONCE, writes=True, timeout=300),
    _row("LOG SENSE",            "4d 00 ff ff 00 ff ff ff ff 00", log_pages.log_sense, needs=Permission.READ),
    _row("MODE SELECT(10)",      "55 11 00 00 00 00 00 ff ff 00", mode.mode_select, concerns_others=True),
    _row("RESERVE(10)",          "56 00 00 00 00 00 00 00 00 00", reserve.reserve_spc2, concerns_others=True, needs=Permission.NOTHING, despite_reserve=True),
    _row("RELEASE(10)",          "57 00 00 00 00 00 00 00 00 00", reserve.release_spc2, needs=Permission.NOTHING, despite_reserve=True),
    _row("MODE SENSE(10)",       "5a 18 ff ff 00 00 00 ff ff 00", mode.mode_sense, needs=Permission.READ),
    _reservation("PERSISTENT RESERVE IN, READ KEYS",           0x5E, 0, reserve.read_keys),
    _reservation("PERSISTENT RESERVE IN, READ RESERVATION",    0x5E, 1, reserve.read_reservation),
    _reservation("PERSISTENT RESERVE IN, REPORT CAPABILITIES", 0x5E, 2, reserve.report_capabilities),
    _reservation("PERSISTENT RESERVE IN, READ FULL STATUS",    0x5E, 3, reserve.read_full_status),
    _reservation("PERSISTENT RESERVE OUT, REGISTER",           0x5F, 0, reserve.register, _OUT),
    _reservation("PERSISTENT RESERVE OUT, RESERVE",            0x5F, 1, reserve.reserve, _OUT),
    _reservation("PERSISTENT RESERVE OUT, RELEASE",            0x5F, 2, reserve.release, _OUT),
    _reservation("PERSISTENT RESERVE OUT, CLEAR",              0x5F, 3, reserve.clear, _OUT),
    _reservation("PERSISTENT RESERVE OUT, PREEMPT",            0x5F, 4, reserve.preempt, _OUT),
    _reservation("PERSISTENT RESERVE OUT, PREEMPT AND ABORT",  0x5F, 5, reserve.preempt_and_abort, _OUT),
    _reservation("PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", 0x5F, 6, reserve.register_and_ignore, _OUT),
    _reservation("PERSISTENT RESERVE OUT, REGISTER AND MOVE",  0x5F, 7, reserve.register_and_move, _OUT),
    _row("EXTENDED COPY(LID1)",  "83 1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", extended_copy.extended_copy, service_action=0, kinds=NOT_WRITE_ONCE, writes=True, timeout=300),
    _row("RECEIVE COPY STATUS(LID1)", "84 1f ff 00 00 00 00 00 00 00 ff ff ff ff 00 00", extended_copy.copy_status, service_action=0, kinds=NOT_WRITE_ONCE, needs=Permission.READ),
    _row("RECEIVE COPY OPERATING PARAMETERS", "84 1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", extended_copy.operating_parameters, service_action=3, kinds=NOT_WRITE_ONCE, needs=Permission.READ),
    _row("READ(16)",             "88 1a ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.read, fast=block.fast_read_16, plain=ALL, needs=Permission.READ),
    _row("COMPARE AND WRITE",    "89 18 ff ff ff ff ff ff ff ff 00 00 00 ff 1f 00", compare.compare_and_write, kinds=NOT_WRITE_ONCE, writes=True, check=compare.check_compare_and_write, range_written=compare.compare_and_write_range),
    _row("WRITE(16)",            "8a 1a ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.write, fast=block.fast_write_16, plain=PRIMARY, writes=True, check=block.transfer_range, range_written=block.cdb_range),
    _row("ORWRITE(16)",          "8b 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", compare.orwrite, kinds=NOT_WRITE_ONCE, writes=True, check=block.transfer_range),
    _row("WRITE AND VERIFY(16)", "8e 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", compare.write_and_verify, writes=True, check=block.transfer_range, range_written=block.cdb_range),
    _row("VERIFY(16)",           "8f 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", compare.verify, needs=Permission.READ),
    _row("PRE-FETCH(16)",        "90 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.pre_fetch, needs=Permission.READ),
    _row("SYNCHRONIZE CACHE(16)", "91 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.synchronize_cache, timeout=120),
    _row("WRITE SAME(16)",       "93 09 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", thin.write_same, kinds=NOT_WRITE_ONCE, writes=True, check=thin.write_same_range, timeout=300),
    _row("WRITE ATOMIC(16)",     "9c 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", block.write_atomic, kinds=NOT_WRITE_ONCE, writes=True, check=block.atomic_range, atomic=True),
    _row("READ CAPACITY(16)",    "9e 1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", block.read_capacity_16, service_action=0x10, needs=Permission.NOTHING, despite_reserve=True),
    _row("GET LBA STATUS",       "9e 1f ff ff ff ff ff ff ff ff ff ff ff ff 00 00", thin.get_lba_status, service_action=0x12, needs=Permission.READ),
    _row("REPORT LUNS",          "a0 00 ff 00 00 00 ff ff ff ff 00 00", primary.report_luns, attention_exempt=True, needs=Permission.NOTHING, despite_reserve=True),
    _row("REPORT SUPPORTED OPERATION CODES", "a3 1f 87 ff ff ff ff ff ff ff 00 00", primary.report_supported_operation_codes, service_action=0x0C, needs=Permission.READ),
    _row("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", "a3 1f 80 00 00 00 ff ff ff ff 00 00", primary.report_supported_tmf, service_action=0x0D, needs=Permission.READ),
    _row("READ(12)",             "a8 1a ff ff ff ff ff ff ff ff 1f 00", block.read, needs=Permission.READ),
    _row("WRITE(12)",            "aa 1a ff ff ff ff ff ff ff ff 1f 00", block.write, writes=True, check=block.transfer_range, range_written=block.cdb_range),
    _row("WRITE AND VERIFY(12)", "ae 16 ff ff ff ff ff ff ff ff 1f 00", compare.write_and_verify, writes=True, check=block.transfer_range, range_written=block.cdb_range),
    _row("VERIFY(12)",           "af 16 ff ff ff ff ff ff ff ff 1f 00", compare.verify, needs=Permission.READ),
)
# fmt: on


@functools.cache
def for_unit(
    kind: UnitKind, *, write_protected: bool, atomic: bool = False, read_only: bool = False, write_through: bool = False
) -> UnitCommands:
    """Return the commands of a unit of that kind, for an initiator that may only read if it is `read_only`.

    `atomic` if the unit has a journal for atomic writes, `write_through` if its write cache is off.
    """
    return UnitCommands(
        COMMANDS,
        kind,
        write_protected=write_protected,
        atomic=atomic,
        read_only=read_only,
        write_through=write_through,
    )
