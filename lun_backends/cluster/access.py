# SPDX-License-Identifier: Apache-2.0
"""Writes and views of a node: the steps W and R of README.md, for one grain.

They are generators like `Node.run`.  Each begins only while the gate is open, and is counted in `Node.running` while it
touches a device.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from typing import Any

from lun_backends.cluster import actions, records
from lun_backends.cluster.actions import Action, Conflict, Full, Unreachable
from lun_backends.cluster.history import Refused
from lun_backends.cluster.node import Node

_SPOIL = (records.Type.EPOCH, records.Type.INVALID)  # records after which the primary may lack what a view reads of it


def write(node: Node, grain: int, data: bytes, drops: bool = False) -> Generator[Action, Any, None]:
    """Write a grain.  Return when it is written and its old content is preserved; try again for as long as that takes.

    If the write-once LUN is full: raise Full, or with `drops` (`on_error: drop-snapshot`) give the snapshot up and go on.
    """
    while True:
        while not node.gate_open:
            yield actions.WaitForGate()
        if (yield from _try(node, grain, data, drops)):
            return


def restore(node: Node, grain: int, data: bytes, rollback_at: int) -> Generator[Action, Any, None]:
    """Write a grain for the rollback at that position of the log.  Raise Refused when that rollback is over, or Full.

    Each try asks anew.  A node that slept finds its write refused, joins, and would otherwise write over what others wrote
    after another node took the rollback over and ended it.
    """
    tried = False
    while True:
        if node.history.rollback_at != rollback_at and (not tried or node.guards.restore_asks_again):
            raise Refused("that rollback is over, or another node took it over")
        if node.may_restore(rollback_at) or (tried and not node.guards.restore_asks_again and node.gate_open):
            tried = True
            if (yield from _try(node, grain, data, drops=False)):
                return
        else:
            yield actions.WaitUntil(lambda: node.may_restore(rollback_at) or node.history.rollback_at != rollback_at)


def _try(node: Node, grain: int, data: bytes, drops: bool) -> Generator[Action, Any, bool]:
    """Write a grain once.  Return whether it is done."""
    epoch = node.epoch
    node.running += 1
    try:
        if (yield from _preserve(node, grain)):
            yield actions.WritePrimary(grain, data)
            return True
        node.refuse()  # the log has a newer epoch
        return False
    except (Conflict, Unreachable, records.RecordDamaged):
        node.refuse()
        return False
    except Full:
        if not drops or epoch.snapshot is None:
            raise
    finally:
        node.running -= 1
    request = node.give_up(epoch.snapshot)
    yield actions.WaitUntil(lambda: request.done)
    return False


def _preserve(node: Node, grain: int) -> Generator[Action, Any, bool]:
    """Put the old content into LUN(e) unless it is there.  Return False if the log has a newer epoch."""
    epoch = node.epoch
    target = node.history.target(epoch)
    if target is None or grain in node.tracker:
        return True
    old = yield actions.ReadPrimary(grain)
    if not node.exclusive and node.guards.look_before_put and (yield from is_newer(node)):
        return False
    if node.guards.copy_first:
        yield actions.Put(target, grain, old)
    if node.epoch is epoch:
        node.tracker.add(grain)
    return True


def is_newer(node: Node) -> Generator[Action, Any, bool]:
    """Return whether the log holds a newer epoch than that of the node, or a newer loss.  This does not change the state of the node."""
    position = node.history.end
    blocks = yield actions.ReadLog(position)
    found = [records.decode(block, position + at, node.volume) for at, block in enumerate(blocks)]
    log = node.history  # the node itself may have read the record meanwhile
    return log.newest is not node.epoch or log.is_given_up(node.epoch) or any(record.type in _SPOIL for record in found)


def read_view(node: Node, snapshot: uuid.UUID, grain: int) -> Generator[Action, Any, bytes]:
    """Return what a grain held at the snapshot.  Raise Refused if it must not be read."""
    while True:
        while not node.gate_open:
            yield actions.WaitForGate()
        node.running += 1
        try:
            found = yield from _look(node, snapshot, grain)
            if found is not None:
                return found
            node.refuse()
        except (Conflict, Unreachable, records.RecordDamaged):
            node.refuse()
        finally:
            node.running -= 1


def _look(node: Node, snapshot: uuid.UUID, grain: int) -> Generator[Action, Any, bytes | None]:
    """R: return the grain; None if the log has a newer epoch, whose LUN belongs to the chain."""
    newest = node.history.newest
    if newest is not node.epoch and not node.history.fence_is_due:
        return None
    chain = node.history.chain(snapshot, node.epoch)
    kept: bytes | None
    for lun in chain:
        kept = yield actions.Get(lun, grain)
        if kept is not None:
            return kept
    live: bytes = yield actions.ReadPrimary(grain)
    if not node.exclusive and node.guards.look_after_view and (yield from is_newer(node)):
        return None
    if node.guards.second_look:
        kept = yield actions.Get(chain[-1], grain)
        if kept is not None:
            return kept
    return live
