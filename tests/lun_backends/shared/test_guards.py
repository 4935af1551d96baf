# SPDX-License-Identifier: Apache-2.0
"""Each guard of the room, and what goes wrong without it.  Every scenario runs twice: with its guard, and with it taken out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lun_backends import block_device, copy_on_write
from lun_backends.cluster import actions, history
from lun_backends.cluster.records import Type
from lun_backends.preserving import Decision
from lun_backends.shared import admission, driver, jobs, primary, volume
from lun_backends.volumes import errors, policy
from tests.lun_backends.memory_side import block, read
from tests.lun_backends.shared.rig import CHUNK, PATIENCE, Array, Node, check_views, nodes, settle, wait
from tests.lun_backends.shared.test_faults import overtake, started
from tests.lun_backends.shared.test_jobs import history_of, no_room

OLD, NEW = 0x11, 0x22


class Asleep:
    """Lets the first call of a method of a class wait, before anything is done, like SIGSTOP."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, method: str) -> None:
        self.events = threading.Event(), threading.Event()
        original = getattr(owner, method)
        armed = [True]

        def sleep_first(*words: Any, **options: Any) -> Any:
            if armed and armed.pop():
                self.events[0].set()
                assert self.events[1].wait(PATIENCE)
            return original(*words, **options)

        patch.setattr(owner, method, sleep_first)


def two_epochs(array: Array, sleeper: Node, other: Node) -> None:
    """Take a snapshot of chunk 0 with OLD, and let both nodes join its epoch."""
    other.device.writev(0, block(OLD, CHUNK))
    other.create_snapshot("before")
    settle(array, sleeper, other)


def join_while_asleep(sleeper: Node, seconds: float = PATIENCE) -> None:
    """Let other commands of the sleeping node meet the fence, and wait until it has joined, if it does."""
    with contextlib.suppress(AssertionError):
        wait(lambda: sleeper.refresh(0.2) and sleeper.status.state == "armed" and sleeper.status.epoch == 2, seconds)


def copy_sleeps_before_it_is_admitted(array: Array, patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "sleeper", "other") as (sleeper, other):
        two_epochs(array, sleeper, other)
        asleep = Asleep(patch, primary.EpochSide, "put_many")
        write = started(lambda: sleeper.device.writev(512, block(0x33)))
        assert asleep.events[0].wait(PATIENCE)
        other.create_snapshot("meanwhile")
        other.device.writev(0, block(NEW, CHUNK))
        join_while_asleep(sleeper)
        asleep.events[1].set()
        write.result(PATIENCE)
        check_views(array, sleeper, other)


def view_sleeps_before_it_is_admitted(array: Array, patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "sleeper", "other") as (sleeper, other):
        two_epochs(array, sleeper, other)
        view = sleeper.view("before")
        asleep = Asleep(patch, primary.ViewedPrimary, "_command")
        seen = started(lambda: read(view, 0, CHUNK))
        assert asleep.events[0].wait(PATIENCE)
        other.create_snapshot("meanwhile")
        other.device.writev(0, block(NEW, CHUNK))
        join_while_asleep(sleeper)
        asleep.events[1].set()
        assert seen.result(PATIENCE) == bytes([OLD]) * CHUNK


def write_sleeps_while_its_node_joins(array: Array, patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "sleeper", "other") as (sleeper, other):
        two_epochs(array, sleeper, other)
        sleeper.device.writev(0, block(OLD, CHUNK))  # preserved: the next write needs no copy in this epoch
        reached, go_on = sleeper.primary.stop("writev")
        write = started(lambda: sleeper.device.writev(0, block(0x33)))
        assert reached.wait(PATIENCE)
        other.create_snapshot("meanwhile")
        join_while_asleep(sleeper, 1.0)
        go_on.set()
        write.result(PATIENCE)
        check_views(array, sleeper, other)


def copy_sleeps_before_its_put(array: Array, _patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "sleeper", "other", exclusive=False) as (sleeper, other):
        two_epochs(array, sleeper, other)
        asleep = sleeper.primary.stop("readv")  # with 7h the device does not refuse this read
        write = started(lambda: sleeper.device.writev(512, block(0x33)))
        overtake(array, asleep, other, "meanwhile")
        write.result(PATIENCE)
        check_views(array, sleeper, other)


def chunk_is_known_from_the_epoch_before(array: Array, _patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "one", "two") as (one, two):
        two_epochs(array, one, two)
        one.device.writev(0, block(0x33))
        two.create_snapshot("meanwhile")
        one.device.writev(0, block(0x44))
        check_views(array, one, two)


def taker_writes_while_it_joins(array: Array, patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "taker", "other") as (taker, other):
        two_epochs(array, taker, other)
        taker.device.writev(0, block(OLD, CHUNK))
        command = taker._driver._command

        def write_behind_the_fence(action: actions.Action) -> Any:
            if isinstance(action, actions.ReadReservation) and 2 in array.moments and not writes:
                writes.append(started(lambda: taker.device.writev(0, block(0x33))))
                time.sleep(0.2)
            return command(action)

        writes: list[Any] = []
        patch.setattr(taker._driver, "_command", write_behind_the_fence)
        taker.create_snapshot("meanwhile")
        wait(lambda: bool(writes))
        writes[0].result(PATIENCE)
        check_views(array, taker, other)


