# SPDX-License-Identifier: Apache-2.0
"""A LUN of another host, and how its answers become errors.  Each transport is a subclass of `Unit` (`sg_io.py`, `libiscsi.py`).

| the answer                          | becomes                                                                  |
| ----------------------------------- | ------------------------------------------------------------------------ |
| GOOD, CONDITION MET                 | the data                                                                 |
| CHECK CONDITION, UNIT ATTENTION     | the same command again; `take_attentions` returns what the device said   |
| CHECK CONDITION, NOT READY 04h/01h  | the same command again, with growing pauses, until `timeout` has passed  |
| BUSY, TASK SET FULL                 | likewise                                                                 |
| CHECK CONDITION                     | `CheckCondition` with the sense data                                     |
| RESERVATION CONFLICT                | `block_device.ReservationConflict`; the command was not carried out      |
| TASK ABORTED, or CHECK CONDITION    | `TaskAborted`; the command may have been carried out in part             |
| with ABORTED COMMAND                |                                                                          |
| none                                | `block_device.NoAnswer`; the command may have been carried out           |

UNIT ATTENTION and BUSY say that the device has not carried out the command (SAM-5 5.3.1, 5.14), so to send it again is right.
"""

from __future__ import annotations

import abc
import random
import threading
import time
from dataclasses import dataclass
from typing import Self

from lun_backends import block_device
from lun_backends.block_device import Buffers

TIMEOUT = 30.0
"""Seconds that a command may take.  Linux gives its own commands as much."""

GOOD, CHECK_CONDITION, CONDITION_MET, BUSY = 0x00, 0x02, 0x04, 0x08
RESERVATION_CONFLICT, TASK_SET_FULL, TASK_ABORTED = 0x18, 0x28, 0x40

MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION, DATA_PROTECT, BLANK_CHECK = 0x3, 0x5, 0x6, 0x7, 0x8
_NOT_READY, _ABORTED_COMMAND = 0x2, 0xB

INVALID_COMMAND_OPERATION_CODE = 0x2000
LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = 0x2100
INVALID_FIELD_IN_CDB = 0x2400
LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
WRITE_PROTECTED = 0x2700
SPACE_ALLOCATION_FAILED_WRITE_PROTECT = 0x2707
I_T_NEXUS_LOSS_OCCURRED = 0x2907
RESERVATIONS_PREEMPTED = 0x2A03
RESERVATIONS_RELEASED = 0x2A04
REGISTRATIONS_PREEMPTED = 0x2A05
CAPACITY_DATA_HAS_CHANGED = 0x2A09
REPORTED_LUNS_DATA_HAS_CHANGED = 0x3F0E
_BECOMING_READY = 0x0401

