# SPDX-License-Identifier: Apache-2.0
"""The target: LUNs coming and going, I_T nexuses, unit attentions, task management, and the way a task takes."""

from __future__ import annotations

import gc
import threading
import uuid
import weakref

import pytest

from lun_backends import block_device
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.scsi_target import MAX_LUN, ScsiTarget
from target.scsi.task import Task
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    TARGET_NAME,
    TEST_UNIT_READY,
    Bench,
    Initiator,
    Result,
    allocate,
    cdb10,
    cdb16,
    compare_and_write_cdb,
    inquiry_cdb,
    report_luns_cdb,
    unmap_cdb,
    unmap_list,
)

WELL_KNOWN = 0xC101 << 48
PATIENCE = 30  # seconds until a test that hangs fails


def a_unit(device: MemoryDevice | None = None) -> LogicalUnit:
    return LogicalUnit(
        device or MemoryDevice(), uuid=uuid.uuid4(), kind=UnitKind.PRIMARY, name="a", commands=table.for_unit
    )


def attention_of(initiator: Initiator, lun: int = 0) -> int:
    """The unit attention that TEST UNIT READY meets, 0 if there is none."""
    result = initiator.run(TEST_UNIT_READY, lun=lun << 48)
    if result.status == GOOD:
        return 0
    assert result.key == 0x6
    return result.asc


def test_both_addressing_methods_reach_a_unit(primary: Bench) -> None:
    primary.target.add_lun(300, a_unit())
    assert primary.run(TEST_UNIT_READY, lun=0x4000 << 48).key == 0x6  # the LUNs changed
    assert primary.run(TEST_UNIT_READY, lun=0x0000 << 48).status == GOOD
    assert primary.run(TEST_UNIT_READY, lun=0x4000 << 48).status == GOOD
    assert primary.run(TEST_UNIT_READY, lun=(0x4000 | 300) << 48).status == GOOD
    for wrong in (300 << 48, 1 << 48, 1, 0x0100 << 48, 0x8000 << 48, 0xFFFF << 48):
        assert primary.run(TEST_UNIT_READY, lun=wrong).asc == 0x2500


def test_luns_are_refused_by_number(primary: Bench) -> None:
    with pytest.raises(ValueError, match="LUN 0 is in use"):
        primary.target.add_lun(0, a_unit())
    for number in (-1, MAX_LUN + 1):
        with pytest.raises(ValueError, match="is not between 0 and 16383"):
            primary.target.add_lun(number, a_unit())
    with pytest.raises(KeyError):
        primary.target.remove_lun(1)


def test_a_lun_that_comes_is_told_on_every_nexus_and_to_listeners(primary: Bench) -> None:
    second, changes = primary.login("iqn.two"), []
    primary.target.on_change(lambda: changes.append(sorted(primary.target.luns)))
    primary.target.add_lun(5, a_unit())
    assert changes == [[0, 5]]
    for initiator in (primary.initiator, second):
        assert attention_of(initiator) == 0x3F0E
        assert attention_of(initiator) == 0
        assert attention_of(initiator, 5) == 0  # whoever speaks to it knows


def test_a_lun_that_goes_is_told_too(primary: Bench) -> None:
    primary.target.add_lun(5, a_unit())
    primary.run(report_luns_cdb())
    primary.target.remove_lun(5)
    assert list(primary.target.luns) == [0]
    assert primary.run(TEST_UNIT_READY, lun=5 << 48).asc == 0x2500
    assert attention_of(primary.initiator) == 0x3F0E
    assert attention_of(primary.initiator) == 0
    primary.target.add_lun(5, a_unit())  # the number is free again


def test_report_luns_spares_the_initiator_the_attention(primary: Bench) -> None:
    second = primary.login("iqn.two")
    primary.target.add_lun(5, a_unit())
    primary.target.add_lun(6, a_unit())
    primary.unit.attention(0x2A, 0x09)
    assert primary.run(report_luns_cdb(), lun=6 << 48).status == GOOD
    assert attention_of(primary.initiator) == 0x2A09
    assert attention_of(primary.initiator) == 0
    assert attention_of(primary.initiator, 5) == 0
    assert attention_of(second, 5) == 0x3F0E
    assert attention_of(second, 0) == 0x3F0E
    assert attention_of(second, 0) == 0x2A09  # 3Fh/0Eh was raised twice and told once


def test_attentions_are_told_in_order_and_once(primary: Bench) -> None:
    for asc, ascq in ((0x2A, 0x09), (0x38, 0x07), (0x2A, 0x09)):
        primary.unit.attention(asc, ascq)
    assert [attention_of(primary.initiator) for _ in range(3)] == [0x2A09, 0x3807, 0]


def test_an_attention_may_spare_its_cause(primary: Bench) -> None:
    second = primary.login("iqn.two")
    primary.unit.attention(0x2A, 0x01, excluding=second.nexus)
    assert attention_of(second) == 0
    assert attention_of(primary.initiator) == 0x2A01


