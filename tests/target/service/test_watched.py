# SPDX-License-Identifier: Apache-2.0
"""The metrics for what an administrator waits for: the next scheduled snapshot, the end of an alert and of a rollback."""

from __future__ import annotations

from lun_backends import write_once
from target.control import metrics
from target.service.service import Service
from tests.target.service.conftest import Serve
from tests.target.service.scheduling import HOUR, Clock, look, scheduler_of

KEYS = "size: 1MiB, schedule: hourly, keep: {hourly: 3}"
TWO = f"  - {{name: vol0, lun: 0, {KEYS}}}\n  - {{name: vol1, lun: 1, size: 1MiB}}\n"


def samples(service: Service, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by their labels."""
    (family,) = (family for family in metrics.Collector(service).collect() if family.name == name)
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_age_is_that_of_the_newest_scheduled_snapshot(serve: Serve, clock: Clock) -> None:
    service = serve(TWO)
    name, scheduler = "wolun_volume_scheduled_age_seconds", scheduler_of(service, clock)
    assert samples(service, name) == {}
    look(scheduler)
    clock.now += HOUR
    look(scheduler)
    clock.now += HOUR / 2
    service.snapshots.create_snapshot("vol0", "mine")
    service.snapshots.create_snapshot("vol1", "mine")
    assert samples(service, name) == {("vol0",): 1800}
    newest = service.inventory.volume("vol0").snapshots[1].write_once
    assert isinstance(newest, write_once.WriteOnce)
    newest.invalidate("as if a copy had failed")
    assert samples(service, name) == {("vol0",): 1800 + 3600}


def test_each_alert_is_there_once_while_it_lasts(serve: Serve) -> None:
    serve(TWO)
    service = serve("  - {name: vol0, lun: 0, size: 1MiB}\n", access="")
    assert samples(service, "wolun_alert") == {
        ("nobody-may-log-in", "iqn.2026-11.io.wolun:t"): 1,
        ("volume-left-behind", "vol1"): 1,
    }
    assert samples(serve(TWO), "wolun_alert") == {}


def test_rollback_is_unfinished_until_it_ends(service: Service) -> None:
    name = "wolun_volume_rollback_unfinished"
    service.snapshots.create_snapshot("vol0", "a")
    owner = service.inventory.volume("vol0")
    owner.begin_rollback("a")
    assert samples(service, name) == {("vol0",): 1, ("vol1",): 0}
    owner.continue_rollback()
    assert samples(service, name) == {("vol0",): 0, ("vol1",): 0}
