# SPDX-License-Identifier: Apache-2.0
"""Jobs of a volume that one node does: moving the chunks of a deleted snapshot, and rolling back.

`due` says what there is to do.  Who *should* do a job is a hint; who *may* is in the log.  So two movers do no harm, a job of
a dead node begins anew on the next, and a node that slept during its rollback finds out before each write.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from lun_backends.cluster import access, actions
from lun_backends.cluster.actions import Action, Conflict, Unreachable
from lun_backends.cluster.history import Refused, Standing
from lun_backends.cluster.node import RETRY, Node, Request
from lun_backends.cluster.records import Record, Type


@dataclass(frozen=True, slots=True)
class Move:
    """The chunks of a hidden snapshot may move.  Any node may do it: `move`."""

    snapshot: uuid.UUID


@dataclass(frozen=True, slots=True)
class RollBack:
    """The volume is rolled back by this node, perhaps since an earlier life: `roll_back`."""

    position: int  # of the ROLLBACK record, which names the job


@dataclass(frozen=True, slots=True)
class TakeOver:
    """An expelled node rolls the volume back, so it will not end it.  A ROLLBACK of any other node takes it over: `take_over`."""

    position: int


Job = Move | RollBack | TakeOver


def due(node: Node) -> list[Job]:
    """Return the jobs that this node could begin now, by the log as it read it."""
    history = node.history
    if node.name in history.expelled:
        return []
    found: list[Job] = [Move(snapshot) for snapshot in history.movable()]
    if history.rollback is not None:
        if node.rolls_back:
            found.append(RollBack(history.rollback_at))
        elif history.rollback.node in history.expelled:
            found.append(TakeOver(history.rollback_at))
    return found


def ask(node: Node, draft: Record) -> Generator[Action, Any, Request]:
    """Put a record into the log.  Return its request when it is there or refused."""
    request = Request(draft)
    node.ask(request)
    while not request.done:
        yield actions.WaitUntil(lambda: request.done)
    return request


def move(node: Node, snapshot: uuid.UUID) -> Generator[Action, Any, None]:
    """Move the chunks of a hidden snapshot to the next older one, and end with DELETED.  Raise Refused, or Full.

    Two movers do no harm: a move is a put-if-absent of what never changes.  DELETED names the LUN that took the chunks.  If
    that one was deleted meanwhile, the log refuses the record, and the chunks move again.
    """
    history = node.history
    epoch = history.find(snapshot)
    while history.standing(snapshot) is not Standing.DELETED:
        if not history.may_move(snapshot):
            raise Refused(
                f"snapshot {snapshot} is {history.standing(snapshot).value}, and nodes may still copy into its LUN"
            )
        older = history.older_lun(epoch.number)
        try:
            if older is not None and epoch.lun is not None:
                yield from _move_all(epoch.lun, older)
        except Unreachable:
            yield actions.Wait(RETRY)  # or one of the two was deleted meanwhile
            continue
        yield from ask(node, Record(Type.DELETED, node.volume, snapshot=snapshot, lun=older))


def _move_all(source: uuid.UUID, older: uuid.UUID) -> Generator[Action, Any, None]:
    grains = yield actions.Written(source)
    for grain in grains:
        data = yield actions.Get(source, grain)
        yield actions.Put(older, grain, data)


def take_over(node: Node) -> Generator[Action, Any, None]:
    """Take the rollback under way over, if there is one."""
    rollback = node.history.rollback
    if rollback is not None:
        yield from ask(node, Record(Type.ROLLBACK, node.volume, snapshot=rollback.snapshot))


def roll_back(node: Node, position: int) -> Generator[Action, Any, None]:
    """Do the rollback whose record is at that position of the log, and end with ROLLED-BACK.  Raise Refused, or Full.

    Nodes of older epochs are fenced, and all others stay OUT, so only this node writes.  Each write goes through
    copy-on-write, so newer snapshots stay true.  A second run of a half-done rollback is right: a grain that differs from the
    snapshot has a copy.
    """
    history = node.history
    rollback = history.rollback
    if rollback is None or rollback.snapshot is None or not node.rolls_back or history.rollback_at != position:
        raise Refused("that rollback is over, or another node took it over")
    restored: set[int] = set()
    copied: set[int] | None = None
    while copied is None or restored < copied:
        yield from _ready(node, position)
        try:
            chain = history.chain(rollback.snapshot, node.epoch)
            if copied is None:
                copied = set()
                for lun in chain:
                    copied.update((yield actions.Written(lun)))
            for grain in sorted(copied - restored):
                yield from _restore(node, chain, grain, position)
                restored.add(grain)
        except Unreachable:
            copied = None  # or a LUN of the chain was deleted meanwhile: its chunks are in an older one
            yield actions.Wait(RETRY)
    while not (yield from _flushed(node, position)):
        pass
    yield from ask(
        node, Record(Type.ROLLED_BACK, node.volume, snapshot=rollback.snapshot, answers=position, node=node.name)
    )


def _restore(node: Node, chain: tuple[uuid.UUID, ...], grain: int, position: int) -> Generator[Action, Any, None]:
    for lun in chain:
        kept: bytes | None = yield actions.Get(lun, grain)
        if kept is not None:
            yield from access.restore(node, grain, kept, position)
            return


def _ready(node: Node, position: int) -> Generator[Action, Any, None]:
    """Wait until this node may write for that rollback.  Raise Refused if the rollback is over."""
    while not node.may_restore(position):
        if node.history.rollback_at != position:
            raise Refused("that rollback is over, or another node took it over")
        yield actions.WaitUntil(lambda: node.may_restore(position) or node.history.rollback_at != position)


def _flushed(node: Node, position: int) -> Generator[Action, Any, bool]:
    """Flush the primary for that rollback.  Return whether it is done; raise Refused if the rollback is over."""
    yield from _ready(node, position)
    node.running += 1
    try:
        yield actions.Flush()
        return node.may_restore(position)
    except (Conflict, Unreachable):
        node.refuse()
        return False
    finally:
        node.running -= 1
