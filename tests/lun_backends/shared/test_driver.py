# SPDX-License-Identifier: Apache-2.0
"""The thread that runs a node: how it ends, how it waits, and what it makes of errors."""

from __future__ import annotations

import threading
import time

import pytest

from lun_backends import block_device
from lun_backends.cluster import actions
from lun_backends.cluster import node as cluster_node
from lun_backends.cluster.records import Type
from lun_backends.initiator import reservation
from lun_backends.shared import volume
from lun_backends.volumes import errors
from tests.lun_backends.memory_side import block
from tests.lun_backends.shared.rig import PATIENCE, Array, check_views, nodes, open_node, wait
from tests.lun_backends.shared.test_faults import started


def test_an_unforeseen_error_ends_the_thread_visibly(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """`target.ending` turns that into the end of the process; here, commands end at once."""
    ended: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    with nodes(array, "one") as (one,):

        def fail(_action: actions.Action) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(one._driver, "_command", fail)
        wait(lambda: bool(ended))
        assert ended[0].exc_type is ZeroDivisionError
        with pytest.raises(block_device.DeviceClosed):
            one.device.writev(0, block(1))
        with pytest.raises(volume.RequestFailed, match="the volume is closed"):
            one.expel("other")


def test_a_closed_volume_refuses_and_its_node_stays_registered(array: Array) -> None:
    with nodes(array, "one", "two") as (one, two):
        one.device.writev(0, block(1))
        view_of = one.create_snapshot("first")
        view = one.view("first")
        one.close()
        one.close()
        with pytest.raises(block_device.DeviceClosed):
            one.device.writev(0, block(2))
        with pytest.raises(block_device.BlockDeviceError):
            view.readv(0, block(0))
        two.device.writev(0, block(3))
        assert {seen.initiator.rpartition(":")[2] for seen in two.nodes()} >= {"one", "two"}
        assert two.snapshot("first").uuid == view_of.uuid


def test_closing_does_not_wait_for_a_node_that_is_out(array: Array) -> None:
    array.hidden.update(("blind", lun) for lun in array.luns)
    with nodes(array, "one") as (one,):
        one.create_snapshot("first")
        blind = open_node(array, "blind")
        write = started(lambda: blind.device.writev(0, block(1)))
        wait(lambda: blind.status.state == "out")
        began = time.monotonic()
        blind.close()
        assert isinstance(write.exception(PATIENCE), block_device.DeviceClosed)
        assert time.monotonic() - began < PATIENCE / 2


def test_a_request_that_waits_too_long_is_withdrawn(array: Array) -> None:
    array.hidden.update(("blind", lun) for lun in array.luns)
    with nodes(array, "one") as (one,):
        one.create_snapshot("first")
        blind = open_node(array, "blind")
        try:
            with pytest.raises(errors.SnapshotFailed, match=r"nothing was changed: .*is not visible"):
                blind.create_snapshot("late", timeout=0.5)
            array.hidden.clear()
            wait(lambda: blind.status.state == "armed")
            assert [snapshot.name for snapshot in blind.snapshots] == ["first"]
        finally:
            blind.close()


def test_a_node_that_is_out_does_not_spin(array: Array) -> None:
    """A request that waits is no reason to ask the devices all the time."""
    array.hidden.update(("blind", lun) for lun in array.luns)
    with nodes(array, "one") as (one,):
        one.create_snapshot("first")
        blind = open_node(array, "blind")
        try:
            wait(lambda: blind.status.state == "out")
            asked = started(lambda: blind.create_snapshot("late", timeout=2))
            before = array.log_unit.counters.commands
            time.sleep(1.5)
            assert array.log_unit.counters.commands - before < 20
            assert isinstance(asked.exception(PATIENCE), errors.SnapshotFailed)
        finally:
            blind.close()


def test_a_foreign_reservation_is_named(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_node, "RETRY", 0.02)
    unit = array.initiator("iqn.2026-11.io.wolun:fence-scsi").unit(array.address(0))
    reservation.register_and_ignore(unit, 7)
    reservation.reserve(unit, 7, reservation.Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    node = open_node(array, "one", patience=0.5)
    try:
        wait(lambda: "reservation of type 5h" in node.status.problem)
        with pytest.raises(block_device.NotReady, match="fence_scsi"):
            node.device.writev(0, block(1))
        reservation.clear(unit, 7)
        wait(lambda: node.status.state == "armed")
    finally:
        node.close()


def test_a_reservation_that_was_cleared_is_made_again(array: Array) -> None:
    with nodes(array, "one", "two") as (one, two):
        unit = array.initiator("iqn.2026-11.io.wolun:administrator").unit(array.address(0))
        reservation.register_and_ignore(unit, 7)
        reservation.clear(unit, 7)
        for at, node in enumerate((one, two)):
            node.create_snapshot(f"s{at}")
            node.device.writev(at * 4096, block(1))
        assert reservation.read_reservation(unit) is not None
        assert check_views(array, one, two) == 4


def test_a_record_that_is_no_record_keeps_nodes_out(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_node, "RESCAN", 0.05)
    with nodes(array, "one", patience=0.5) as (one,):
        array.log.fill(b"garbage!" * 512, one.status.log_used * 4096)
        wait(lambda: "holds no record" in one.status.problem)
        with pytest.raises(block_device.NotReady, match="holds no record"):
            one.device.writev(0, block(1))


def test_a_log_that_is_full_says_so(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(array, "one") as (one,):
        snapshot = one.create_snapshot("first")
        one._node.log_blocks = cluster_node.RESERVE
        with pytest.raises(volume.RequestFailed, match="the log is full"):
            one.request(Type.DELETE, snapshot.uuid, 5)
        one.device.writev(0, block(1))


def test_a_lun_that_is_too_small_takes_no_snapshot(array: Array) -> None:
    """A snapshot in it would silently lack the end of the volume."""
    with nodes(array, "one") as (one,):
        array.primary.size *= 2
        array.primary.data.extend(bytes(array.primary.size // 2))
        array.primary.written.extend(bytes(array.primary.size // 1024))
        one.primary.size *= 2
        with pytest.raises(errors.SnapshotFailed, match="of the volume's size"):
            one.create_snapshot("first")


def test_all_that_was_written_before_a_fence_is_flushed_behind_it(array: Array) -> None:
    """Otherwise a loss of power changes the snapshot: its view reads the primary."""
    with nodes(array, "one", "two") as (one, two):
        order: list[str] = []
        array.primary.on_command = order.append
        write = one.device.writev
        command = two._driver._command

        def write_between_flush_and_fence(action: actions.Action) -> object:
            if isinstance(action, actions.Append) and not order.count("writev"):
                write(0, block(1))
            return command(action)

        two._driver._command = write_between_flush_and_fence  # type: ignore[method-assign]
        two.create_snapshot("first")
        assert "flush" in order[order.index("writev") :]
        assert check_views(array, one, two) == 2
