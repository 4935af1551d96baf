# SPDX-License-Identifier: Apache-2.0
"""The meaning of all records of a log: epochs, chains of views, deletions, rollbacks, and who is expelled.

EPOCH, INVALID, EXPEL and ROLLBACK demand a fence.  A FENCED record answers the demand that its writer had read before its
fence, and all demands before that one.  So a fence that was begun before an EXPEL record does not answer it.

A record that came too late means nothing, and every reader of the log sees that alike: an EPOCH with a wrong number, a
ROLLED-BACK of a rollback that another node took over.
"""

from __future__ import annotations

import enum
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from lun_backends.cluster.guards import Guards
from lun_backends.cluster.records import HOLD, Record, Type

_DEMANDS = (Type.EPOCH, Type.INVALID, Type.EXPEL, Type.ROLLBACK)


class Standing(enum.Enum):
    """The state of a snapshot."""

    PENDING = "pending"  # its fence is not complete, so no node reads it yet
    TAKEN = "taken"
    HIDDEN = "hidden"  # DELETE: its chunks may be moving to an older snapshot
    DELETED = "deleted"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Epoch:
    """An EPOCH record, and its place in the log."""

    number: int
    position: int
    snapshot: uuid.UUID | None  # None: no snapshot, so that writes need no copies
    lun: uuid.UUID | None
    name: str
    node: str
    time: int  # nanoseconds since 1970
    labels: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A request that the log does not allow.  The message says why."""


def key(volume: uuid.UUID, epoch: Epoch) -> int:
    """Return K(epoch), the reservation key of all nodes in that epoch: 8 bytes, never 0."""
    snapshot = epoch.snapshot.bytes if epoch.snapshot else bytes(16)
    digest = hashlib.sha256(volume.bytes + epoch.number.to_bytes(8, "little") + snapshot).digest()
    return int.from_bytes(digest[:8], "big") or 1


class History:
    """The records of a log, up to the first block that was blank."""

    def __init__(self, guards: Guards | None = None) -> None:
        """Begin with an empty log."""
        self._guards = guards or Guards()
        self.records: list[Record] = []
        self.epochs: list[Epoch] = []
        self.expelled: set[str] = set()
        self.rollback: Record | None = None  # under way: its node and its snapshot
        self.rollback_at = -1  # its position, which names it
        self.demand = -1  # the position of the newest record that demands a fence
        self.answered = -1  # the newest demand that a fence answered
        self._marks: dict[uuid.UUID, Standing] = {}
        self._hidden: set[uuid.UUID] = set()  # those that are marked so
        self._notes: dict[uuid.UUID, tuple[int, Record]] = {}  # the newest of each snapshot, and its position
        self._luns: set[uuid.UUID] = set()
        self._by_snapshot: dict[uuid.UUID, Epoch] = {}
        self._lost = -1  # the number of the newest epoch that INVALID names; views of it and of all before it are lost
        self._lost_at = -1  # the position of that INVALID

    @property
    def end(self) -> int:
        """The position of the first block that was blank."""
        return len(self.records)

    @property
    def newest(self) -> Epoch | None:
        """The newest epoch; None in an empty log."""
        return self.epochs[-1] if self.epochs else None

    @property
    def fence_is_due(self) -> bool:
        """Whether the newest demand has no fence yet."""
        return self.answered < self.demand

    def names_lun(self, lun: uuid.UUID) -> bool:
        """Return whether a record took that write-once LUN."""
        return lun in self._luns

    def add(self, record: Record) -> None:
        """Add the record at `end`.  A record that came too late to mean something is skipped."""
        position = self.end
        self.records.append(record)
        if record.type is Type.EPOCH:
            if record.epoch != len(self.epochs):
                return  # its writer had not read the newest one
            self.epochs.append(
                Epoch(
                    record.epoch,
                    position,
                    record.snapshot,
                    record.lun,
                    record.name,
                    record.node,
                    record.time,
                    record.labels,
                )
            )
            if record.lun is not None:
                self._luns.add(record.lun)
            if record.snapshot is not None:
                self._by_snapshot.setdefault(record.snapshot, self.epochs[-1])
        elif record.type is Type.FENCED:
            self.answered = max(self.answered, record.answers)
        elif record.type is Type.EXPEL:
            self.expelled.add(record.node)
        elif record.type is Type.ROLLBACK:
            self.rollback, self.rollback_at = record, position
        elif record.type is Type.ROLLED_BACK:
            # A node that slept may say so after another one took the rollback over.
            if self._ends_rollback(record):
                self.rollback, self.rollback_at = None, -1
        elif record.type is Type.NOTE:
            if record.snapshot is not None and self._is_next_note(record):
                self._notes[record.snapshot] = (position, record)
        elif record.snapshot in self._by_snapshot:
            self._mark(record.type, record.snapshot, position)
        if record.type in _DEMANDS and (record.type is not Type.INVALID or self._guards.fence_after_loss):
            self.demand = position

    def note(self, snapshot: uuid.UUID) -> tuple[int, Record]:
        """Return the record with the present name and labels of a snapshot, and its position.  Raise Refused."""
        epoch = self.find(snapshot)
        return self._notes.get(snapshot, (epoch.position, self.records[epoch.position]))

    def _is_next_note(self, record: Record) -> bool:
        """Return whether the writer of a NOTE had read the one before it; else its changes would undo those."""
        assert record.snapshot is not None
        return record.snapshot in self._by_snapshot and (record.answers == self.note(record.snapshot)[0])

    def _mark(self, kind: Type, snapshot: uuid.UUID, position: int) -> None:
        old = self._marks.get(snapshot)
        if kind is Type.INVALID:
            # Views of older snapshots read this LUN, too, and it lacks copies from now on.
            number = self.find(snapshot).number
            if number > self._lost:
                self._lost, self._lost_at = number, position
        elif kind is Type.DELETE and old is None:
            self._marks[snapshot] = Standing.HIDDEN
            self._hidden.add(snapshot)
        elif kind is Type.DELETED and old is Standing.HIDDEN:
            self._marks[snapshot] = Standing.DELETED
            self._hidden.discard(snapshot)

    def _ends_rollback(self, record: Record) -> bool:
        named = record.answers == self.rollback_at or not self._guards.rolled_back_names_its_rollback
        return self.rollback is not None and named

    def find(self, snapshot: uuid.UUID) -> Epoch:
        """Return the epoch of a snapshot.  Raise Refused if the log has no such snapshot."""
        epoch = self._by_snapshot.get(snapshot)
        if epoch is not None:
            return epoch
        raise Refused(f"the log has no snapshot {snapshot}: list the snapshots for those that exist")

    def standing(self, snapshot: uuid.UUID) -> Standing:
        """Return the state of a snapshot.  Raise Refused if there is no such snapshot."""
        return self.standing_of(self.find(snapshot))

    def standing_of(self, epoch: Epoch) -> Standing:
        """Return the state of the snapshot of an epoch."""
        mark = self._marks.get(epoch.snapshot) if epoch.snapshot is not None else None
        if mark is not None:
            return mark
        if epoch.number <= self._lost:
            return Standing.INVALID
        return Standing.TAKEN if self.answered >= epoch.position else Standing.PENDING

    def chain(self, snapshot: uuid.UUID, last: Epoch) -> tuple[uuid.UUID, ...]:
        """Return the write-once LUNs that a view in epoch `last` reads before the primary, in that order.

        Raise Refused if the snapshot must not be read.
        """
        standing = self.standing(snapshot)
        first = self.find(snapshot).number
        if standing is not Standing.TAKEN or first > last.number:
            raise Refused(f"snapshot {snapshot} is {standing.value} and cannot be read by this node now")
        return tuple(
            epoch.lun
            for epoch in self.epochs[first : last.number + 1]
            if epoch.lun is not None and not self._is_deleted(epoch)
        )

    def _is_deleted(self, epoch: Epoch) -> bool:
        return epoch.snapshot is not None and self._marks.get(epoch.snapshot) is Standing.DELETED

    def is_given_up(self, epoch: Epoch) -> bool:
        """Return whether INVALID names that epoch or a newer one, fenced or not."""
        return epoch.number <= self._lost

    def _is_lost(self, epoch: Epoch) -> bool:
        return epoch.number <= self._lost and (self.answered >= self._lost_at or not self._guards.fence_after_loss)

    def target(self, epoch: Epoch) -> uuid.UUID | None:
        """Return the write-once LUN that a write of that epoch copies into; None if it needs no copy.

        A lost snapshot needs none once its loss is fenced: until then a node may read a view of it that shows what the write wrote.
        """
        return None if self._is_lost(epoch) or self._is_deleted(epoch) else epoch.lun

    def may_move(self, snapshot: uuid.UUID) -> bool:
        """Return whether the chunks of a hidden snapshot may move.

        No node of its epoch may still copy into its write-once LUN.  And the snapshot that takes the chunks must not be
        hidden itself: its own chunks may be moving, and those that come behind the mover would be lost.
        """
        epoch = self.find(snapshot)
        later = self.epochs[epoch.number + 1 : epoch.number + 2]
        older = self._older(epoch.number)
        if older is not None and self.standing_of(older) is Standing.HIDDEN and self._guards.hidden_takes_no_chunks:
            return False
        fenced = bool(later) and (self.answered >= later[0].position or not self._guards.move_behind_fence)
        return self.standing_of(epoch) is Standing.HIDDEN and (fenced or self._is_lost(epoch))

    def movable(self) -> list[uuid.UUID]:
        """Return the hidden snapshots whose chunks may move, oldest first."""
        hidden = sorted(self._hidden, key=lambda snapshot: self.find(snapshot).number)
        return [snapshot for snapshot in hidden if self.may_move(snapshot)]

    def older_lun(self, number: int) -> uuid.UUID | None:
        """Return the write-once LUN that takes the chunks of epoch `number` when its snapshot is deleted; None if none needs them."""
        older = self._older(number)
        return None if older is None else older.lun

    def _older(self, number: int) -> Epoch | None:
        for epoch in reversed(self.epochs[:number]):
            if epoch.snapshot is None or epoch.number <= self._lost:
                return None  # no view of an older snapshot reads past an epoch without copies, or past a loss
            if not self._is_deleted(epoch):
                return epoch
        return None

    def check(self, record: Record) -> None:
        """Raise Refused if the log does not allow that record to follow."""
        if record.type is Type.EPOCH:
            if record.snapshot is None and any(
                self.standing(epoch.snapshot) in (Standing.PENDING, Standing.TAKEN)
                for epoch in self.epochs
                if epoch.snapshot is not None
            ):
                raise Refused("an epoch without copies would spoil the snapshots that exist: delete them first")
            if record.name and any(
                self.note(epoch.snapshot)[1].name == record.name
                and self.standing(epoch.snapshot) in (Standing.PENDING, Standing.TAKEN, Standing.INVALID)
                for epoch in self.epochs
                if epoch.snapshot is not None
            ):
                raise Refused(f"there is a snapshot named {record.name}: choose another name")
            if self.rollback is not None:
                raise Refused(f"{self.rollback.node} rolls the volume back: wait until it has ended")
        elif record.type is Type.NOTE:
            self._check_note(record)
        elif record.type is Type.ROLLED_BACK:
            if not self._ends_rollback(record):
                raise Refused("that rollback is over, or another node took it over")
        elif record.snapshot is not None:
            self._check_snapshot(record, record.snapshot)

    def _check_snapshot(self, record: Record, snapshot: uuid.UUID) -> None:
        epoch = self.find(snapshot)
        standing = self.standing_of(epoch)
        self._check_held(record)
        wanted = {
            Type.DELETE: (Standing.TAKEN, Standing.INVALID),
            Type.DELETED: (Standing.HIDDEN,),
            Type.INVALID: (Standing.PENDING, Standing.TAKEN, Standing.HIDDEN),
            Type.ROLLBACK: (Standing.TAKEN,),
        }.get(record.type)
        if wanted is not None and standing not in wanted:
            raise Refused(f"snapshot {snapshot} is {standing.value}")
        if record.type is Type.DELETED:
            if not self.may_move(snapshot):
                raise Refused(
                    "the newest snapshot goes on taking copies: it is only hidden until a newer epoch is fenced,"
                    " and until the next older one is deleted if that one is hidden, too"
                )
            if record.lun != self.older_lun(epoch.number) and self._guards.deleted_names_its_target:
                raise Refused("its chunks moved to a snapshot that was deleted meanwhile: move them again")
        if self.rollback is not None and self._guards.rollback_keeps_its_source:
            # Without its source the rollback could never end, and all nodes would stay out.
            if record.type is Type.INVALID:
                raise Refused(f"{self.rollback.node} rolls the volume back, and needs the snapshots: free some space")
            if record.type is Type.DELETE and snapshot == self.rollback.snapshot:
                raise Refused(f"{self.rollback.node} rolls the volume back to it: wait until that has ended")

    def _check_note(self, record: Record) -> None:
        assert record.snapshot is not None
        standing = self.standing(record.snapshot)
        if standing not in (Standing.PENDING, Standing.TAKEN, Standing.INVALID):
            raise Refused(f"snapshot {record.snapshot} is {standing.value}")
        if not self._is_next_note(record):
            raise Refused("its name or labels were changed meanwhile: look at them again")
        if any(
            epoch.snapshot not in (None, record.snapshot)
            and self.note(epoch.snapshot)[1].name == record.name
            and self.standing(epoch.snapshot) in (Standing.PENDING, Standing.TAKEN, Standing.INVALID)
            for epoch in self.epochs
            if epoch.snapshot is not None
        ):
            raise Refused(f"there is a snapshot named {record.name}: choose another name")

    def _check_held(self, record: Record) -> None:
        """Raise Refused if the record would delete, or lose, a snapshot that is held."""
        assert record.snapshot is not None
        number = self.find(record.snapshot).number
        lost: list[Epoch] = []
        if record.type is Type.DELETE:
            lost = [self.epochs[number]]
        elif record.type is Type.INVALID:
            lost = self.epochs[: number + 1]
        for epoch in lost:
            if epoch.snapshot is not None and self.standing(epoch.snapshot) in (Standing.PENDING, Standing.TAKEN):
                note = self.note(epoch.snapshot)[1]
                if HOLD in note.labels:
                    raise Refused(f"snapshot {note.name} is held ({note.labels[HOLD]}): release it first")
