# SPDX-License-Identifier: Apache-2.0
"""The actions that the protocol asks of its driver, and what the driver answers.

`node.py` and `access.py` are generators.  They yield an action; the driver carries it out and sends the result.  If a
device answers RESERVATION CONFLICT (EBADE on Linux), the driver throws Conflict into the generator.  If it does not
answer, the driver throws Unreachable.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass


class Conflict(Exception):
    """The primary answered RESERVATION CONFLICT: this node is not registered, or was fenced.  A write may have been done."""


class Unreachable(Exception):
    """A device did not answer, or its answer was lost.  The command may have been carried out."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """READ RESERVATION and READ KEYS of the primary."""

    exists: bool
    keys: frozenset[int]


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read the log from that position up to the first blank block, past every cache.  Result: tuple of blocks (bytes)."""

    position: int


@dataclass(frozen=True, slots=True)
class Append:
    """Write a block of the log and make it durable.  Result: True; False for BLANK CHECK."""

    position: int
    block: bytes


@dataclass(frozen=True, slots=True)
class FindLun:
    """Look for a write-once LUN, with a rescan if necessary.  Result: whether this node sees it."""

    lun: uuid.UUID


@dataclass(frozen=True, slots=True)
class FindBlank:
    """List the pool's write-once LUNs that this node sees and that are verified blank.  Result: tuple of their identities."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """Return the key that this node's nexus has registered (READ FULL STATUS); None if it is not registered."""


@dataclass(frozen=True, slots=True)
class Register:
    """REGISTER with APTPL: own key `old` -> `new`, or whatever is registered -> `new` (REGISTER AND IGNORE EXISTING KEY) if `old` is None."""

    new: int
    old: int | None = None


@dataclass(frozen=True, slots=True)
class ReadReservation:
    """READ RESERVATION and READ KEYS.  Result: Reservation."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """RESERVE with that own key, for all registrants.  Success, too, if all registrants hold it already."""

    own: int


@dataclass(frozen=True, slots=True)
class PreemptAndAbort:
    """PREEMPT AND ABORT with that own key and service key 0."""

    own: int


@dataclass(frozen=True, slots=True)
class ResetLogicalUnit:
    """LOGICAL UNIT RESET of the primary.  It keeps keys and reservation, and returns when no command runs at the device."""


@dataclass(frozen=True, slots=True)
class Flush:
    """SYNCHRONIZE CACHE of the primary."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Wait until `Node.running` is 0: no write, copy or view of this node is under way, at the initiator or at the device."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait that many seconds, or until `Node.awake` is true."""

    seconds: float


@dataclass(frozen=True, slots=True)
class WaitForGate:
    """Wait until `Node.gate_open` is true.  The result may come early; the generator looks again."""


@dataclass(frozen=True, slots=True)
class ReadPrimary:
    """Read a grain of the primary.  Result: its bytes."""

    grain: int


@dataclass(frozen=True, slots=True)
class WritePrimary:
    """Write a grain of the primary.  After Conflict, and after Unreachable, it may be written or not."""

    grain: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Get:
    """Read a grain of a write-once LUN.  Result: its bytes; None if it is blank."""

    lun: uuid.UUID
    grain: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a grain of a write-once LUN and make it durable.  Result: True; False for BLANK CHECK."""

    lun: uuid.UUID
    grain: int
    data: bytes


Action = (
    ReadLog
    | Append
    | FindLun
    | FindBlank
    | OwnKey
    | Register
    | ReadReservation
    | Reserve
    | PreemptAndAbort
    | ResetLogicalUnit
    | Flush
    | Drain
    | Wait
    | WaitForGate
    | ReadPrimary
    | WritePrimary
    | Get
    | Put
)
