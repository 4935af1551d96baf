# SPDX-License-Identifier: Apache-2.0
"""A nexus: addressing, tasks, task management, the preparing of writes, and LUNs without a unit."""

from __future__ import annotations

import threading

import pytest

from lun_backends import block_device
from target.scsi.scsi_target import ScsiTarget
from target.scsi.task import Status, Task
from tests.memory_device import MemoryDevice
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    PATIENCE,
    TARGET_NAME,
    TEST_UNIT_READY,
    WELL_KNOWN,
    Bench,
    Initiator,
    allocate,
    attention_of,
    cdb10,
    cdb16,
    compare_and_write_cdb,
    inquiry_cdb,
    make_unit,
    report_luns_cdb,
)


def test_both_addressing_methods_reach_a_unit(primary: Bench) -> None:
    primary.target.add_lun(300, make_unit())
    assert primary.run(TEST_UNIT_READY, lun=0x4000 << 48).key == 0x6  # the LUNs changed
    assert primary.run(TEST_UNIT_READY, lun=0x0000 << 48).status == GOOD
    assert primary.run(TEST_UNIT_READY, lun=0x4000 << 48).status == GOOD
    assert primary.run(TEST_UNIT_READY, lun=(0x4000 | 300) << 48).status == GOOD
    assert primary.run(TEST_UNIT_READY, lun=300 << 48).status == GOOD  # as libiscsi sends it
    for wrong in (301 << 48, 1 << 48, 1, 0x0100 << 48, 0x8000 << 48, 0xFFFF << 48):
        assert primary.run(TEST_UNIT_READY, lun=wrong).asc == 0x2500


def test_report_luns_clears_the_attention_about_luns(primary: Bench) -> None:
    second = primary.login("iqn.2026-11.x:two")
    primary.target.add_lun(5, make_unit())
    primary.target.add_lun(6, make_unit())
    primary.unit.attention(0x2A, 0x09)
    assert primary.run(report_luns_cdb(), lun=6 << 48).status == GOOD
    assert attention_of(primary.initiator) == 0x2A09
    assert attention_of(primary.initiator) == 0
    assert attention_of(primary.initiator, 5) == 0
    assert attention_of(second, 5) == 0x3F0E
    assert attention_of(second, 0) == 0x3F0E
    assert attention_of(second, 0) == 0x2A09  # 3Fh/0Eh was raised twice and reported once


def test_inquiry_to_a_lun_without_a_unit(primary: Bench) -> None:
    data = primary.run(inquiry_cdb(), lun=9 << 48).data
    assert (data[0], len(data)) == (0x7F, 96)
    assert primary.run(inquiry_cdb(0x00), lun=9 << 48).asc == 0x2400


def test_request_sense_to_a_lun_without_a_unit(primary: Bench) -> None:
    result = primary.run(bytes([0x03, 0, 0, 0, 252, 0]), lun=9 << 48)
    assert (result.status, result.data[2], result.data[12:14]) == (GOOD, 0x5, b"\x25\x00")


def test_other_commands_to_a_lun_without_a_unit_are_refused(primary: Bench) -> None:
    for cdb in (TEST_UNIT_READY, cdb10(0x2A, 0, 1), report_luns_cdb(), b"\xc0"):
        result = primary.run(cdb, b"x" * 512, lun=9 << 48)
        assert (result.status, result.key, result.asc) == (CHECK, 0x5, 0x2500)
    task = Task(allocate)
    task.lun = 9 << 48
    primary.initiator.nexus.execute(task, nowait=True)
    assert task.status == CHECK


def test_report_luns_to_a_lun_0_that_does_not_exist() -> None:
    target = ScsiTarget(TARGET_NAME)
    initiator = Initiator(target.open_nexus("iqn.2026-11.x:one"))
    assert initiator.run(report_luns_cdb()).data == bytes(8)
    assert initiator.run(report_luns_cdb(), lun=0x4000 << 48).data == bytes(8)
    assert initiator.run(inquiry_cdb()).data[0] == 0x7F


def test_the_well_known_lun_answers_its_commands(primary: Bench) -> None:
    assert primary.run(report_luns_cdb(), lun=WELL_KNOWN).data == (8).to_bytes(4) + bytes(12)
    assert primary.run(inquiry_cdb(), lun=WELL_KNOWN).data[0] == 0x1E
    assert primary.run(TEST_UNIT_READY, lun=WELL_KNOWN).status == GOOD
    assert primary.run(bytes([0x03, 0, 0, 0, 252, 0]), lun=WELL_KNOWN).data[2] == 0
    assert primary.run(cdb10(0x28, 0, 1), lun=WELL_KNOWN).asc == 0x2000


def test_a_task_that_found_the_unit_before_its_removal_is_refused(primary: Bench) -> None:
    """The removal falls between the look at the LUNs and the entry into `running`."""
    itl = primary.initiator.nexus._itls[0]
    primary.target.remove_lun(0)
    primary.initiator.nexus._itls[0] = itl
    assert primary.run(cdb10(0x2A, 0, 1), b"x" * 512).asc == 0x2500
    assert not primary.device.calls


