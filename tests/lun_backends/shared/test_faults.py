# SPDX-License-Identifier: Apache-2.0
"""Nodes that sleep at the worst moment, links that break, storage that restarts: every view stays what it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures

import pytest

from lun_backends import block_device
from tests.lun_backends.memory_side import block, read
from tests.lun_backends.shared.rig import (
    CHUNK,
    PATIENCE,
    Array,
    Link,
    Node,
    Writer,
    check_views,
    nodes,
    open_node,
    settle,
    wait,
)

both = pytest.mark.parametrize("exclusive", [True, False], ids=["8h", "7h"])


def started(work: Callable[[], object]) -> futures.Future[object]:
    """Run `work` on a thread of its own."""
    pool = futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(work)
    finally:
        pool.shutdown(wait=False)


def overtake(array: Array, asleep: tuple[threading.Event, threading.Event], other: Node, name: str) -> None:
    """While a node sleeps, let another one take a snapshot and overwrite chunk 0; then wake the first."""
    reached, go_on = asleep
    assert reached.wait(PATIENCE)
    other.create_snapshot(name)
    other.device.writev(0, block(0x22, CHUNK))
    go_on.set()


@both
@pytest.mark.parametrize("step", ["readv", "put", "writev"])
def test_a_writer_sleeps_while_another_node_takes_a_snapshot(array: Array, step: str, *, exclusive: bool) -> None:
    """Before the read of its copy, before its put, before its write: it wakes in an epoch that is over."""
    with nodes(array, "sleeper", "other", exclusive=exclusive) as (sleeper, other):
        other.device.writev(0, block(0x11, CHUNK))
        lun = other.create_snapshot("before").lun
        settle(array, sleeper, other)
        asleep = sleeper.pool.opened[lun].stop("writev") if step == "put" else sleeper.primary.stop(step)
        write = started(lambda: sleeper.device.writev(512, block(0x33)))
        overtake(array, asleep, other, "meanwhile")
        write.result(PATIENCE)
        assert read(other.device, 0, 1024) == bytes([0x22]) * 512 + bytes([0x33]) * 512
        assert sleeper.counters.failures == 0
        assert check_views(array, sleeper, other) == 4


@both
def test_a_view_sleeps_before_its_read_of_the_primary(array: Array, *, exclusive: bool) -> None:
    with nodes(array, "sleeper", "other", exclusive=exclusive) as (sleeper, other):
        other.device.writev(0, block(0x11, CHUNK))
        other.create_snapshot("before")
        settle(array, sleeper, other)
        view = sleeper.view("before")
        asleep = sleeper.primary.stop("readv")
        seen = started(lambda: read(view, 0, CHUNK))
        overtake(array, asleep, other, "meanwhile")
        assert seen.result(PATIENCE) == bytes([0x11]) * CHUNK


@both
def test_the_fence_waits_for_a_write_at_the_device(array: Array, *, exclusive: bool) -> None:
    with nodes(array, "writer", "taker", exclusive=exclusive) as (writer, taker):
        at_the_device, go_on = array.primary.stop("writev")
        write = started(lambda: writer.device.writev(0, block(1)))
        assert at_the_device.wait(PATIENCE)
        taken = started(lambda: taker.create_snapshot("first"))
        with pytest.raises(futures.TimeoutError):
            taken.result(0.5)
        go_on.set()
        write.result(PATIENCE)
        taken.result(PATIENCE)
        assert check_views(array, writer, taker) == 2


def test_a_node_that_does_not_see_the_new_lun_stays_out(array: Array) -> None:
    with nodes(array, "blind", "taker", patience=0.5) as (blind, taker):
        array.hidden.update(("blind", lun) for lun in array.luns)
        taker.create_snapshot("first")
        wait(lambda: blind.status.state == "out")
        with pytest.raises(block_device.NotReady, match="is not visible"):
            blind.device.writev(0, block(1))
        taker.device.writev(0, block(2))
        array.hidden.clear()
        wait(lambda: blind.status.state == "armed")
        blind.device.writev(512, block(3))
        assert check_views(array, blind, taker) == 2


def test_a_node_that_joins_late_reads_all_snapshots(array: Array) -> None:
    with nodes(array, "one") as (one,):
        for number in range(3):
            one.device.writev(number * CHUNK, block(number + 1))
            one.create_snapshot(f"s{number}")
        one.device.writev(0, block(9))
        with nodes(array, "late", writes=False) as (late,):
            assert check_views(array, one, late) == 6
            with pytest.raises(block_device.WriteProtected):
                late.device.writev(0, block(1))
            view = late.view("s0")
            one.create_snapshot("s3")  # the chain grows below an open view
            one.device.writev(CHUNK, block(10))
            assert read(view, 0, 3 * CHUNK) == array.moments[1][: 3 * CHUNK]
            assert check_views(array, one, late) == 8


def test_an_expelled_node_writes_no_more(array: Array) -> None:
    with nodes(array, "bad", "good") as (bad, good):
        good.expel("bad")
        with pytest.raises(block_device.NotReady, match="expelled") as refused:
            bad.device.writev(0, block(1))
        assert refused.value.for_good
        good.device.writev(0, block(2))
        seen = {node.name: node for node in good.nodes()}
        assert (seen["bad"].expelled, seen["bad"].initiator) == (True, "")
        assert (seen["good"].expelled, seen["good"].in_epoch) == (False, True)


def test_a_link_is_lost_and_healed_under_load(array: Array) -> None:
    link = Link(array)
    with nodes(array, "near") as (near,):
        far = open_node(array, "far", through=link.address)
        try:
            wait(lambda: far.status.state == "armed")
            writers = [Writer(node, share, 2, share) for share, node in enumerate((near, far))]
            for writer in writers:
                writer.start()
            for number in range(3):
                near.create_snapshot(f"whole{number}")
                link.cut()
                near.create_snapshot(f"cut{number}")
                link.heal()
                far.create_snapshot(f"healed{number}", timeout=PATIENCE)
                if number == 0:
                    settle(array, near, far)
                if (near.pool_left() or 0) < 4:
                    break
            for writer in writers:
                writer.finish()
            assert check_views(array, near, far) >= 6
        finally:
            far.close()
            link.close()


def test_the_storage_host_restarts_under_load(array: Array) -> None:
    with nodes(array, "one", "two") as opened:
        writers = [Writer(node, share, 2, share) for share, node in enumerate(opened)]
        for writer in writers:
            writer.start()
        for number in range(3):
            opened[number % 2].create_snapshot(f"s{number}")
            array.restart()
            assert array.unit.reservations is not None
        opened[0].create_snapshot("last")
        for writer in writers:
            writer.finish()
        assert check_views(array, *opened) == 8


def test_a_node_with_two_paths_registers_both(array: Array) -> None:
    link = Link(array)
    with nodes(array, "other") as (other,):
        two = open_node(array, "two", other_path=link.address)

        def write(number: int) -> None:
            for chunk in range(4):  # by one path after the other
                two.device.writev(chunk * CHUNK, block(16 * number + chunk + 1))

        def registered() -> int:
            found = other._devices.fence.registrations()
            return sum(path.initiator.endswith(":two") for path in found)

        try:
            wait(lambda: two.status.state == "armed")
            for number in range(4):
                (two, other)[number % 2].create_snapshot(f"s{number}")
                settle(array, two, other)
                write(number)
                wait(lambda: write(9) or registered() == (1 if link.is_cut else 2))  # type: ignore[func-returns-value]
                assert [seen.in_epoch for seen in other.nodes()] == [True, True]
                if number == 1:
                    link.cut()
                if number == 2:
                    link.heal()
            assert check_views(array, two, other) == 8
        finally:
            two.close()
            link.close()
