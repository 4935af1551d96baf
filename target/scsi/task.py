# SPDX-License-Identifier: Apache-2.0
"""The seam between fabrics and the device server: a task, its status, and the executor of tasks (SAM-5 clause 5).

A fabric (the iSCSI portal, the TCMU ring) fills in a `Task` and calls `Nexus.execute(task, nowait=True)` on its event
loop.  On `WouldBlock` the task's results are untouched, and the fabric calls `execute` again on a worker thread with
`nowait=False`.  `execute` raises nothing else: every outcome, a bug of the device server included, is a status with
sense data.

The device server does no I/O of its own and keeps no reference to a task's buffers after `execute` returned.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

Allocate = Callable[[int], Sequence[memoryview]]
"""Return a scatter list of exactly that many bytes for data-in, in the session's buffer or in the ring's data area."""


_LENGTH_OF_GROUP = (6, 10, 10, 16, 16, 12, 1, 1)  # SPC-4 4.2.5.1; groups 6 and 7 are vendor specific, and unused here


def cdb_length(cdb: bytes | memoryview) -> int:
    """Return the length in bytes that a CDB must have, by the group code of its opcode."""
    return _LENGTH_OF_GROUP[cdb[0] >> 5] if len(cdb) else 1


class Status(enum.IntEnum):
    """The status codes of SAM-5 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class Task:
    """One SCSI command on one I_T_L nexus; a fabric may use the same object again for the next command.

    The fabric sets these:

    * `cdb`: bytes-like, at least 16 bytes long or as long as the command needs; may be reused after `execute` returns;
    * `data_out`: all of the data-out buffer, as a scatter list;
    * `allocate`, and `expected_in`: the number of bytes that the initiator can take (the transport truncates);
    * `residual_out` to 0.

    The device server sets these:

    * `status`, and `sense` (fixed or descriptor format, empty when GOOD);
    * `data_in`: a scatter list, may be shorter than allocated;
    * `residual_out`, when the CDB asks for more (positive: overflow) or fewer (negative: underflow) bytes of data-out
      than `data_out` holds.
    """

    __slots__ = (
        "aborted",
        "admitted",
        "allocate",
        "began",
        "cdb",
        "cleared",
        "data_in",
        "data_out",
        "expected_in",
        "lun",
        "residual_out",
        "sense",
        "status",
    )

    def __init__(self, allocate: Allocate) -> None:
        self.lun: int = 0  # the 8-byte LUN field as one big-endian number (SAM-5 4.7)
        self.cdb: bytes | memoryview = b""
        self.data_out: Sequence[memoryview] = ()
        self.expected_in: int = 0
        self.residual_out: int = 0
        self.allocate: Allocate = allocate
        self.aborted: bool = False  # set by task management; a long command looks at it between its steps
        self.began: float = 0.0  # set by the device server while the task waits: when it was tried first
        self.admitted: bool = False  # it is within the limits of its initiator and its unit
        self.cleared: bool = False  # set and taken back by the device server: another initiator's PREEMPT AND ABORT
        self.status: int = Status.GOOD
        self.sense: bytes = b""
        self.data_in: Sequence[memoryview] = ()


class Executor(Protocol):
    """The part of the device server that runs tasks: one I_T nexus, as both fabrics see it."""

    def execute(self, task: Task, *, nowait: bool) -> None:
        """Run the task to its end, and set its results.

        With `nowait`, raise WouldBlock instead of waiting and leave the results untouched.  Raise no other error.
        """

    def prepare(self, tasks: Sequence[Task], *, nowait: bool = False) -> bool:
        """Do the work that each write of these tasks would wait for, at once.  Return whether to try the tasks again.

        With `nowait`, do only the part that needs no waiting.
        """


class ForeseeingExecutor(Executor, Protocol):
    """An executor for a fabric that asks initiators for the data of their writes."""

    def refuses(self, task: Task) -> bool:
        """Return whether the task is refused whatever its data-out is; then its results are set.

        A task that is not refused has no results yet, and may still fail.
        """

    def takes_long(self, task: Task) -> bool:
        """Return whether the task may take many seconds by its nature, like a copy."""