_ATTENTIONS = 32  # a device has one or two; one that has no end of them is broken
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense data (SPC-4 4.5): `asc` is ASC and ASCQ as one number, `information` is None unless it is valid."""

    key: int
    asc: int
    information: int | None = None

    def __str__(self) -> str:
        return f"sense key {self.key:X}h, {self.asc >> 8:02X}h/{self.asc & 0xFF:02X}h"


class CheckCondition(block_device.BlockDeviceError):
    """The device refused or failed a command, and said why in `sense`."""

    def __init__(self, address: str, operation: int, sense: Sense) -> None:
        """Say which device refused which operation code."""
        super().__init__(f"{address} ended command {operation:02X}h with {sense}")
        self.sense = sense


class TaskAborted(block_device.NoAnswer):
    """The device aborted the command, mostly for another initiator.  A part of it may have been carried out."""


class CannotSend(block_device.BlockDeviceError):
    """The command cannot be sent from here at all; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a device: status (SAM-5 5.3), bytes that were received, raw sense data."""

    status: int
    received: int = 0
    sense: bytes = b""


def decode_sense(raw: bytes) -> Sense:
    """Decode sense data of the fixed or the descriptor format (SPC-4 4.5.2, 4.5.3), as far as it goes."""
    length = len(raw)
    raw = raw.ljust(18, b"\0")
    if raw[0] & 0x7F in (0x72, 0x73):
        information, position, end = None, 8, min(8 + raw[7], length)
        while position + 2 <= end:
            if raw[position] == 0 and raw[position + 2] & 0x80 and position + 12 <= end:
                information = int.from_bytes(raw[position + 4 : position + 12])
                break
            position += raw[position + 1] + 2
        return Sense(raw[1] & 0x0F, int.from_bytes(raw[2:4]), information)
    return Sense(
        raw[2] & 0x0F, int.from_bytes(raw[12:14]), int.from_bytes(raw[3:7]) if raw[0] & 0x80 and length >= 7 else None
    )


class Unit(abc.ABC):
    """A LUN of another host.  Every method may be called from any number of threads at once."""

    address: str
    """How an administrator names the LUN: `/dev/…` or `iscsi://HOST[:PORT]/IQN/LUN`."""
    max_transfer: int = 4 << 20
    """Bytes that the path to the LUN moves with one command; the LUN itself may take fewer."""

    def __init__(self, address: str) -> None:
        """Begin with no unit attention seen."""
        self.address = address
        self._attentions: list[int] = []
        self._lock = threading.Lock()

    def execute(
        self, cdb: bytes, data_out: bytes | Buffers = b"", in_length: int = 0, timeout: float = TIMEOUT
    ) -> bytes:
        """Send a command, and return its data-in, at most `in_length` bytes.

        `timeout` is in seconds, for each time that the command is sent.  Raise the errors of the module's table.
        """
        buffer = bytearray(in_length)
        received = self._carry_out(cdb, data_out, [memoryview(buffer)] if in_length else (), timeout)
        return bytes(memoryview(buffer)[:received])

    def execute_into(self, cdb: bytes, buffers: Buffers, timeout: float = TIMEOUT) -> int:
        """Send a command that fills `buffers`, and return the number of bytes received."""
        return self._carry_out(cdb, b"", buffers, timeout)

    def take_attentions(self) -> list[int]:
        """Return the additional sense codes of the unit attentions since the last call, oldest first."""
        with self._lock:
            taken, self._attentions = self._attentions, []
        return taken

    @abc.abstractmethod
    def reset_logical_unit(self, timeout: float = TIMEOUT) -> None:
        """Have the LUN end all commands of all initiators (LOGICAL UNIT RESET, SAM-5 7.7), and return when that is done.

        The commands of this host on the LUN may fail with NoAnswer.  Raise NoAnswer, CannotSend.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the LUN; later calls raise DeviceClosed.  Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abc.abstractmethod
    def _send(self, cdb: bytes, data_out: Buffers, data_in: Buffers, timeout: float) -> Answer:
        """Send a command once.  Raise NoAnswer, CannotSend, DeviceClosed."""

    def _carry_out(self, cdb: bytes, data_out: bytes | Buffers, data_in: Buffers, timeout: float) -> int:
        buffers = [memoryview(data_out)] if isinstance(data_out, bytes) else data_out
        if not block_device.total_length(buffers):
            buffers = ()
        end, pause, attentions = time.monotonic() + timeout, _FIRST_PAUSE, 0
        while True:
            answer = self._send(cdb, buffers, data_in, timeout)
            if answer.status in (GOOD, CONDITION_MET):
                return answer.received
            if answer.status == RESERVATION_CONFLICT:
                raise block_device.ReservationConflict
            if answer.status == TASK_ABORTED:
                raise TaskAborted(f"{self.address} aborted the command for another initiator")
            if answer.status == CHECK_CONDITION:
                sense = decode_sense(answer.sense)
                if sense.key == UNIT_ATTENTION and attentions < _ATTENTIONS:
                    attentions += 1
                    with self._lock:
                        self._attentions = [*self._attentions[-_ATTENTIONS:], sense.asc]
                    continue
                if sense.key == _ABORTED_COMMAND:
                    raise TaskAborted(f"{self.address} aborted the command: {sense}")
                if (sense.key, sense.asc) != (_NOT_READY, _BECOMING_READY):
                    raise CheckCondition(self.address, cdb[0], sense)
            elif answer.status not in (BUSY, TASK_SET_FULL):
                raise CannotSend(f"{self.address} answered with status {answer.status:02X}h, which SAM-5 does not know")
            if time.monotonic() + pause > end:
                raise block_device.NoAnswer(f"{self.address} was busy for {timeout:g} s")
            time.sleep(
                pause * random.uniform(0.5, 1.0)
            )  # two nodes that were refused together do not come back together
            pause = min(pause * 2, _LONGEST_PAUSE)
