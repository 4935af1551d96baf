# SPDX-License-Identifier: Apache-2.0
"""The actions that the protocol asks of its driver, and what the driver answers.

`node.py`, `access.py` and `jobs.py` are generators.  They yield an action; the driver carries it out and sends the result.
If a device answers RESERVATION CONFLICT (EBADE on Linux), the driver throws Conflict into the generator.  If it does not
answer, the driver throws Unreachable.  If a write-once LUN has no space, the driver throws Full.

A node may have several paths to the primary.  `Register` and `OwnKey` say what that means for the driver.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass


class Conflict(Exception):
    """The primary answered RESERVATION CONFLICT: this node is not registered, or was fenced.  A write may have been done."""


class Unreachable(Exception):
    """A device did not answer, or its answer was lost.  The command may have been carried out."""


class Full(Exception):
    """A write-once LUN has no space for a copy."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """READ RESERVATION and READ KEYS of the primary."""

    exists: bool
    keys: frozenset[int]
    generation: int = 0  # PRGENERATION


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
    """Return the key that this node's nexus has registered (READ FULL STATUS); None if it is not registered.

    With several paths: of any path that is registered.  Reserve, PreemptAndAbort and Register with an `old` key go by that path.
    """


@dataclass(frozen=True, slots=True)
class Register:
    """REGISTER with APTPL: own key `old` -> `new`, or whatever is registered -> `new` (REGISTER AND IGNORE EXISTING KEY) if `old` is None.

    With several paths: on each of them, and the result comes after the last.  With `old`, the path of the fence is the first;
    if it meets Conflict, the others are left alone, else they ignore their existing keys.  A path that appears later, or logs
    in anew, is not registered alone: the driver calls `Node.refuse`, so that the log is read behind its registration.
    """

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
class Preempt:
    """PREEMPT with that own key and service key 0."""

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
class WaitUntil:
    """Wait until `holds` is true of what the node knows.  The result may come early; the generator looks again."""

    holds: Callable[[], bool]


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
class Written:
    """List the grains of a write-once LUN that are written (GET LBA STATUS).  Result: iterable of grain numbers."""

    lun: uuid.UUID


@dataclass(frozen=True, slots=True)
class Put:
    """Write a grain of a write-once LUN and make it durable.  Result: True; False for BLANK CHECK.  Full if there is no space."""

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
    | Preempt
    | PreemptAndAbort
    | ResetLogicalUnit
    | Flush
    | Drain
    | Wait
    | WaitForGate
    | WaitUntil
    | ReadPrimary
    | WritePrimary
    | Get
    | Written
    | Put
)
