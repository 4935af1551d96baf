# SPDX-License-Identifier: Apache-2.0
"""The snapshots, nodes and state of a shared volume, as values that its log and its devices show at a moment."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from lun_backends.cluster.history import Epoch, History, Standing
from lun_backends.shared import view


class SnapshotState(enum.Enum):
    """The state of a snapshot of a shared volume."""

    PENDING = "pending"  # it is in the log, and its fence is not complete: no node reads it yet
    ACTIVE = "active"
    DELETING = "deleting"  # hidden; its chunks move to an older one, once a newer snapshot exists
    INVALID = "invalid"


_STATES = {
    Standing.PENDING: SnapshotState.PENDING,
    Standing.TAKEN: SnapshotState.ACTIVE,
    Standing.HIDDEN: SnapshotState.DELETING,
    Standing.INVALID: SnapshotState.INVALID,
}


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, as the log has it."""

    name: str
    uuid: UUID
    epoch: int
    taken_at: datetime.datetime  # by the clock of the node that took it
    state: SnapshotState
    node: str  # that took it
    lun: UUID  # its write-once LUN
    labels: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""  # of the state
    held_seconds: float | None = None  # how long this node's writes were held to take it, if this call took it


@dataclass(frozen=True)
class NodeSeen:
    """A node of the volume, or a registration that belongs to no node that the log knows."""

    name: str  # empty: no node of that initiator has written a record
    initiator: str  # of the registration; empty: the node is not registered now
    in_epoch: bool  # it is registered with the key of the newest epoch
    last_epoch: int | None  # the newest epoch in which it wrote a record
    last_seen: datetime.datetime | None  # the time of its last record, by its own clock
    expelled: bool = False


@dataclass(frozen=True)
class Status:
    """The state of the volume on this node."""

    state: str  # out, arming, armed
    epoch: int | None
    snapshot: str  # that gets the pre-images; empty: none
    problem: str  # why the node is out; empty if it is not
    pending: str  # the demand whose fence is due: epoch, expel, rollback; empty: none
    exclusive: bool  # the reservation is 8h, else 7h
    rolling_back: str  # the node that rolls the volume back; empty: none
    log_used: int  # records
    log_size: int  # records; 0: it has no limit
    running: int  # commands of this node at the primary
    joined: int  # how often the node became ARMED
    held_seconds: float  # how long its writes were held last time
    copies: int
    futile_copies: int
    copied_bytes: int
    waits: int


def snapshots_of(log: History) -> tuple[Snapshot, ...]:
    """Return the snapshots of a log, oldest first, without those that were deleted."""
    return tuple(
        snapshot_of(log, epoch)
        for epoch in log.epochs
        if epoch.snapshot is not None and log.standing(epoch.snapshot) is not Standing.DELETED
    )


def snapshot_of(log: History, epoch: Epoch, held_seconds: float | None = None) -> Snapshot:
    """Return the snapshot that begins an epoch; it must have one."""
    assert epoch.snapshot is not None
    assert epoch.lun is not None
    state = _STATES.get(log.standing(epoch.snapshot), SnapshotState.DELETING)
    _, note = log.note(epoch.snapshot)
    return Snapshot(
        note.name, epoch.snapshot, epoch.number, moment(epoch.time), state, epoch.node, epoch.lun, note.labels,
        view.why_unreadable(log, epoch.snapshot), held_seconds,
    )  # fmt: skip


def moment(nanoseconds: int) -> datetime.datetime:
    """Return the time of a record."""
    return datetime.datetime.fromtimestamp(nanoseconds // 1_000_000_000, datetime.UTC) + datetime.timedelta(
        microseconds=nanoseconds % 1_000_000_000 // 1000
    )
