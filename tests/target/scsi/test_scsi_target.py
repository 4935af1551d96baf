# SPDX-License-Identifier: Apache-2.0
"""The target: adding and removing LUNs, and opening and closing nexuses."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from target.scsi.scsi_target import MAX_LUN, ScsiTarget
from target.scsi.task import Task
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import (
    GOOD,
    PATIENCE,
    TEST_UNIT_READY,
    Bench,
    Result,
    attention_of,
    cdb10,
    make_unit,
    report_luns_cdb,
)


def test_a_lun_that_is_taken_or_out_of_range_is_refused(primary: Bench) -> None:
    with pytest.raises(ValueError, match="LUN 0 is in use"):
        primary.target.add_lun(0, make_unit())
    for number in (-1, MAX_LUN + 1):
        with pytest.raises(ValueError, match="is not between 0 and 16383"):
            primary.target.add_lun(number, make_unit())
    with pytest.raises(KeyError):
        primary.target.remove_lun(1)


def test_a_new_lun_raises_an_attention_and_calls_listeners(primary: Bench) -> None:
    second, changes = primary.login("iqn.2026-11.x:two"), []
    primary.target.on_change(lambda: changes.append(sorted(primary.target.luns)))
    primary.target.add_lun(5, make_unit())
    assert changes == [[0, 5]]
    for initiator in (primary.initiator, second):
        assert attention_of(initiator) == 0x3F0E
        assert attention_of(initiator) == 0
        assert attention_of(initiator, 5) == 0  # it was not there before


def test_a_removed_lun_raises_an_attention(primary: Bench) -> None:
    primary.target.add_lun(5, make_unit())
    primary.run(report_luns_cdb())
    primary.target.remove_lun(5)
    assert list(primary.target.luns) == [0]
    assert primary.run(TEST_UNIT_READY, lun=5 << 48).asc == 0x2500
    assert attention_of(primary.initiator) == 0x3F0E
    assert attention_of(primary.initiator) == 0
    primary.target.add_lun(5, make_unit())  # the number is free again


def test_remove_lun_waits_for_running_tasks_and_admits_no_new_ones(primary: Bench) -> None:
    entered, go = threading.Event(), threading.Event()
    removed = threading.Event()

    def before(method: str, offset: int, length: int) -> None:
        entered.set()
        assert go.wait(PATIENCE)

    primary.device.before = before
    results: list[Result] = []
    writer = threading.Thread(target=lambda: results.append(primary.run(cdb10(0x2A, 0, 1), b"x" * 512)))
    writer.start()
    assert entered.wait(PATIENCE)

    def remove() -> None:
        primary.target.remove_lun(0)
        removed.set()

    remover = threading.Thread(target=remove)
    remover.start()
    while 0 in primary.target.luns or primary.initiator.nexus.units:
        pass
    assert primary.run(cdb10(0x2A, 8, 1), b"x" * 512).asc == 0x2500
    assert not removed.wait(0.05)
    go.set()
    assert removed.wait(PATIENCE)
    writer.join()
    remover.join()
    assert [result.status for result in results] == [GOOD]
    assert not primary.unit.running


def test_a_removed_unit_is_never_touched_under_load(primary: Bench) -> None:
    """Three threads use a LUN that comes and goes; after `remove_lun` returned, no thread touches its device."""
    stop = threading.Event()
    wrong: list[object] = []

    def use() -> None:
        initiator = primary.login(f"iqn.{threading.get_ident()}")
        while not stop.is_set():
            result = initiator.run(cdb10(0x28, 0, 1), lun=1 << 48)
            if not (result.status == GOOD or result.asc in (0x2500, 0x3F0E)):
                wrong.append(result)
        primary.target.close_nexus(initiator.nexus)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        device = MemoryDevice()
        primary.target.add_lun(1, make_unit(device))
        primary.target.remove_lun(1)
        device.close()  # from here on a read would end with NOT READY
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_a_nexus_detaches_it_and_aborts_its_tasks(primary: Bench) -> None:
    second = primary.login("iqn.2026-11.x:two")
    tasks: list[Task] = []

    def before(method: str, offset: int, length: int) -> None:
        tasks.extend(primary.unit.running)
        primary.target.close_nexus(second.nexus)

    primary.device.before = before
    assert second.run(cdb10(0x28, 0, 1)).status == GOOD
    assert [task.aborted for task in tasks] == [True]
    assert primary.target.nexuses == (primary.initiator.nexus,)
    assert second.run(TEST_UNIT_READY).asc == 0x2500
    primary.target.close_nexus(second.nexus)
    primary.unit.attention(0x2A, 0x09)  # the closed nexus left no trace in the unit
    assert attention_of(primary.initiator) == 0x2A09


def test_a_removed_unit_is_freed_at_once(primary: Bench) -> None:
    """The garbage collector is off, because a daemon runs it seldom: removed units must not pile up."""
    gc.collect()
    gc.disable()
    try:
        unit = make_unit()
        gone = weakref.ref(unit)
        primary.target.add_lun(5, unit)
        assert primary.run(TEST_UNIT_READY, lun=5 << 48).status == GOOD
        primary.target.remove_lun(5)
        del unit
        assert gone() is None
    finally:
        gc.enable()


def test_listeners_hear_once_that_an_expected_volume_has_arrived() -> None:
    target = ScsiTarget("iqn.2026-11.io.wolun:t")
    heard: list[frozenset[str]] = []
    target.on_change(lambda: heard.append(target.expected))
    target.expect("archive")
    assert target.expected == {"archive"}
    target.arrived("other")
    target.arrived("archive")
    target.arrived("archive")
    assert heard == [frozenset()]
