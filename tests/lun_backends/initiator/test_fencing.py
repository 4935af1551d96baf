# SPDX-License-Identifier: Apache-2.0
"""Fences that overlap, with libiscsi as the initiator: when one returns, no command of the fenced nodes is under way.

A node has a slow command at wolun's portal.  `helper` is thrown out by `taker`'s fence and fences as well, which went
wrong on LIO (lun_backends/cluster/README.md, "What the model changed").
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.initiator import reservation, unit
from lun_backends.initiator.reservation import Type
from tests.lun_backends.initiator.serving import NAME, Served
from tests.memory_device import MemoryDevice

OLD_KEY, NEW_KEY = 0xA, 0xB
KINDS = [Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS]
WRITE = b"\x8a\0" + (8).to_bytes(8) + (1).to_bytes(4) + b"\0\0"
READ = b"\x88\0" + (8).to_bytes(8) + (1).to_bytes(4) + b"\0\0"
NOT_YET = 0.1  # seconds that a call which has to wait is watched
SECONDS = 20.0


class Call:
    """A call on a thread of its own."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.error: block_device.BlockDeviceError | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except block_device.BlockDeviceError as error:
            self.error = error

    @property
    def waits(self) -> bool:
        self._thread.join(NOT_YET)
        return self._thread.is_alive()

    def end(self) -> block_device.BlockDeviceError | None:
        """Return the error with which it has ended, or None."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.error


class Cluster:
    """Three nodes that hold a reservation for all registrants, and a device whose next command can be slow."""

    def __init__(self, served: Served, directory: Path, kind: Type) -> None:
        self.kind = kind
        self.served = served
        self.device = MemoryDevice()
        self.writer, self.taker, self.helper = map(self._node, ("writer", "taker", "helper"))
        served.add(0, self.device, reservations=directory / "reservations.json")
        for node in (self.writer, self.taker, self.helper):
            reservation.register_and_ignore(node, OLD_KEY)
        reservation.reserve(self.taker, OLD_KEY, kind)
        self._reached, self.go_on = threading.Event(), threading.Event()

    def _node(self, name: str) -> unit.Unit:
        return self.served.unit(0, f"{NAME}-{name}")

    def lose_the_writer(self) -> None:
        (session,) = [one for one in self.served.portal.sessions() if one.initiator == f"{NAME}-writer"]
        self.served.portal.end_session(session.tsih)

    def slow(self, cdb: bytes) -> Call:
        """Send a command of the writer, and return when it is at the device, where it stays until `go_on`."""

        def wait(*_: object) -> bool:
            if threading.current_thread().name == "iscsi-portal":
                return False  # the loop never waits
            self.device.before = None
            self._reached.set()
            return self.go_on.wait(SECONDS)

        self.device.before = wait
        call = Call(
            lambda: self.writer.execute(cdb, b"\x55" * 512) if cdb is WRITE else self.writer.execute(cdb, in_length=512)
        )
        assert self._reached.wait(SECONDS)
        return call

    def fence(self, node: unit.Unit) -> Call:
        """Fence as F0 and F1 without the reset."""

        def run() -> None:
            if reservation.own_key(node) is None:
                reservation.register_and_ignore(node, NEW_KEY)
            own = reservation.own_key(node)
            if own is None:
                raise block_device.ReservationConflict
            reservation.preempt_and_abort(node, own, 0, self.kind)

        return Call(run)

    def thrown_out(self, node: unit.Unit) -> None:
        """Return when the node is not registered any longer."""
        while True:
            with contextlib.suppress(unit.TaskAborted):  # the fence aborts this command as well
                if reservation.own_key(node) is None:
                    return

    @property
    def written(self) -> bool:
        return self.device.data[8 * 512] == 0x55


@pytest.fixture(params=KINDS, ids=["8h", "7h"])
def cluster(served: Served, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(served, tmp_path, request.param)
    yield made
    made.go_on.set()


def no_more(call: Call, cluster: Cluster) -> None:
    """See that a fenced command has ended, and that its node can write no longer."""
    error = call.end()
    assert error is None or isinstance(error, block_device.NoAnswer), error
    with pytest.raises(block_device.ReservationConflict):
        cluster.writer.execute(WRITE, bytes(512))
    assert cluster.written


@pytest.mark.parametrize("cdb", [WRITE, READ], ids=["write", "read"])
def test_fence_waits_for_a_slow_command(cluster: Cluster, cdb: bytes) -> None:
    command = cluster.slow(cdb)
    fence = cluster.fence(cluster.taker)
    assert fence.waits
    cluster.go_on.set()
    assert fence.end() is None
    assert cluster.written is (cdb is WRITE)
    command.end()
    with pytest.raises(block_device.ReservationConflict):
        cluster.writer.execute(WRITE, bytes(512))


def test_second_fence_waits_for_what_the_first_one_waits_for(cluster: Cluster) -> None:
    command = cluster.slow(WRITE)
    first = cluster.fence(cluster.taker)
    cluster.thrown_out(cluster.helper)
    second = cluster.fence(cluster.helper)
    cluster.thrown_out(cluster.taker)
    assert first.waits
    assert second.waits
    cluster.go_on.set()
    assert second.end() is None
    assert cluster.written
    first.end()
    no_more(command, cluster)


def test_reset_waits_for_what_a_fence_waits_for(cluster: Cluster) -> None:
    command = cluster.slow(WRITE)
    fence = cluster.fence(cluster.taker)
    cluster.thrown_out(cluster.helper)
    reset = Call(cluster.helper.reset_logical_unit)
    assert reset.waits
    assert fence.waits
    cluster.go_on.set()
    assert reset.end() is None
    assert cluster.written
    fence.end()
    no_more(command, cluster)


def test_nodes_that_fence_and_reset_at_once_all_get_an_answer_and_wait(cluster: Cluster) -> None:
    command = cluster.slow(WRITE)
    first = cluster.fence(cluster.taker)
    cluster.thrown_out(cluster.helper)
    second = cluster.fence(cluster.helper)
    cluster.thrown_out(cluster.taker)
    resets = [Call(node.reset_logical_unit) for node in (cluster.taker, cluster.helper)]
    for reset in resets:
        assert reset.waits
    assert not cluster.written
    cluster.go_on.set()
    for reset in resets:
        reset.end()
        assert cluster.written
    first.end()
    second.end()
    no_more(command, cluster)


def test_fences_wait_for_a_command_whose_session_is_lost(cluster: Cluster) -> None:
    command = cluster.slow(WRITE)
    cluster.lose_the_writer()
    assert isinstance(command.end(), block_device.NoAnswer)
    first = cluster.fence(cluster.taker)
    cluster.thrown_out(cluster.helper)
    second = cluster.fence(cluster.helper)
    cluster.thrown_out(cluster.taker)
    reset = Call(cluster.helper.reset_logical_unit)
    assert first.waits
    assert second.waits
    assert reset.waits
    assert not cluster.written
    cluster.go_on.set()
    reset.end()
    assert cluster.written
    first.end()
    second.end()


def test_reset_waits_for_a_command_of_a_node_that_was_never_registered(cluster: Cluster) -> None:
    """PREEMPT AND ABORT does not: a command that was admitted before there was a reservation belongs to no registrant."""
    reservation.clear(cluster.taker, OLD_KEY)
    command = cluster.slow(WRITE)
    reservation.register_and_ignore(cluster.taker, NEW_KEY)
    reservation.reserve(cluster.taker, NEW_KEY, cluster.kind)
    assert cluster.fence(cluster.taker).end() is None
    assert not cluster.written
    reset = Call(cluster.taker.reset_logical_unit)
    assert reset.waits
    cluster.go_on.set()
    assert reset.end() is None
    no_more(command, cluster)
