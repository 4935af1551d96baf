# SPDX-License-Identifier: Apache-2.0
"""Nodes that tell each other what they preserved.  The network is a list here; tests of `corosync` have the real one."""

from __future__ import annotations

import functools
import os
from collections import deque

import pytest

from lun_backends.corosync import cpg, locks, messenger
from lun_backends.corosync.cpg import Event, Members, Message
from tests.lun_backends.memory_side import block
from tests.lun_backends.shared.rig import Array, check_views, nodes, open_node, settle, wait

GRAIN = 4096


class Network:
    """A network of groups in this process."""

    def __init__(self) -> None:
        self.groups: list[Wire] = []

    def tell(self, event: Event) -> None:
        for group in self.groups:
            group.events.append(event)
            os.write(group.ringing, b".")


class Wire:
    """The part of `cpg.Group` that messengers use."""

    network: Network

    def __init__(self, name: str) -> None:
        self.events: deque[Event] = deque()
        self.descriptor, self.ringing = os.pipe()
        self.node = len(self.network.groups) + 1
        self.own = cpg.Member(self.node, os.getpid())
        self.network.groups.append(self)
        self._changed(joined=frozenset({self.own}))

    def _changed(self, left: frozenset[cpg.Member] = frozenset(), joined: frozenset[cpg.Member] = frozenset()) -> None:
        self.network.tell(Members(frozenset(group.own for group in self.network.groups), left, joined))

    def dispatch(self) -> list[Event]:
        os.read(self.descriptor, 4096)
        found = []
        while self.events:
            found.append(self.events.popleft())
        return found

    def send(self, data: bytes) -> bool:
        self.network.tell(Message(self.own, data))
        return True

    def close(self) -> None:
        self.network.groups.remove(self)
        self._changed(left=frozenset({self.own}))
        os.close(self.descriptor)
        os.close(self.ringing)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    Wire.network = Network()
    monkeypatch.setattr(cpg, "Group", Wire)
    return Wire.network


def knows(node: object, offset: int) -> bool:
    tracker = node.tracker  # type: ignore[attr-defined]
    return tracker is not None and offset // GRAIN in tracker[1]


def test_what_a_node_preserved_the_others_need_not_copy(array: Array, network: Network) -> None:
    with nodes(array, "one", "two", exchange=True) as (one, two):
        one.create_snapshot("first")
        settle(array, one, two)
        one.device.writev(0, block(0x11, GRAIN))
        wait(lambda: knows(two, 0))
        before = two.counters.copies
        two.device.writev(0, block(0x22, GRAIN))
        assert (two.counters.copies, two.counters.futile_copies) == (before, 0)
        exchange = two.exchange
        assert exchange is not None
        assert (exchange.problem, exchange.members) == ("", 2)
        assert exchange.trackers.taken_messages >= 1
        assert check_views(array, one, two) == 2


def test_new_snapshot_begins_with_nothing_known(array: Array, network: Network) -> None:
    with nodes(array, "one", "two", exchange=True) as (one, two):
        one.create_snapshot("first")
        settle(array, one, two)
        one.device.writev(0, block(0x11, GRAIN))
        wait(lambda: knows(two, 0))
        one.create_snapshot("second")
        settle(array, one, two)
        assert not knows(two, 0)
        two.device.writev(0, block(0x22, GRAIN))
        wait(lambda: knows(one, 0))
        one.device.writev(0, block(0x33, GRAIN))
        assert check_views(array, one, two) == 4


def test_deletion_of_a_node_that_left_is_done_at_once_by_one_that_holds_its_lock(
    array: Array, network: Network
) -> None:
    with nodes(array, "one", "two", exchange=True, takeover=3600.0) as (one, two):
        leaving = open_node(array, "leaving", exchange=True)
        wait(lambda: leaving.status.state == "armed")
        leaving.create_snapshot("old")
        leaving.device.writev(0, block(0x11, GRAIN))
        leaving.create_snapshot("new")
        settle(array, one, two, leaving)
        assert not leaving.delete_snapshot("new")
        leaving.close()
        one.create_snapshot("newest")
        wait(lambda: [snapshot.name for snapshot in two.snapshots] == ["old", "newest"])
        assert check_views(array, one, two) == 4


def test_deletion_is_left_to_the_holder_of_its_lock(array: Array, network: Network) -> None:
    with nodes(array, "one", "two", exchange=True, takeover=3600.0) as (one, two):
        one.create_snapshot("old")
        two.create_snapshot("new")
        settle(array, one, two)
        snapshot = one.snapshot("new")
        other = Wire("a member that does nothing")
        other.send(locks.frame(locks.Kind.WANT, f"delete {snapshot.uuid}", b""))
        assert not one.delete_snapshot("new")
        two.create_snapshot("newest")
        settle(array, one, two)
        assert [found.state.value for found in one.snapshots] == ["active", "deleting", "active"]
        other.close()
        wait(lambda: [found.name for found in two.snapshots] == ["old", "newest"])


def test_trackers_ride_on_the_locks_of_jobs(array: Array, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messenger, "Messenger", functools.partial(messenger.Messenger, every=3600.0))
    with nodes(array, "one", "two", exchange=True) as (one, two):
        one.create_snapshot("old")
        one.create_snapshot("new")
        settle(array, one, two)
        one.device.writev(0, block(0x11, GRAIN))
        assert not knows(two, 0)
        one.delete_snapshot("old")
        wait(lambda: knows(two, 0))


def test_without_corosync_copies_are_futile_and_nothing_else(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_name: str) -> Wire:
        raise cpg.Unavailable("corosync does not answer")

    monkeypatch.setattr(cpg, "Group", none)
    with nodes(array, "one", "two", exchange=True) as (one, two):
        one.create_snapshot("first")
        settle(array, one, two)
        one.device.writev(0, block(0x11, GRAIN))
        two.device.writev(0, block(0x22, GRAIN))
        assert two.counters.futile_copies > 0
        exchange = two.exchange
        assert exchange is not None
        assert exchange.problem == "corosync does not answer"
        assert check_views(array, one, two) == 2