def test_a_pending_attention_stops_every_other_command_before_it_does_anything(primary: Bench) -> None:
    for cdb, data in (
        (cdb10(0x2A, 0, 1), b"x" * 512),
        (cdb10(0x28, 0, 1), b""),
        (unmap_cdb(24), unmap_list((0, 1))),
        (b"\xc0", b""),
    ):
        primary.unit.attention(0x2A, 0x09)
        assert primary.run(cdb, data, nowait=True).asc == 0x2A09
    assert not primary.device.calls
    assert primary.unit.counters.errors == 0


def test_some_commands_leave_an_attention_pending(primary: Bench) -> None:
    primary.unit.attention(0x2A, 0x09)
    assert primary.run(inquiry_cdb()).status == GOOD
    assert primary.run(report_luns_cdb()).status == GOOD
    assert attention_of(primary.initiator) == 0x2A09


def test_a_unit_that_grows_is_told(primary: Bench) -> None:
    device = primary.device
    blocks = device.size // 512
    assert primary.run(cdb10(0x28, blocks, 1)).asc == 0x2100
    device.size *= 2
    device.data += bytes(blocks * 512)
    device.written += bytes(blocks)
    primary.unit.resized()
    assert attention_of(primary.initiator) == 0x2A09
    assert primary.run(cdb10(0x28, blocks, 1)).status == GOOD


def test_inquiry_to_a_lun_without_a_unit(primary: Bench) -> None:
    data = primary.run(inquiry_cdb(), lun=9 << 48).data
    assert (data[0], len(data)) == (0x7F, 96)
    assert primary.run(inquiry_cdb(0x00), lun=9 << 48).asc == 0x2400


def test_request_sense_to_a_lun_without_a_unit(primary: Bench) -> None:
    result = primary.run(bytes([0x03, 0, 0, 0, 252, 0]), lun=9 << 48)
    assert (result.status, result.data[2], result.data[12:14]) == (GOOD, 0x5, b"\x25\x00")


def test_anything_else_to_a_lun_without_a_unit(primary: Bench) -> None:
    for cdb in (TEST_UNIT_READY, cdb10(0x2A, 0, 1), report_luns_cdb(), b"\xc0"):
        result = primary.run(cdb, b"x" * 512, lun=9 << 48)
        assert (result.status, result.key, result.asc) == (CHECK, 0x5, 0x2500)
    task = Task(allocate)
    task.lun = 9 << 48
    primary.initiator.nexus.execute(task, nowait=True)
    assert task.status == CHECK


def test_report_luns_to_a_lun_0_that_does_not_exist() -> None:
    target = ScsiTarget(TARGET_NAME)
    initiator = Initiator(target.open_nexus("iqn.one"))
    assert initiator.run(report_luns_cdb()).data == bytes(8)
    assert initiator.run(report_luns_cdb(), lun=0x4000 << 48).data == bytes(8)
    assert initiator.run(inquiry_cdb()).data[0] == 0x7F


def test_the_well_known_lun(primary: Bench) -> None:
    assert primary.run(report_luns_cdb(), lun=WELL_KNOWN).data == (8).to_bytes(4) + bytes(12)
    assert primary.run(inquiry_cdb(), lun=WELL_KNOWN).data[0] == 0x1E
    assert primary.run(TEST_UNIT_READY, lun=WELL_KNOWN).status == GOOD
    assert primary.run(bytes([0x03, 0, 0, 0, 252, 0]), lun=WELL_KNOWN).data[2] == 0
    assert primary.run(cdb10(0x28, 0, 1), lun=WELL_KNOWN).asc == 0x2000


def test_remove_lun_waits_for_running_tasks_and_lets_no_new_ones_in(primary: Bench) -> None:
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


def test_a_task_that_had_found_the_unit_before_it_was_removed_is_refused(primary: Bench) -> None:
    """The moment between the look at the LUNs and the entry into `running`."""
    itl = primary.initiator.nexus._itls[0]
    primary.target.remove_lun(0)
    primary.initiator.nexus._itls[0] = itl
    assert primary.run(cdb10(0x2A, 0, 1), b"x" * 512).asc == 0x2500
    assert not primary.device.calls


def test_add_and_remove_under_load(primary: Bench) -> None:
    """Three threads use a LUN that comes and goes; once `remove_lun` returned its device is never touched."""
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
        primary.target.add_lun(1, a_unit(device))
        primary.target.remove_lun(1)
        device.close()  # from here on a read would end with NOT READY
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_a_nexus_ends_its_reach_and_marks_its_tasks(primary: Bench) -> None:
    second = primary.login("iqn.two")
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
    primary.unit.attention(0x2A, 0x09)  # nobody is left behind in the unit
    assert attention_of(primary.initiator) == 0x2A09


def test_sessions_of_one_initiator_are_different_nexuses(primary: Bench) -> None:
    one, two = (Initiator(primary.target.open_nexus("iqn.same", tag=tag)) for tag in ("a", "b"))
    primary.unit.attention(0x2A, 0x09)
    assert attention_of(one) == 0x2A09
    assert attention_of(two) == 0x2A09
    assert repr(two.nexus) == "Nexus('iqn.same', tag='b')"


