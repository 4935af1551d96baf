# SPDX-License-Identifier: Apache-2.0
"""Rates are differences of counters, and zero where there is nothing to compare."""

from __future__ import annotations

import threading
import types
from collections.abc import Mapping

import pytest

from target.service import rates


class Counters:
    """Counters that a test advances, and a clock beside them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.counts: dict[str, rates.Counts] = {"vol0": (1000, 100, 10)}
        self.read = threading.Semaphore(0)
        monkeypatch.setattr(rates, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(rates, "PERIOD_SECONDS", 3600.0)

    def __call__(self) -> Mapping[str, rates.Counts]:
        self.read.release()
        return dict(self.counts)


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    return Counters(monkeypatch)


def test_rate_is_measured_from_the_oldest_sample(counters: Counters) -> None:
    measured = rates.Rates(counters)
    for moment, read in ((100.0, 1000), (101.0, 9000)):
        measured._samples.append((moment, {"vol0": (read, 0, 0)}))
    counters.now = 102.0
    counters.counts["vol0"] = (9000, 0, 0)
    assert measured.of("vol0") == (4000.0, 0.0, 0.0)


def test_rate_is_the_difference_per_second(counters: Counters) -> None:
    measured = rates.Rates(counters)
    measured.start()
    assert counters.read.acquire(timeout=30)
    while not measured._samples:  # it is appended right after the counters were read
        threading.Event().wait(0.001)
    counters.now += 2.0
    counters.counts["vol0"] = (5000, 300, 14)
    assert measured.of("vol0") == (2000.0, 100.0, 2.0)
    counters.counts["new"] = (9, 9, 9)
    assert measured.of("new") == (0.0, 0.0, 0.0)  # there is no earlier sample of it
    del counters.counts["vol0"]
    assert measured.of("vol0") == (0.0, 0.0, 0.0)
    measured.close()


def test_without_a_sample_all_rates_are_zero(counters: Counters) -> None:
    measured = rates.Rates(counters)
    assert measured.of("vol0") == (0.0, 0.0, 0.0)
    measured.close()  # it was never started
