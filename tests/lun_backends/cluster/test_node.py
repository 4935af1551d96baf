# SPDX-License-Identifier: Apache-2.0
"""Nodes of a calm cluster: what is asked for happens, and what keeps a node out is said.  `tests/simulate` has the storms."""

from __future__ import annotations

import uuid

from lun_backends.cluster import history
from lun_backends.cluster.history import Standing
from lun_backends.cluster.node import RESERVE, Request, State, taking
from lun_backends.cluster.records import Record, Type
from tests.simulate.world import World


def armed(nodes: int = 3) -> World:
    world = World(3, calm=nodes)
    world.go(3)
    assert [host.node.state for host in world.hosts] == [State.ARMED] * nodes
    return world


def take(world: World, host: int = 0) -> uuid.UUID:
    request = world.ask(world.hosts[host], taking(world.volume))
    world.go(3)
    assert request.record is not None
    assert request.record.snapshot is not None
    return request.record.snapshot


def ask(world: World, host: int, kind: Type, snapshot: uuid.UUID | None = None, node: str = "") -> Request:
    answers = world.history.rollback_at if kind is Type.ROLLED_BACK else world.hosts[host].node.history.end
    draft = Record(kind, world.volume, snapshot=snapshot, answers=answers, node=node)
    request = world.ask(world.hosts[host], Request(draft))
    world.go(4)
    return request


def test_first_node_writes_epoch_0_and_fences_it() -> None:
    world = armed()
    assert [record.type for record in world.history.records] == [Type.EPOCH, Type.FENCED]
    assert world.primary.reserved


def test_every_node_follows_a_snapshot() -> None:
    world = armed()
    snapshot = take(world)
    assert {host.node.epoch.snapshot for host in world.hosts} == {snapshot}
    assert all(host.node.gate_open for host in world.hosts)
    assert set(world.primary.keys.values()) == {history.key(world.volume, world.history.epochs[1])}


def test_first_write_after_a_snapshot_is_preserved_once() -> None:
    world = armed()
    take(world)
    old = world.primary.grains[1]
    for host in world.hosts:
        world.write(host, 1)
    world.go(3)
    lun = world.hosts[0].node.epoch.lun
    assert lun is not None
    assert world.storage.luns[lun].blocks == {1: old}
    assert world.primary.grains[1] != old
    assert world.pending == 0


def test_death_of_the_taker_before_its_fence_stops_nobody() -> None:
    world = armed()
    world.ask(world.hosts[0], taking(world.volume))
    while len(world.history.epochs) < 2:
        world.go(0.0001)
    world.hosts[0].tasks.clear()  # it is dead
    world.go(5)
    assert not world.history.fence_is_due
    assert all(host.node.gate_open and host.node.epoch.number == 1 for host in world.hosts[1:])


def test_two_takers_make_two_snapshots() -> None:
    world = armed()
    requests = [world.ask(host, taking(world.volume)) for host in world.hosts]
    world.go(10)
    assert all(request.done and not request.refused for request in requests)
    assert len(world.history.epochs) == 4


def test_expelled_node_stays_out_and_the_others_come_back() -> None:
    world = armed()
    ask(world, 0, Type.EXPEL, node="node2")
    assert [host.node.state for host in world.hosts] == [State.ARMED, State.ARMED, State.OUT]
    assert world.hosts[2].node.problem == "node node2 is expelled from the volume"
    assert not world.primary.admits(("node2", 0), writes=True)


def test_others_stay_out_during_a_rollback() -> None:
    world = armed()
    snapshot = take(world)
    ask(world, 1, Type.ROLLBACK, snapshot)
    assert [host.node.state for host in world.hosts] == [State.OUT, State.ARMED, State.OUT]
    assert world.hosts[0].node.problem == "node node1 rolls the volume back"
    ask(world, 1, Type.ROLLED_BACK, snapshot)
    assert [host.node.state for host in world.hosts] == [State.ARMED] * 3


def test_rollback_of_a_dead_node_is_taken_over() -> None:
    world = armed()
    snapshot = take(world)
    ask(world, 1, Type.ROLLBACK, snapshot)
    world.hosts[1].tasks.clear()  # it is dead
    ask(world, 0, Type.ROLLBACK, snapshot)
    assert [host.node.state for host in world.hosts[::2]] == [State.ARMED, State.OUT]
    ask(world, 0, Type.ROLLED_BACK, snapshot)
    assert [host.node.state for host in world.hosts[::2]] == [State.ARMED, State.ARMED]


def test_deletion_is_recorded_and_a_second_one_refused() -> None:
    world = armed()
    first = take(world)
    take(world, 1)
    assert ask(world, 2, Type.DELETE, first).record is not None
    assert world.history.standing(first) is Standing.HIDDEN
    assert ask(world, 1, Type.DELETE, first).refused == f"snapshot {first} is hidden"
    assert ask(world, 1, Type.DELETED, first).record is not None


def test_withdrawn_request_leaves_no_record() -> None:
    world = armed()
    node = world.hosts[0].node
    request = world.ask(world.hosts[0], taking(world.volume))
    assert node.withdraw(request)
    world.go(3)
    assert len(world.history.epochs) == 1
    done = world.ask(world.hosts[0], taking(world.volume))
    world.go(3)
    assert not node.withdraw(done)


def test_full_log_takes_fences_and_no_requests() -> None:
    world = armed()
    node = world.hosts[0].node
    node.log_blocks = world.history.end + RESERVE - 1
    request = world.ask(world.hosts[0], taking(world.volume))
    world.go(3)
    assert "the log is full" in request.refused
    node.log_blocks += 1
    take(world)


def test_copies_end_with_the_last_snapshot() -> None:
    world = armed()
    snapshot = take(world)
    ending = Record(Type.EPOCH, world.volume, snapshot=uuid.UUID(int=0))
    request = world.ask(world.hosts[0], Request(ending))
    world.go(3)
    assert "delete them first" in request.refused
    ask(world, 0, Type.DELETE, snapshot)
    world.ask(world.hosts[0], Request(ending))
    world.go(3)
    assert {host.node.epoch.lun for host in world.hosts} == {None}
    assert all(host.node.gate_open for host in world.hosts)


def test_empty_pool_refuses_a_snapshot_and_goes_on() -> None:
    world = armed()
    for lun in world.storage.luns.values():
        lun.put(1, b"used")
    request = world.ask(world.hosts[0], taking(world.volume))
    world.go(3)
    assert "add one on the storage host" in request.refused
    assert all(host.node.gate_open for host in world.hosts)


def test_node_that_does_not_see_the_write_once_lun_stays_out() -> None:
    world = armed()
    for lun in world.storage.luns:
        world.hosts[2].late_luns[lun] = 20.0
    take(world)
    assert not world.hosts[2].node.gate_open
    assert "is not visible" in world.hosts[2].node.problem
    world.go(20)
    assert world.hosts[2].node.gate_open


def test_damaged_record_keeps_nodes_out() -> None:
    world = armed()
    position = len(world.storage.log.blocks)
    world.storage.log.blocks[position] = b"rot".ljust(4096, b"\0")
    world.go(3)
    assert {host.node.state for host in world.hosts} == {State.OUT}
    assert world.hosts[0].node.problem == f"block {position} of the log holds no record"


def test_lost_reservation_is_noticed_by_the_next_node_that_joins() -> None:
    world = armed()
    world.primary.keys.clear()
    world.primary.reserved = False
    world.crash(world.hosts[0])
    world.go(5)
    assert world.primary.reserved