def test_a_lun_reset_is_told_to_everyone(primary: Bench) -> None:
    second = primary.login("iqn.two")
    assert not second.nexus.lun_reset(7 << 48)
    assert second.nexus.lun_reset(0)
    assert attention_of(primary.initiator) == 0x2903
    assert attention_of(second) == 0x2903


def test_a_warm_reset_is_told_on_every_unit(primary: Bench) -> None:
    primary.target.add_lun(1, a_unit())
    primary.run(report_luns_cdb())
    primary.initiator.nexus.target_warm_reset()
    assert attention_of(primary.initiator, 0) == 0x2903
    assert attention_of(primary.initiator, 1) == 0x2903


@pytest.mark.parametrize(
    ("function", "own", "others", "attention"),
    [("abort_task_set", True, False, 0), ("clear_task_set", True, True, 0x2F00), ("lun_reset", True, True, 0x2903)],
)
def test_task_management_marks_running_tasks(
    primary: Bench, function: str, own: bool, others: bool, attention: int
) -> None:
    second = primary.login("iqn.two")
    mine, theirs = primary.initiator.task(cdb10(0x28, 0, 1)), second.task(cdb10(0x28, 0, 1))
    entered, go = threading.Barrier(3), threading.Event()

    def before(method: str, offset: int, length: int) -> None:
        entered.wait(PATIENCE)
        assert go.wait(PATIENCE)

    primary.device.before = before
    threads = [
        threading.Thread(target=lambda: primary.initiator.nexus.execute(mine, nowait=False)),
        threading.Thread(target=lambda: second.nexus.execute(theirs, nowait=False)),
    ]
    for thread in threads:
        thread.start()
    entered.wait(PATIENCE)
    assert getattr(primary.initiator.nexus, function)(0)
    assert not getattr(primary.initiator.nexus, function)(9 << 48)
    assert (mine.aborted, theirs.aborted) == (own, others)
    go.set()
    for thread in threads:
        thread.join()
    assert attention_of(second) == attention


def test_prepare_groups_writes_by_unit(primary: Bench) -> None:
    other = MemoryDevice(block_size=4096)
    primary.target.add_lun(1, a_unit(other))
    primary.run(report_luns_cdb())
    task = primary.initiator.task
    primary.initiator.nexus.prepare(
        [
            task(cdb10(0x2A, 1, 2)),
            task(cdb10(0x28, 9, 9)),
            task(cdb16(0x8A, 3, 1), lun=1 << 48),
            task(cdb16(0x8E, 100, 4)),
            task(compare_and_write_cdb(7, 3)),
            task(cdb10(0x2A, 2048, 1)),
            task(cdb10(0x2A, 5, 0)),
            task(cdb10(0x2A, 5, 1), lun=9 << 48),
            task(TEST_UNIT_READY),
        ]
    )
    assert primary.device.prepared == [[(512, 1024), (100 * 512, 2048), (7 * 512, 1536)]]
    assert other.prepared == [[(3 * 4096, 4096)]]


def test_prepare_does_nothing_for_writes_that_will_be_refused(primary: Bench, view: Bench) -> None:
    view.initiator.nexus.prepare([view.initiator.task(cdb10(0x2A, 1, 2))])
    assert not view.device.prepared
    primary.unit.attention(0x2A, 0x09)
    primary.initiator.nexus.prepare([primary.initiator.task(cdb10(0x2A, 1, 2))])
    assert not primary.device.prepared


def test_would_block_leaves_nothing_running(primary: Bench) -> None:
    with pytest.raises(block_device.WouldBlock):
        primary.run(cdb10(0x35, 0, 0), nowait=True)
    assert not primary.unit.running
    primary.target.remove_lun(0)


def test_drain_of_some_tasks_does_not_wait_for_others(primary: Bench) -> None:
    entered, go = threading.Event(), threading.Event()

    def before(method: str, offset: int, length: int) -> None:
        entered.set()
        assert go.wait(PATIENCE)

    primary.device.before = before
    reader = threading.Thread(target=lambda: primary.run(cdb10(0x28, 0, 1)))
    reader.start()
    assert entered.wait(PATIENCE)
    primary.unit.drain([primary.initiator.task(TEST_UNIT_READY)])
    go.set()
    reader.join()


def test_a_unit_that_was_removed_is_gone_at_once(primary: Bench) -> None:
    """Without the garbage collector, which a daemon runs seldom: units that come and go must not pile up."""
    gc.collect()
    gc.disable()
    try:
        unit = a_unit()
        gone = weakref.ref(unit)
        primary.target.add_lun(5, unit)
        assert primary.run(TEST_UNIT_READY, lun=5 << 48).status == GOOD
        primary.target.remove_lun(5)
        del unit
        assert gone() is None
    finally:
        gc.enable()
