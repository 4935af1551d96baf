# SPDX-License-Identifier: Apache-2.0
"""Histograms of durations: which commands they count, in which bucket, and how many each stands for."""

from __future__ import annotations

import pytest

from lun_backends import block_device
from target.scsi import latency, nexus, plain
from tests.target.scsi.harness import GOOD, Bench, cdb10


class Clock:
    """A clock that goes on by a step with each look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(0.001)
    monkeypatch.setattr(nexus, "perf_counter", clock)
    monkeypatch.setattr(plain, "perf_counter", clock)
    return clock


def counts(bench: Bench, kind: str) -> list[int]:
    return [count for count in bench.unit.latencies.by_kind[kind].counts if count]


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [(0, 16e-6), (15.9e-6, 16e-6), (16.1e-6, 32e-6), (0.001, 0.001024), (1.5, 2.097152), (15, 16.777216)],
)
def test_duration_is_in_the_first_bucket_whose_bound_it_does_not_reach(seconds: float, bound: float) -> None:
    row = latency.Row()
    row.add(seconds, 3)
    found = [limit for limit, total in row.buckets() if total == 3]
    assert found[0] == pytest.approx(bound)
    assert found[-1] is None
    assert row.microseconds == int(seconds * 1_000_000) * 3


def test_long_durations_are_in_the_last_bucket() -> None:
    row = latency.Row()
    row.add(3600.0, 1)
    assert [total for _, total in row.buckets()] == [0] * (latency.BUCKETS - 1) + [1]


def test_one_of_many_commands_counts_for_all_of_them(primary: Bench, clock: Clock) -> None:
    for number in range(4 * latency.SAMPLE):
        opcode = 0x28 if number // latency.SAMPLE % 2 == 0 else 0x2A
        assert primary.run(cdb10(opcode, 0, 1), bytes(512) if opcode == 0x2A else b"").status == GOOD
    assert counts(primary, "read") == counts(primary, "write") == [2 * latency.SAMPLE]
    assert primary.unit.latencies.by_kind["read"].microseconds == pytest.approx(
        2 * latency.SAMPLE * 1000, abs=2 * latency.SAMPLE
    )


def test_each_command_that_waits_is_measured_from_its_first_try(
    primary: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary.run(bytes(6))  # the next one is not sampled
    task = primary.initiator.task(cdb10(0x28, 0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(primary.device, "read_now", lambda *_: False)
        for _ in range(2):
            with pytest.raises(block_device.WouldBlock):
                primary.initiator.nexus.execute(task, nowait=True)
    clock.now += 3.0
    primary.initiator.nexus.execute(task, nowait=False)
    assert task.status == GOOD
    row = primary.unit.latencies.by_kind["read"]
    assert sum(row.counts) == 1
    assert 3_000_000 <= row.microseconds < 3_100_000
    assert task.began == 0.0
    primary.initiator.nexus.execute(task, nowait=True)  # the same object for the next command
    assert sum(row.counts) == 1
