# SPDX-License-Identifier: Apache-2.0
"""One SCSI command on its way through a connection, and its data-out buffer as it fills.

The data arrives in up to three ways, in this order (RFC 7143 4.2.3): immediate data inside the command PDU, unsolicited
Data-Out PDUs up to FirstBurstLength, and Data-Out sequences that an R2T asked for.  Unsolicited data is kept in one
piece of at most FirstBurstLength.  Solicited data is kept in a second piece, which is allocated once the connection's
budget has room for it.  The device server gets both pieces as a scatter list.

| stage      | meaning                                               | next                             |
| ---------- | ----------------------------------------------------- | -------------------------------- |
| UNSOLICITED| more unsolicited data will come                       | WAITING, READY                   |
| WAITING    | data must be solicited; the budget has no room yet    | SOLICITED                        |
| SOLICITED  | R2Ts are out                                          | READY                            |
| READY      | the buffer is complete                                | RUNNING                          |
| RUNNING    | with the device server                                | DONE                             |
| DONE       | answered, or aborted and quiet                        |                                  |
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from target.iscsi import errors
from target.scsi.task import Task


class Stage(enum.Enum):
    """The stage of a command; see the module's docstring."""

    UNSOLICITED = enum.auto()
    WAITING = enum.auto()
    SOLICITED = enum.auto()
    READY = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()


class OutOfOrder(Exception):
    """A Data-Out does not follow the one before: one was lost, and ErrorRecoveryLevel 0 has no retransmission."""