def test_sessions_of_one_initiator_are_different_nexuses(primary: Bench) -> None:
    one, two = (Initiator(primary.target.open_nexus("iqn.2026-11.x:same", tag=tag)) for tag in ("a", "b"))
    primary.unit.attention(0x2A, 0x09)
    assert attention_of(one) == 0x2A09
    assert attention_of(two) == 0x2A09
    assert repr(two.nexus) == "Nexus('iqn.2026-11.x:same', tag='b')"


def test_a_warm_reset_raises_an_attention_on_every_unit(primary: Bench) -> None:
    primary.target.add_lun(1, make_unit())
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
    second = primary.login("iqn.2026-11.x:two")
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
    primary.target.add_lun(1, make_unit(other))
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


def test_prepare_skips_writes_that_will_be_refused(primary: Bench, view: Bench) -> None:
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


def test_prepare_skips_commands_that_the_unit_does_not_have(write_once: Bench) -> None:
    tasks = [
        write_once.initiator.task(cdb) for cdb in (cdb10(0x41, 1, 2), compare_and_write_cdb(1, 2), cdb10(0x2A, 1, 2))
    ]
    write_once.initiator.nexus.prepare(tasks)
    assert write_once.device.prepared == [[(512, 1024)]]


def test_prepare_without_waiting_reports_whether_it_did_anything(primary: Bench) -> None:
    tasks = [primary.initiator.task(cdb10(0x2A, 1, 2))]
    assert primary.initiator.nexus.prepare(tasks, nowait=True)
    assert not primary.initiator.nexus.prepare([], nowait=True)
    assert primary.device.prepared == [[(512, 1024)]]
    primary.device.blocking = True
    assert not primary.initiator.nexus.prepare(tasks, nowait=True)
    assert primary.initiator.nexus.prepare(tasks)


def test_a_nexus_knows_the_ports_that_are_logged_in(primary: Bench) -> None:
    one, two, other = (
        primary.login("iqn.2026-11.x:x", "01"),
        primary.login("iqn.2026-11.x:x", "02"),
        primary.login("iqn.2026-11.x:y", "01"),
    )
    assert set(other.nexus.ports_of("iqn.2026-11.x:x")) == {one.nexus.port, two.nexus.port}
    primary.target.close_nexus(one.nexus)
    assert other.nexus.ports_of("iqn.2026-11.x:x") == [two.nexus.port]
    assert other.nexus.ports_of("iqn.2026-11.x:z") == []
    assert other.nexus.target_name == TARGET_NAME


def test_a_new_session_raises_an_attention_on_each_unit(primary: Bench) -> None:
    primary.target.add_lun(1, make_unit())
    primary.run(report_luns_cdb())
    primary.initiator.nexus.begins()
    assert [attention_of(primary.initiator, lun) for lun in (0, 1, 0)] == [0x2900, 0x2900, 0]


def test_commands_cleared_before_they_reached_the_unit_raise_an_attention(primary: Bench) -> None:
    second = primary.login("iqn.2026-11.x:two")
    second.nexus.commands_cleared(0)
    second.nexus.commands_cleared(9 << 48)  # no such unit: nothing happens
    assert attention_of(second) == 0x2F00
    assert attention_of(primary.initiator) == 0


def test_clear_task_set_raises_an_attention_for_the_other_owners_alone(primary: Bench) -> None:
    """The attention goes to the unit whose tasks were cleared; neither its sender nor a session without tasks gets one."""
    primary.target.add_lun(1, make_unit())
    owner, idle = primary.login("iqn.2026-11.x:owner"), primary.login("iqn.2026-11.x:idle")
    primary.run(report_luns_cdb())
    entered, go = threading.Barrier(3), threading.Event()

    def before(method: str, offset: int, length: int) -> None:
        entered.wait(PATIENCE)
        assert go.wait(PATIENCE)

    primary.device.before = before
    readers = [
        threading.Thread(target=primary.run, args=(cdb10(0x28, 0, 1),)),
        threading.Thread(target=owner.run, args=(cdb10(0x28, 0, 1),)),
    ]
    for reader in readers:
        reader.start()
    entered.wait(PATIENCE)
    assert primary.initiator.nexus.clear_task_set(0)
    go.set()
    for reader in readers:
        reader.join()
    assert [attention_of(owner, lun) for lun in (0, 1)] == [0x2F00, 0]
    assert attention_of(idle) == 0
    assert attention_of(primary.initiator) == 0


def test_a_write_that_another_reserved_is_refused_before_its_data(primary: Bench) -> None:
    other = primary.login("iqn.2026-11.x:two")
    assert other.run(b"\x16" + bytes(5)).status == GOOD
    task = primary.initiator.task(cdb10(0x2A, 0, 1))
    assert primary.initiator.nexus.refuses(task)
    assert task.status == Status.RESERVATION_CONFLICT
    assert not other.nexus.refuses(other.task(cdb10(0x2A, 0, 1)))


def test_copies_and_zeroing_take_long_and_nothing_else(primary: Bench) -> None:
    def long(cdb: bytes, lun: int = 0) -> bool:
        return primary.initiator.nexus.takes_long(primary.initiator.task(cdb, lun=lun << 48))

    assert [long(bytes([opcode]) + bytes(15)) for opcode in (0x83, 0x41, 0x93, 0x42)] == [True] * 4
    assert [long(bytes([opcode]) + bytes(15)) for opcode in (0x28, 0x2A, 0x8A, 0x35, 0x12, 0xC1)] == [False] * 6
    assert not long(b"\x83" + bytes(15), lun=9)
