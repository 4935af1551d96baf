# SPDX-License-Identifier: Apache-2.0
"""The devices of a shared volume as a node sees them, as far as the protocol needs them.

Every method waits for its device.  All of them raise `BlockDeviceError`: ReservationConflict if the device says so,
NoAnswer if it says nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lun_backends import block_device
from lun_backends.block_device import BlockDevice, ExtentKind
from lun_backends.cluster.actions import Reservation
from lun_backends.preserving import WriteOnceSide

RECORD = 4096
"""Bytes of a record of the log: one write command, which a write-once LUN takes as a whole or not at all."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A registration of the primary, from READ FULL STATUS (SPC-4 6.15.5)."""

    initiator: str  # the name of the initiator port, or a description of its TransportID
    key: int


class Fence(Protocol):
    """The reservation of the primary, as this node's nexus commands it (SPC-4 6.15 and 6.16)."""

    def exclusive(self) -> bool:
        """Return True for the type 8h, False if the device has 7h only (REPORT CAPABILITIES).

        Raise reservation.Unsuitable if it has neither, or no APTPL.
        """
        ...

    def own_key(self) -> int | None:
        """Return the key of this nexus; None if it is not registered."""
        ...

    def register(self, new: int, old: int | None) -> None:
        """REGISTER with APTPL; REGISTER AND IGNORE EXISTING KEY if `old` is None."""
        ...

    def reservation(self, *, exclusive: bool) -> Reservation:
        """READ RESERVATION and READ KEYS.  Raise reservation.Unsuitable for a reservation of another type."""
        ...

    def reserve(self, own: int, *, exclusive: bool) -> None:
        """RESERVE for all registrants: type 8h if `exclusive`, else 7h."""
        ...

    def preempt(self, own: int, *, exclusive: bool) -> None:
        """PREEMPT with service key 0."""
        ...

    def reset_logical_unit(self) -> None:
        """LOGICAL UNIT RESET."""
        ...

    def registrations(self) -> Sequence[Registration]:
        """READ FULL STATUS."""
        ...


class Log(Protocol):
    """The log of the volume, read past every cache."""

    @property
    def blocks(self) -> int:
        """How many records the log can hold; 0: any number."""
        ...

    def read(self, position: int) -> tuple[bytes, ...]:
        """Return the records from that position up to the first blank one."""
        ...

    def append(self, position: int, block: bytes) -> bool:
        """Write a record and make it durable.  Return False if there is one already."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


@dataclass(frozen=True, slots=True)
class WriteOnceLun:
    """A write-once LUN that this node opened: the same object as a block device and with its `put_many`."""

    device: BlockDevice
    side: WriteOnceSide


class Pool(Protocol):
    """The write-once LUNs of the volume that this node can see."""

    @property
    def on_demand(self) -> bool:
        """Whether a LUN is made when a snapshot is about to take it, so that there is always one."""
        ...

    def find(self, lun: uuid.UUID) -> WriteOnceLun | None:
        """Open a write-once LUN, after a rescan if it is necessary.  Return None if this node does not see it."""
        ...

    def blank(self, epoch: int) -> Sequence[uuid.UUID]:
        """Return the LUNs that are blank, best candidate first; `epoch` is the number of the epoch that takes one.

        Each LUN has to say itself that it is blank (GET LBA STATUS), unless the pool has just made it.
        """
        ...

    def look(self) -> None:
        """Learn which LUNs there are now, so that `find` need not look for one while writes wait."""
        ...

    def forget(self, lun: uuid.UUID) -> None:
        """Give up what this host keeps of a LUN that will not come back.  It may be unknown, or forgotten already."""
        ...


@dataclass(frozen=True)
class Devices:
    """All devices of a shared volume.  `close` releases what `primary` and `log` do not."""

    primary: BlockDevice
    fence: Fence
    log: Log
    pool: Pool
    close: Callable[[], None] = lambda: None


class DeviceLog:
    """A log on a write-once device."""

    def __init__(self, device: BlockDevice) -> None:
        """Take over `device`; `close` closes it."""
        self._device = device

    @property
    def blocks(self) -> int:
        """How many records the log can hold."""
        return self._device.size // RECORD

    def read(self, position: int) -> tuple[bytes, ...]:
        """Return the records from that position up to the first blank one.  One command if there is none."""
        start = position * RECORD
        if start >= self._device.size:
            return ()
        first = next(self._device.extents(start, self._device.size - start))
        if first.kind is ExtentKind.BLANK:
            return ()
        # A record is written by one command, so a part of one at the end is no record that was acknowledged.
        blocks = first.length // RECORD
        data = bytearray(blocks * RECORD)
        view = memoryview(data)
        for at in range(0, len(data), 64 * RECORD):
            self._device.readv(start + at, [view[at : at + 64 * RECORD]])
        return tuple(bytes(view[at : at + RECORD]) for at in range(0, len(data), RECORD))

    def append(self, position: int, block: bytes) -> bool:
        """Write a record and make it durable.  Return False if there is one already."""
        try:
            self._device.writev(position * RECORD, [memoryview(block)], fua=True)
        except block_device.BlockWritten:
            return False
        return True

    def close(self) -> None:
        """Close the device."""
        self._device.close()
