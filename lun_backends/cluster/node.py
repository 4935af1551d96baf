# SPDX-License-Identifier: Apache-2.0
"""A node of a volume: it joins, fences, takes snapshots and keeps to the log.  The steps T1, F0 to F3 and J1 to J4 are those of README.md.

`Node.run` is a generator that never ends: it yields actions (`actions.py`), and the driver sends their results.  The
node does no I/O, has no threads and reads no clock.  Writes and views are generators of their own (`access.py`).

| state | gate | meaning |
| --- | --- | --- |
| OUT | closed | not joined: the log or LUN(e) is not there, the node is expelled, or another node rolls the volume back |
| ARMING | closed | J1 to J4, or F0 to F3 |
| ARMED | open | registered in epoch e, whose fence is complete |

Three mistakes would be easy to make and are guarded here.  The gate closes before J1 and stays closed until J4.  J2
registers only the key of an epoch that is fenced.  After a fence the node goes on at J3, because the fence may have let
a later snapshot pass.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lun_backends.cluster import actions, history, records
from lun_backends.cluster.actions import Action, Conflict, Unreachable
from lun_backends.cluster.guards import Guards
from lun_backends.cluster.history import Epoch, History
from lun_backends.cluster.records import Record, Type

Steps = Generator[Action, Any, None]

POLL = 1.0  # seconds between looks at the log while ARMED
PATIENCE = 1.0  # seconds without a sign of life of the fencer: two fencers at once can stop a host with LIO
_LOOKS = (7, 7, 6, 5, 4, 3, 2, 1)  # waits before a node fences for another one: its patience by powers of 2
RESCAN = 1.0  # seconds between looks for what keeps the node OUT
RETRY = 0.05  # seconds before a device is asked again that did not answer
RESERVE = 64  # blocks of the log that requests leave free, so that every demand in it gets its fence


class State(enum.Enum):
    """The state of a node for a volume."""

    OUT = "out"
    ARMING = "arming"
    ARMED = "armed"


@dataclass(eq=False)
class Request:
    """A request to put a record into the log.  It is done when `record` or `refused` is set."""

    draft: Record
    position: int = -1  # in the log, once it is there
    record: Record | None = None  # as it is in the log
    tried: list[tuple[int, Record]] = field(default_factory=list)  # an answer may be lost, and the record in the log
    refused: str = ""

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self.record is not None or bool(self.refused)


@dataclass
class Node:
    """The control side of a node.  Writes and views ask it for `gate_open` and count themselves in `running`."""

    volume: uuid.UUID
    name: str
    exclusive: bool = True  # the reservation is 8h; False: 7h
    resets: bool = True  # F1 is PREEMPT and LOGICAL UNIT RESET; False: PREEMPT AND ABORT, wrong for LIO
    block_size: int = 4096  # of the log, bytes
    identity: Callable[[], uuid.UUID] = uuid.uuid4  # makes the identities of snapshots
    clock: Callable[[], int] = lambda: 0  # nanoseconds since 1970, for the records' time only
    patience: float = PATIENCE  # seconds; different on each node, so that they do not all fence at once
    log_blocks: int = 0  # how many records the log holds; 0: no end
    guards: Guards = field(default_factory=Guards)
    state: State = State.OUT
    running: int = 0  # writes, copies and views under way
    problem: str = ""  # why the node is OUT
    damage: str = ""  # of the log, if that is why
    tracker: set[int] = field(default_factory=set)  # grains known to be preserved in LUN(e)

    def __post_init__(self) -> None:
        """Begin OUT, with an unread log."""
        self.history = History(self.guards)
        self._epoch: Epoch | None = None  # of the tracker
        self._requests: list[Request] = []
        self._refused = False
        self._demanded = -1  # the position of a demand of this node

    @property
    def gate_open(self) -> bool:
        """Whether a write or a view may begin."""
        if self.history.rollback is not None:
            closed = self.guards.closed_for_rollback if self.rolls_back else self.guards.others_stay_out
            return self.state is State.ARMED and not closed
        return self.state is State.ARMED

    @property
    def rolls_back(self) -> bool:
        """Whether the rollback under way is that of this node."""
        return self.history.rollback is not None and self.history.rollback.node == self.name

    @property
    def awake(self) -> bool:
        """Whether there is something to do before the next poll."""
        return self._refused or bool(self._requests)

    @property
    def adopted(self) -> Epoch | None:
        """The epoch that this node arms or armed last; None before the first."""
        return self._epoch

    @property
    def epoch(self) -> Epoch:
        """The epoch that this node arms or armed last."""
        assert self._epoch is not None
        return self._epoch

    def may_restore(self, rollback_at: int) -> bool:
        """Return whether a write of the rollback at that position of the log may begin: it is this node's, and the others are fenced."""
        mine = self.rolls_back and self.history.rollback_at == rollback_at
        return self.state is State.ARMED and mine and self.history.answered >= rollback_at

    def refuse(self) -> None:
        """Close the gate: the primary answered a command of this node with RESERVATION CONFLICT, or the link to it was lost."""
        self._refused = True
        if self.state is State.ARMED:
            self.state = State.ARMING

    def withdraw(self, request: Request) -> bool:
        """Take a request back.  Return False if it is done, or if its record may be in the log already."""
        if request.tried or request.done:
            return False
        request.refused = "it was withdrawn"
        return True

    def ask(self, request: Request) -> None:
        """Want a record in the log.  An EPOCH record takes a snapshot, unless its `snapshot` is the zero UUID: then copies end."""
        self._requests.append(request)

    def give_up(self, snapshot: uuid.UUID) -> Request:
        """Want the record that a snapshot is lost.  Return its request, which all callers share."""
        for request in self._requests:
            if request.draft.type is Type.INVALID and request.draft.snapshot == snapshot:
                return request
        request = Request(Record(Type.INVALID, self.volume, snapshot=snapshot))
        self.ask(request)
        return request

    # ---- the life of a node

    def run(self) -> Steps:
        """Join, keep to the log, and do what is asked.  Never end."""
        while True:
            try:
                yield from self._join()
                yield from self._armed()
            except Conflict:
                pass  # fenced meanwhile: J1
            except Unreachable as problem:
                self._leave(str(problem))
                yield actions.Wait(RETRY)
            except records.RecordDamaged as problem:
                # It may have been an EPOCH record, so no later record can be trusted to be the newest.
                self._leave(str(problem))
                self.damage = str(problem)
                yield actions.Wait(RESCAN)

    def _leave(self, problem: str) -> None:
        self.state = State.OUT
        self.problem = problem

    def _armed(self) -> Steps:
        """Poll the log and do what is asked, until something calls for J1."""
        overdue = False
        while not self._refused:
            if self._requests:
                yield from self._serve(self._requests[0])
                continue
            try:
                yield actions.Wait(min(POLL, self.patience) if self.history.fence_is_due else POLL)
                yield from self._read_log()
            except Unreachable as problem:
                self.problem = str(problem)  # the fence would end this epoch here, so this node may go on in it
                continue
            self.problem = ""
            if self._must_stay_out():
                return
            # A pending snapshot is left to its taker for a while.  This node goes on in its epoch.
            if self.history.fence_is_due and not overdue:
                overdue = True
            elif self.history.fence_is_due or self.history.newest is not self.epoch:
                return

    def _read_log(self) -> Steps:
        """Read what is new in the log.  Raise RecordDamaged."""
        blocks = yield actions.ReadLog(self.history.end)
        for block in blocks:
            self.history.add(records.decode(block, self.history.end, self.volume))
        self.damage = ""

    def _key(self) -> int:
        return history.key(self.volume, self.epoch)

    def _must_stay_out(self) -> str:
        if self.name in self.history.expelled and self.guards.expelled_stay_out:
            return f"node {self.name} is expelled from the volume"
        rollback = self.history.rollback
        if rollback is not None and rollback.node != self.name and self.guards.others_stay_out:
            return f"node {rollback.node} rolls the volume back"
        return ""

    # ---- J

    def _join(self) -> Steps:
        """J1 to J4, with T2 in between if a fence is due.  Return ARMED."""
        self._refused = False
        self.state = State.ARMING
        if self.guards.drain_before_join:
            yield actions.Drain()
        stale = 0
        while True:
            # J1
            yield from self._read_log()
            if self.history.newest is None:
                yield from self._append(Record(Type.EPOCH, self.volume, node=self.name))
                continue
            self._adopt(self.history.newest)
            problem = self._must_stay_out()
            if problem:
                self._leave(problem)
                if self._requests:
                    yield from self._serve(self._requests[0])  # a ROLLBACK takes that of a dead node over
                else:
                    yield actions.Wait(RESCAN)
                continue
            target = self.history.target(self.epoch)
            if target is not None and not (yield actions.FindLun(target)):
                self._leave(f"write-once LUN {target} is not visible")
                yield actions.Wait(RESCAN)
                continue
            self.state = State.ARMING
            if stale > 1 or self._fence_is_due():
                if stale <= 1 and self.history.demand != self._demanded and (yield from self._is_fenced_by_another()):
                    continue
                if not (yield from self._fence()):
                    continue
                stale = 0
                if not self.guards.read_again_after_fence:
                    break
            else:
                yield actions.Register(self._key())  # J2
            if self.guards.look_after_register:
                yield from self._read_log()  # J3
                if self.history.newest is not self.epoch or self._fence_is_due() or self._must_stay_out():
                    continue
            seen = yield actions.ReadReservation()  # J4
            if not self.guards.look_at_keys or (seen.exists and seen.keys == {self._key()}):
                break
            # A node with another key may be on its way to J3.  If it stays, it must be fenced.
            stale += 1
            yield actions.Wait(self.patience / 4)
        if not self._refused:
            self.problem = ""
            self.state = State.ARMED

    def _is_fenced_by_another(self) -> Generator[Action, Any, bool]:
        """Leave the fence to the node that may be at it, because a second one would throw it out.  Return whether it is done.

        A fence takes milliseconds, and the writes of this node wait for its end, so the first looks follow quickly.  While the
        device's registrations change, another node is at work.
        """
        generation, waits = -1, list(_LOOKS)
        while waits:
            yield actions.Wait(self.patience / 2 ** waits.pop(0))
            yield from self._read_log()
            if self.history.newest is not self.epoch or not self._fence_is_due():
                return True
            seen = yield actions.ReadReservation()
            if seen.generation != generation and generation != -1:
                waits = [1, 1]
            generation = seen.generation
        return False

    def _adopt(self, epoch: Epoch) -> None:
        if self._epoch is not epoch:
            if self.guards.fresh_tracker:
                self.tracker.clear()
            self._epoch = epoch

    def _fence_is_due(self) -> bool:
        return self.history.fence_is_due and (self.guards.fenced_first or self.history.demand == self._demanded)

    # ---- T2

    def _fence(self) -> Generator[Action, Any, bool]:
        """F0 to F3: end all that is older than the newest demand of the log.  Return False if another fencer was quicker."""
        demand = self.history.demand
        while True:
            own = yield actions.OwnKey()
            if own is None or not self.guards.unchanged_key:
                own = self._key()
                yield actions.Register(own)  # F0
            try:
                if not self.guards.fence_before_key:
                    yield actions.Register(self._key(), own)
                    own = self._key()
                seen = yield actions.ReadReservation()
                if not seen.exists:
                    yield actions.Reserve(own)
                if not self.resets:
                    yield actions.PreemptAndAbort(own)  # F1
                else:
                    yield actions.Preempt(own)  # F1
                    if self.guards.reset_in_fence:
                        yield actions.ResetLogicalUnit()
                yield actions.Flush()  # what other nodes wrote since T1: a loss of power must not change the snapshot
                yield actions.Register(self._key(), own)  # F2
                break
            except Conflict:
                yield actions.Wait(self.patience / 4)
                yield from self._read_log()
                if self.history.answered >= demand or self.history.newest is not self.epoch or self._must_stay_out():
                    return False
        if not self.guards.answers_what_was_read:
            yield from self._read_log()
            demand = self.history.demand
        fenced = Record(Type.FENCED, self.volume, self.epoch.number, answers=demand, node=self.name)
        yield from self._append(fenced)  # F3
        return True

    # ---- requests

    def _append(self, draft: Record) -> Steps:
        """Append EPOCH(0) to an empty log, or a FENCED record to any.  Return when the log is read to its end."""
        record = replace(draft, time=self.clock())
        while True:
            position = self.history.end
            appended = yield actions.Append(position, records.encode(record, position, self.block_size))
            yield from self._read_log()
            if appended or draft.type is not Type.FENCED or self.history.answered >= draft.answers:
                return

    def _serve(self, request: Request) -> Steps:
        """Append what is asked for, or refuse it.  A lost race is read, and the request decided again."""
        yield from self._read_log()
        try:
            if request.done or self._stands(request):
                pass  # its answer was lost, not the record
            elif self.log_blocks and self.history.end > self.log_blocks - RESERVE:
                raise history.Refused("the log is full: copy the volume to a new one")
            elif self.name in self.history.expelled and self.guards.expelled_stay_out:
                request.refused = f"node {self.name} is expelled from the volume: ask another node"
            elif request.draft.type is Type.EPOCH:
                yield from self._take(request)
            else:
                self.history.check(request.draft)
                yield from self._append_for(request, replace(request.draft, node=request.draft.node or self.name))
        except (history.Refused, records.RecordTooLong) as problem:
            request.refused = str(problem)
        if request.done:
            self._requests.remove(request)
        if self.history.fence_is_due or self.history.newest is not self.epoch:
            self.refuse()  # J1: this node fences what it demanded, or adopts what another one took

    def _stands(self, request: Request) -> bool:
        """Return whether the log holds the record of a request that was tried before."""
        for position, record in request.tried:
            if position < self.history.end and self.history.records[position] == record:
                request.position, request.record = position, record
        return request.done

    def _append_for(self, request: Request, draft: Record) -> Steps:
        if request.done:
            return  # it was withdrawn meanwhile
        record = replace(draft, time=self.clock())
        position = self.history.end
        request.tried.append((position, record))
        appended = yield actions.Append(position, records.encode(record, position, self.block_size))
        if appended:
            self._demanded = position
        yield from self._read_log()
        self._stands(request)

    def _take(self, request: Request) -> Steps:
        """T1: take a snapshot of the volume."""
        number = self.epoch.number + 1
        if problem := self._must_stay_out():
            raise history.Refused(problem)
        if self.history.newest is not self.epoch or self.history.fence_is_due:
            return
        copies = request.draft.snapshot != uuid.UUID(int=0)
        if copies and request.draft.snapshot is None:
            request.draft = replace(request.draft, snapshot=self.identity())
        self.history.check(request.draft if copies else replace(request.draft, snapshot=None))
        lun = None
        if copies:
            blank = yield actions.FindBlank()
            free = [candidate for candidate in blank if not self.history.names_lun(candidate)]
            if not free:
                raise history.Refused(
                    "the pool has no blank write-once LUN of the volume's size that this node sees: add one on the storage host"
                )
            lun = free[0]
        # The gate closes before the record is there, so that no write of this node falls between record and fence.
        self.refuse()
        yield actions.Drain()
        yield actions.Flush()
        record = replace(
            request.draft,
            epoch=number,
            snapshot=request.draft.snapshot if copies else None,
            lun=lun,
            node=self.name,
        )
        yield from self._append_for(request, record)
        if not request.done and not self.guards.reread_lost_race and lun is not None:
            newest = self.history.newest
            assert newest is not None
            self.history.epochs[-1] = replace(newest, lun=lun)


def taking(volume: uuid.UUID, name: str = "", labels: Mapping[str, str] | None = None) -> Request:
    """Return the request for a snapshot."""
    return Request(Record(Type.EPOCH, volume, name=name, labels=dict(labels or {})))
