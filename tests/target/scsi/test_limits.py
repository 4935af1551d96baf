# SPDX-License-Identifier: Apache-2.0
"""Token buckets, and the gate in front of the handlers of a limited unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lun_backends.block_device import WouldBlock
from target.scsi.limits import Bucket, Rate
from tests.target.scsi.harness import GOOD, TEST_UNIT_READY, Bench, cdb10


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("rate", "length", "at_once", "wait"),
    [
        (Rate(10, None, 1.0), 1 << 20, 10, 0.1),
        (Rate(10, None, 0.01), 512, 1, 0.1),  # one command passes in any case
        (Rate(None, 1 << 20, 2.0), 1 << 20, 2, 1 / (1 << 20)),
        (Rate(None, 1000, 1.0), 5000, 1, 4.001),  # larger than the burst: it passes, and the next one waits for longer
        (Rate(100, 4096, 1.0), 4096, 1, 1 / 4096),
    ],
)
def test_burst_passes_at_once_and_the_next_command_waits(rate: Rate, length: int, at_once: int, wait: float) -> None:
    clock = Clock()
    bucket, passed = Bucket(rate, clock), 0
    while bucket.wait(clock.now) <= 0:
        bucket.take(length, clock.now)
        passed += 1
    assert passed == at_once
    assert bucket.wait(clock.now) == pytest.approx(wait)
    clock.now += bucket.wait(clock.now) + 1e-6
    assert bucket.wait(clock.now) <= 0


@given(st.integers(1, 500), st.lists(st.tuples(st.floats(0, 2), st.integers(0, 4096)), max_size=60))
def test_no_more_pass_than_rate_and_burst_allow(iops: int, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket, began, passed = Bucket(Rate(iops, None, 1.0), clock), clock.now, 0
    for pause, length in steps:
        clock.now += pause
        if bucket.wait(clock.now) <= 0:
            bucket.take(length, clock.now)
            passed += 1
    assert passed <= iops * (clock.now - began) + iops + 1e-6


def test_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    clock = Clock()
    bucket = Bucket(Rate(1, None, 1.0), clock)
    bucket.take(0, clock.now)
    assert bucket.wait(clock.now - 500) == pytest.approx(1.0)
    assert bucket.wait(clock.now + 1) <= 0


def test_only_commands_that_move_blocks_count(primary: Bench) -> None:
    clock = Clock()
    primary.unit.limit(Bucket(Rate(2, None, 1.0), clock))
    read = cdb10(0x28, 0, 1)
    for _ in range(5):
        assert primary.run(TEST_UNIT_READY).status == GOOD
    assert primary.initiator.run(read, nowait=True).status == GOOD
    assert primary.initiator.run(cdb10(0x2A, 0, 1), bytes(512), nowait=True).status == GOOD
    with pytest.raises(WouldBlock):
        primary.initiator.run(read, nowait=True)
    assert primary.initiator.run(TEST_UNIT_READY, nowait=True).status == GOOD
    clock.now += 0.5
    assert primary.initiator.run(read, nowait=True).status == GOOD
    primary.unit.limit(None)
    for _ in range(5):
        assert primary.initiator.run(read, nowait=True).status == GOOD


def test_command_that_waits_for_the_disk_is_charged_once(primary: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    primary.unit.limit(Bucket(Rate(2, None, 1.0), clock))
    task = primary.initiator.task(cdb10(0x28, 0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(primary.device, "read_now", lambda *_: False)
        for _ in range(3):
            with pytest.raises(WouldBlock):
                primary.initiator.nexus.execute(task, nowait=True)
    assert primary.initiator.nexus.gate_of(task) is None  # it has its tokens
    primary.initiator.nexus.execute(task, nowait=False)
    assert primary.initiator.run(cdb10(0x28, 0, 1), nowait=True).status == GOOD
    assert primary.initiator.nexus.gate_of(task) is not None
    with pytest.raises(WouldBlock):
        primary.initiator.nexus.execute(task, nowait=True)


def test_initiator_has_one_limit_on_all_its_sessions(primary: Bench) -> None:
    clock = Clock()
    second, other = primary.login("iqn.2026-11.x:one"), primary.login("iqn.2026-11.x:other")
    bucket = Bucket(Rate(2, None, 1.0), clock)
    for session in (primary.initiator, second):
        session.nexus.limit(bucket)
    read = cdb10(0x28, 0, 1)
    for session in (primary.initiator, second, other, other):
        session.run(TEST_UNIT_READY)
    assert primary.initiator.run(read, nowait=True).status == GOOD
    assert second.run(read, nowait=True).status == GOOD
    for session in (primary.initiator, second):
        with pytest.raises(WouldBlock):
            session.run(read, nowait=True)
    for _ in range(5):
        assert other.run(read, nowait=True).status == GOOD