class Barrier:
    """A call that is made once all of `commands` are done, for an answer that must not come before them."""

    __slots__ = ("_left", "_then")

    def __init__(self, commands: Sequence[Command], then: Callable[[], None]) -> None:
        self._left = len(commands)
        self._then = then
        for command in commands:
            command.barriers.append(self)
        if not commands:
            then()

    def arrive(self) -> None:
        """Note that one more of the commands is done."""
        self._left -= 1
        if not self._left:
            self._then()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a command that fails without its data."""

    status: int
    sense: bytes


@dataclass(slots=True)
class ReadyToTransfer:
    """One R2T that is out."""

    ttt: int
    offset: int
    length: int
    received: int = 0
    data_sn: int = 0


def private_buffers(length: int) -> Sequence[memoryview]:
    """Return room for data-in that outlives the receive batch: a worker reads it, or it goes out in several PDUs."""
    return (memoryview(bytearray(length)),)


class Command:
    """A SCSI command that could not be answered at once."""

    __slots__ = (
        "barriers",
        "borrows",
        "charged",
        "counted",
        "expected",
        "itt",
        "lease",
        "next_offset",
        "r2t_sn",
        "r2ts",
        "reads",
        "refused",
        "solicited",
        "stage",
        "taken",
        "task",
        "unsolicited",
        "unsolicited_received",
        "unsolicited_sn",
        "writes",
    )

    def __init__(self, itt: int, task: Task, expected: int, *, reads: bool, writes: bool, counted: bool) -> None:
        self.itt = itt
        self.task = task
        self.expected = expected  # bytes of data-out, or of data-in when it only reads
        self.reads = reads
        self.writes = writes
        self.counted = counted  # it took a place in the command window: not sent as immediate
        self.stage = Stage.READY
        self.borrows = False  # its data-out is a view into the receive buffer
        self.refused: Refusal | None = None  # its data is thrown away, and it fails once the rest has arrived
        self.charged = 0  # bytes of the connection's budget it holds
        self.taken = 0  # bytes of the portal's memory it holds
        self.lease: object | None = None  # the receive buffer that the portal keeps for it
        self.barriers: list[Barrier] = []
        self.unsolicited: memoryview = memoryview(b"")
        self.unsolicited_received = 0
        self.unsolicited_sn = 0
        self.solicited: memoryview = memoryview(b"")
        self.next_offset = 0  # the first byte not yet asked for
        self.r2ts: dict[int, ReadyToTransfer] = {}
        self.r2t_sn = 0

    @property
    def broken(self) -> bool:
        """Whether its data is thrown away, because it fails."""
        return self.refused is not None

    def refuse(self, why: Refusal) -> None:
        """Let the command fail once the data that was announced or asked for has arrived; none of it is kept."""
        self.refused = why
        self.unsolicited = memoryview(b"")

    @property
    def budget(self) -> int:
        """The bytes of memory that its solicited data takes, or will take."""
        return self.expected - self.unsolicited_received

    @property
    def progress(self) -> int:
        """A number that changes with every piece of data-out."""
        return self.unsolicited_received + self.next_offset + sum(r2t.received for r2t in self.r2ts.values())

    def begin_data_out(self, immediate: memoryview, first_burst: int, *, more: bool) -> None:
        """Start collecting; `more` says that unsolicited Data-Out PDUs follow.  Raises PeerError."""
        if len(immediate) > min(first_burst, self.expected):
            raise errors.PeerError("more immediate data than FirstBurstLength or the command allow")
        room = min(first_burst, self.expected) if more else len(immediate)
        self.unsolicited = memoryview(bytearray(room))
        self.unsolicited[: len(immediate)] = immediate
        self.unsolicited_received = len(immediate)
        self.stage = Stage.UNSOLICITED
        if not more:
            self.end_unsolicited()

    def end_unsolicited(self) -> None:
        """Note that no further unsolicited data comes: the F bit was set, or all of it is here."""
        self.unsolicited = self.unsolicited[: self.unsolicited_received]
        self.next_offset = self.unsolicited_received
        self.stage = Stage.READY if self.next_offset == self.expected else Stage.WAITING

    def begin_solicited(self) -> None:
        """Allocate the solicited data: the budget has room, and R2Ts may go out."""
        self.solicited = memoryview(bytearray(self.expected - self.next_offset))
        self.stage = Stage.SOLICITED

    def next_r2t(self, ttt: int, max_burst: int) -> ReadyToTransfer | None:
        """Return the next R2T to send, or None if all data was asked for."""
        length = min(max_burst, self.expected - self.next_offset)
        if not length:
            return None
        r2t = self.r2ts[ttt] = ReadyToTransfer(ttt, self.next_offset, length)
        self.next_offset += length
        return r2t

    def unsolicited_place(self, data_sn: int, offset: int, length: int) -> memoryview:
        """Return where an unsolicited Data-Out's bytes belong.  Raises OutOfOrder, PeerError."""
        start = self.unsolicited_received
        if self.stage is not Stage.UNSOLICITED:
            raise errors.PeerError("unsolicited data that was not announced")
        if data_sn != self.unsolicited_sn or offset != start:
            raise OutOfOrder
        if start + length > len(self.unsolicited):
            raise errors.PeerError("more unsolicited data than FirstBurstLength or the command allow")
        self.unsolicited_sn += 1
        self.unsolicited_received += length
        return self.unsolicited[start : start + length]

    def solicited_place(self, r2t: ReadyToTransfer, data_sn: int, offset: int, length: int) -> memoryview:
        """Return where a solicited Data-Out's bytes belong.  Raises OutOfOrder, PeerError."""
        if data_sn != r2t.data_sn or offset != r2t.offset + r2t.received:
            raise OutOfOrder
        if r2t.received + length > r2t.length:
            raise errors.PeerError("more data than the R2T asked for")
        r2t.data_sn += 1
        r2t.received += length
        start = offset - self.unsolicited_received
        return self.solicited[start : start + length]

    def gathered(self) -> Sequence[memoryview]:
        """Return the complete data-out buffer."""
        return [piece for piece in (self.unsolicited, self.solicited) if len(piece)]

    def finish(self) -> None:
        """Mark the command done, and let every barrier that waited for it know."""
        self.stage = Stage.DONE
        for barrier in self.barriers:
            barrier.arrive()
        self.barriers.clear()
