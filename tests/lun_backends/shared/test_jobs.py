# SPDX-License-Identifier: Apache-2.0
"""Deletions, rollbacks and lost snapshots of a shared volume, and the nodes that take such a job over."""

from __future__ import annotations

import time

import pytest

from lun_backends import block_device
from lun_backends.cluster.records import Type
from lun_backends.shared import volume
from lun_backends.shared.snapshot import SnapshotState
from lun_backends.volumes import errors, policy
from tests.lun_backends.memory_side import block, read
from tests.lun_backends.shared.rig import CHUNK, MIB, Array, Node, check_views, content, nodes, open_node, settle, wait
from tests.lun_backends.shared.test_faults import started


def history_of(array: Array, node: Node, count: int) -> None:
    """Take snapshots s0, s1, ... with writes between them."""
    for number in range(count):
        for chunk in range(2 * number + 2):
            node.device.writev(chunk * CHUNK + number * 512, block(16 * number + chunk + 1))
        node.create_snapshot(f"s{number}")
    for chunk in range(2 * count + 2):
        node.device.writev(chunk * CHUNK, block(0xFF))


def names(node: Node) -> list[str]:
    assert node.refresh()
    return [f"{snapshot.name} {snapshot.state.value}" for snapshot in node.snapshots]


def test_chunks_of_a_deleted_snapshot_move_to_the_older_one(array: Array) -> None:
    with nodes(array, "one", "two") as (one, two):
        history_of(array, one, 3)
        view = two.view("s0")
        open_view = two.view("s1")
        lun = two.snapshot("s1").lun
        done: list[tuple[int, int]] = []
        assert two.delete_snapshot("s1", progress=lambda at, end: done.append((at, end)))
        assert done[-1][0] == done[-1][1]
        assert names(one) == ["s0 active", "s2 active"]
        assert check_views(array, one, two) == 4
        assert content(view) == array.moments[1]
        with pytest.raises(block_device.SnapshotInvalid, match="deleted"):
            read(open_view, 0, 512)
        with pytest.raises(errors.NoSuchSnapshot):
            one.delete_snapshot("s1")
        for node in (one, two):
            wait(lambda node=node: node.pool.forgotten == [lun])  # type: ignore[misc]


def test_the_newest_snapshot_is_hidden_until_there_is_a_newer_one(array: Array) -> None:
    with nodes(array, "one", "two") as (one, two):
        history_of(array, one, 2)
        assert not one.delete_snapshot("s1")
        assert names(two) == ["s0 active", "s1 deleting"]
        two.device.writev(0, block(0xEE))
        assert check_views(array, one, two) == 2
        two.create_snapshot("s2")
        wait(lambda: names(two) == ["s0 active", "s2 active"])
        assert check_views(array, one, two) == 4


def test_another_node_finishes_a_deletion(array: Array) -> None:
    with nodes(array, "heir", takeover=0.2) as (heir,):
        dying = open_node(array, "dying")
        wait(lambda: dying.status.state == "armed")
        history_of(array, dying, 2)
        assert not dying.delete_snapshot("s1")
        dying.close()
        heir.create_snapshot("s2")
        heir.device.writev(0, block(0xEE))
        wait(lambda: names(heir) == ["s0 active", "s2 active"])
        assert check_views(array, heir) == 2


def test_copies_end_with_the_last_snapshot(array: Array) -> None:
    with nodes(array, "one", "two") as (one, two):
        history_of(array, one, 2)
        one.delete_snapshot("s0")
        one.delete_snapshot("s1")
        wait(lambda: not names(two))
        settle(array, one, two)
        assert (two.status.snapshot, two.tracker) == ("", None)
        before = two.counters.copies
        two.device.writev(0, block(0xEE))
        assert two.counters.copies == before
        two.create_snapshot("again")
        two.device.writev(0, block(0xDD))
        assert check_views(array, one, two) == 2


def test_rollback_brings_the_content_back_and_keeps_newer_snapshots(array: Array) -> None:
    with nodes(array, "one", "two") as (one, two):
        history_of(array, one, 3)
        done: list[tuple[int, int]] = []
        one.rollback("s1", progress=lambda at, end: done.append((at, end)))
        assert done[-1][0] == done[-1][1]
        assert content(two.device) == array.moments[2]
        two.device.writev(0, block(0xAA))
        assert check_views(array, one, two) == 6


