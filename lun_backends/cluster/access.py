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
from lun_backends.cluster.actions import Action, Conflict, Unreachable
from lun_backends.cluster.node import Node


def write(node: Node, grain: int, data: bytes) -> Generator[Action, Any, None]:
    """Write a grain.  Return when it is written and its old content is preserved; try again for as long as that takes."""
    while True:
        while not node.gate_open:
            yield actions.WaitForGate()
        node.running += 1
        try:
            if (yield from _preserve(node, grain)):
                yield actions.WritePrimary(grain, data)
                return
            node.refuse()  # the log has a newer epoch
        except (Conflict, Unreachable, records.RecordDamaged):
            node.refuse()
        finally:
            node.running -= 1


def _preserve(node: Node, grain: int) -> Generator[Action, Any, bool]:
    """Put the old content into LUN(e) unless it is there.  Return False if the log has a newer epoch."""
    epoch = node.epoch
    if epoch.lun is None or grain in node.tracker:
        return True
    old = yield actions.ReadPrimary(grain)
    if not node.exclusive and node.guards.look_before_put and (yield from is_newer(node)):
        return False
    if node.guards.copy_first:
        yield actions.Put(epoch.lun, grain, old)
    if node.epoch is epoch:
        node.tracker.add(grain)
    return True


def is_newer(node: Node) -> Generator[Action, Any, bool]:
    """Return whether the log holds an epoch after that of the node.  This does not change the state of the node."""
    position = node.history.end
    blocks = yield actions.ReadLog(position)
    found = [records.decode(block, position + at, node.volume) for at, block in enumerate(blocks)]
    newest = node.history.newest
    return newest is not node.epoch or any(record.type is records.Type.EPOCH for record in found)


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
