# SPDX-License-Identifier: Apache-2.0
"""The shortest path of plain READs and WRITEs, for a fabric that gets commands one at a time.

`Nexus.execute` can run every command.  If an initiator waits for each answer before it sends the next command, the cost
of `execute` is most of its wait.  `Plain.run` is for the usual commands only: READ and WRITE of 10 and 16 bytes without
any flag, of blocks that exist, with data of exactly that length.  The table says on which kinds of unit a command is
plain (`Command.plain`), and a `Plain` looks there once for its nexus and unit.

A command on this path takes the steps of every command (see `logical_unit`), but the fabric fills in no `Task`.  Either
`run` has done all of the command, with GOOD, or `Nexus.execute` can run the command again from the start without harm.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from time import perf_counter

from target.scsi.latency import SAMPLE
from target.scsi.logical_unit import ItlNexus
from target.scsi.task import Task

_TEN = struct.Struct(">BBIxHB").unpack_from  # opcode, flags, LBA, (group number), count, control
_SIXTEEN = struct.Struct(">BBQIxB").unpack_from

SAMPLED = SAMPLE - 1
READ_10, READ_16, WRITE_10, WRITE_16 = 0x28, 0x88, 0x2A, 0x8A


class Plain:
    """The plain commands of one nexus to one unit.  One command at a time: `run` is for one thread."""

    __slots__ = ("_itl", "_task", "_unit")

    def __init__(self, itl: ItlNexus) -> None:
        self._itl = itl
        self._unit = itl.unit
        self._task = Task(lambda _length: ())  # stands for the command that runs; its fields are not used

    def run(self, memory: memoryview, at: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Run the command whose CDB is at `memory[at]`, with `length` bytes of `buffers` for its data.

        Return whether it was plain and ended with GOOD; if not, the caller hands it to `Nexus.execute`.  This method
        neither raises nor waits.
        """
        opcode, flags, lba, count, control = _TEN(memory, at)
        if opcode != READ_10 and opcode != WRITE_10:
            if opcode != READ_16 and opcode != WRITE_16:
                return False
            opcode, flags, lba, count, control = _SIXTEEN(memory, at)
        unit = self._unit
        shift = unit.shift
        if (
            flags
            or control
            or count << shift != length
            or not 0 < count <= unit.max_transfer
            or lba + count > unit.blocks
        ):
            return False
        itl = self._itl
        running = unit.running
        running[self._task] = itl
        try:
            if itl.unusual:
                return False
            began = 0.0 if unit.counters.commands & SAMPLED else perf_counter()
            if opcode in (READ_10, READ_16):
                if not unit.device.read_now(lba << shift, length, buffers):
                    return False
                unit.counters.bytes_read += length
            else:
                if not itl.plain_writes or not unit.device.write_now(lba << shift, length, buffers):
                    return False
                unit.counters.bytes_written += length
            unit.counters.commands += 1
            if began:
                unit.latencies.by_opcode[opcode].add(perf_counter() - began, SAMPLE)
        except Exception:  # noqa: BLE001 - `execute` runs the command again, meets any lasting error again, and reports it
            return False
        finally:
            del running[self._task]
            if unit.draining:
                unit.task_ended(self._task)
        return True