def test_nobody_writes_during_a_rollback(array: Array) -> None:
    with nodes(array, "one", "two", patience=0.5) as (one, two):
        history_of(array, one, 2)
        reached, go_on = one.primary.stop("writev")
        work = started(lambda: one.rollback("s0"))
        assert reached.wait(30)
        for node, why in ((one, "rolled back"), (two, "one rolls the volume back")):
            with pytest.raises(block_device.NotReady, match=why):
                node.device.writev(MIB // 2, block(1))
            with pytest.raises(block_device.NotReady, match=why):
                read(node.device, 0, 512)
        with pytest.raises(errors.SnapshotFailed, match="rolls the volume back"):
            one.create_snapshot("no")
        with pytest.raises(volume.RequestFailed, match="rolls the volume back"):
            one.delete_snapshot("s0")
        go_on.set()
        work.result(30)
        wait(lambda: two.status.state == "armed")
        two.device.writev(MIB // 2, block(1))
        assert content(one.device)[: MIB // 2] == array.moments[1][: MIB // 2]


@pytest.mark.parametrize("heir", ["dying", "other"])
def test_a_rollback_that_stopped_goes_on(array: Array, heir: str) -> None:
    """Its node goes on when it starts again; another one takes over when it is asked to."""
    with nodes(array, "other") as (other,):
        dying = open_node(array, "dying")
        wait(lambda: dying.status.state == "armed")
        history_of(array, other, 2)
        settle(array, dying, other)
        reached, go_on = dying.primary.stop("writev")
        work = started(lambda: dying.rollback("s0"))
        assert reached.wait(30)
        closing = started(dying.close)
        time.sleep(0.1)  # so that the job stops after this write
        go_on.set()
        closing.result(30)
        assert work.exception(30) is not None or array.log.written.find(0) > 0
        assert other.refresh()
        assert other.status.rolling_back == "dying"
        wait(lambda: other.status.state == "out")
        if heir == "other":
            other.rollback("s0")
        with nodes(array, *(["dying"] if heir == "dying" else [])):
            wait(lambda: other.status.rolling_back == "" and other.status.state == "armed")
            assert content(other.device) == array.moments[1]
            assert check_views(array, other) == 2


def test_a_rollback_of_an_expelled_node_is_taken_over(array: Array) -> None:
    """It will not come back, and all others would stay out for ever."""
    with nodes(array, "heir", takeover=0.2) as (heir,):
        bad = open_node(array, "bad")
        try:
            wait(lambda: bad.status.state == "armed")
            history_of(array, heir, 2)
            settle(array, bad, heir)
            reached, go_on = bad.primary.stop("writev")
            work = started(lambda: bad.rollback("s0"))
            assert reached.wait(30)
            assert heir.refresh()
            heir.expel("bad")
            go_on.set()
            assert work.exception(30) is not None
            wait(lambda: heir.refresh() and heir.status.state == "armed" and not heir.status.rolling_back)
            assert content(heir.device) == array.moments[1]
            assert check_views(array, heir) == 2
        finally:
            bad.close()


def no_room(array: Array, node: Node, error: block_device.BlockDeviceError) -> None:
    """Let the next put into the newest snapshot fail."""
    array.luns[node.snapshots[-1].lun].inject("writev", error)


def test_a_snapshot_is_dropped_in_the_log_before_the_write_goes_on(array: Array) -> None:
    rules = policy.Policy(on_error=policy.OnError.DROP_SNAPSHOT)
    with nodes(array, "one", "two", rules=rules) as (one, two):
        history_of(array, one, 2)
        settle(array, one, two)
        view = two.view("s0")
        no_room(array, one, block_device.SpaceExhausted(0))
        two.device.writev(0, block(0x77))
        assert names(one) == ["s0 invalid", "s1 invalid"]
        assert "no space left" in one.snapshots[-1].reason
        with pytest.raises(block_device.SnapshotInvalid, match="no space left"):
            read(view, 0, 512)
        one.device.writev(0, block(0x78))
        one.create_snapshot("s2")
        one.device.writev(0, block(0x79))
        assert check_views(array, one, two) == 2
        assert one.delete_snapshot("s0")
        assert one.delete_snapshot("s1")
        assert names(two) == ["s2 active"]


def test_a_write_fails_whose_pre_image_cannot_be_kept(array: Array) -> None:
    with nodes(array, "one") as (one,):
        history_of(array, one, 1)
        no_room(array, one, block_device.SpaceExhausted(0))
        with pytest.raises(block_device.PreserveFailed):
            one.device.writev(MIB // 2, block(0x77))
        one.device.writev(MIB // 2, block(0x78))
        assert check_views(array, one) == 1


def test_requests_that_cannot_be_are_refused(array: Array) -> None:
    with nodes(array, "one", rules=policy.Policy(max_snapshots=1)) as (one,):
        one.create_snapshot("first")
        with pytest.raises(errors.SnapshotExists):
            one.create_snapshot("first")
        with pytest.raises(errors.TooManySnapshots):
            one.create_snapshot("second")
        with pytest.raises(errors.BadName):
            one.create_snapshot("a name")
        with pytest.raises(errors.NoSuchSnapshot, match="there are: first"):
            one.rollback("second")
        with pytest.raises(volume.RequestFailed, match="does not expel itself"):
            one.expel("one")
    with nodes(array, "one") as (one,):
        for lun in array.luns.values():
            lun.fill(b"\1" * 512)
        with pytest.raises(errors.SnapshotFailed, match="no blank write-once LUN"):
            one.create_snapshot("second")
        assert one.snapshots[0].state is SnapshotState.ACTIVE
        with pytest.raises(volume.RequestFailed, match="is taken"):
            one.request(Type.DELETED, one.snapshots[0].uuid, 5)