def snapshot_is_lost(array: Array, _patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "one", "two", rules=policy.Policy(on_error=policy.OnError.DROP_SNAPSHOT)) as (one, two):
        two_epochs(array, one, two)
        no_room(array, one, block_device.SpaceExhausted(0))
        one.device.writev(0, block(0x33))
        check_views(array, one, two)


def view_is_read_while_its_snapshot_is_lost(array: Array, _patch: pytest.MonkeyPatch) -> None:
    """Read the primary for a view whose LUN was blank, when a write has gone on without its copy."""
    with nodes(array, "one", "two", rules=policy.Policy(on_error=policy.OnError.DROP_SNAPSHOT)) as (one, two):
        two_epochs(array, one, two)
        view = two.view("before")
        reached, go_on = two.primary.stop("readv")
        seen = started(lambda: read(view, 0, CHUNK))
        assert reached.wait(PATIENCE)
        no_room(array, one, block_device.SpaceExhausted(0))
        one.device.writev(0, block(NEW, CHUNK))
        go_on.set()
        with contextlib.suppress(block_device.SnapshotInvalid):
            assert seen.result(PATIENCE) == bytes([OLD]) * CHUNK


def chunks_must_move(array: Array, _patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "one") as (one,):
        history_of(array, one, 3)
        one.delete_snapshot("s1")
        check_views(array, one)


def rollback_is_taken_over(array: Array, patch: pytest.MonkeyPatch) -> None:
    with nodes(array, "sleeper", "heir") as (sleeper, heir):
        two_epochs(array, sleeper, heir)
        heir.device.writev(0, block(NEW, CHUNK))
        asleep = Asleep(patch, jobs.Jobs, "_write")
        work = started(lambda: sleeper.rollback("before"))
        assert asleep.events[0].wait(PATIENCE)
        heir.rollback("before")
        heir.device.writev(0, block(0x33, CHUNK))
        asleep.events[1].set()
        with contextlib.suppress(errors.RollbackStopped, volume.RequestFailed):
            work.result(PATIENCE)
        assert read(heir.device, 0, CHUNK) == bytes([0x33]) * CHUNK


def nothing(*_words: object, **_options: object) -> None:
    return None


def without_epoch_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(primary, "check_epoch", nothing)


def without_drain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admission.Admission, "drain", nothing)


def without_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(driver.Driver, "newer", lambda _self: False)


def without_fresh_tracker(patch: pytest.MonkeyPatch) -> None:
    arm = copy_on_write.CopyOnWrite.arm
    patch.setattr(copy_on_write.CopyOnWrite, "arm", lambda self, side: arm(self, side, self.tracker))


def without_closing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(driver.Driver, "_close_admission", nothing)


def without_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(volume.SharedVolume, "_copy_failed", lambda *_: Decision.INVALIDATED)


def without_fence_of_the_loss(patch: pytest.MonkeyPatch) -> None:
    decide = volume.SharedVolume._copy_failed
    patch.setattr(history, "_DEMANDS", tuple(kind for kind in history._DEMANDS if kind is not Type.INVALID))
    patch.setattr(volume.SharedVolume, "_copy_failed", lambda *words: decide(*words) and Decision.INVALIDATED)


def without_move(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(jobs.Jobs, "_move", lambda *_: True)


def without_order(patch: pytest.MonkeyPatch) -> None:
    def write(self: jobs.Jobs, _order: object, offset: int, piece: list[memoryview]) -> None:
        self._below.preserve(offset, len(piece[0]))
        self._below.primary.writev(offset, piece)

    patch.setattr(jobs.Jobs, "_write", write)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "mutant"])
@pytest.mark.parametrize(
    ("scenario", "take_out"),
    [
        (copy_sleeps_before_it_is_admitted, without_epoch_check),
        (view_sleeps_before_it_is_admitted, without_epoch_check),
        (write_sleeps_while_its_node_joins, without_drain),
        (copy_sleeps_before_its_put, without_look),
        (chunk_is_known_from_the_epoch_before, without_fresh_tracker),
        (taker_writes_while_it_joins, without_closing),
        (snapshot_is_lost, without_record),
        (view_is_read_while_its_snapshot_is_lost, without_fence_of_the_loss),
        (chunks_must_move, without_move),
        (rollback_is_taken_over, without_order),
    ],
    ids=lambda part: part.__name__,
)
def test_guard(
    array: Array,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[Array, pytest.MonkeyPatch], None],
    take_out: Callable[[pytest.MonkeyPatch], None],
    *,
    guarded: bool,
) -> None:
    if guarded:
        scenario(array, monkeypatch)
        return
    take_out(monkeypatch)
    with pytest.raises(AssertionError):
        scenario(array, monkeypatch)
