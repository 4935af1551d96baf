# SPDX-License-Identifier: Apache-2.0
"""A logical unit: unit attentions, its size, draining, resets and how tasks end."""

from __future__ import annotations

import threading

import pytest

from lun_backends import block_device
from target.scsi.task import Status
from tests.target.scsi.harness import (
    CHECK,
    GOOD,
    PATIENCE,
    TEST_UNIT_READY,
    Bench,
    Result,
    attention_of,
    cdb10,
    inquiry_cdb,
    report_luns_cdb,
    unmap_cdb,
    unmap_list,
)


def test_attentions_are_reported_in_order_and_once(primary: Bench) -> None:
    for asc, ascq in ((0x2A, 0x09), (0x38, 0x07), (0x2A, 0x09)):
        primary.unit.attention(asc, ascq)
    assert [attention_of(primary.initiator) for _ in range(3)] == [0x2A09, 0x3807, 0]


def test_an_attention_can_exclude_the_nexus_that_caused_it(primary: Bench) -> None:
    second = primary.login("iqn.2026-11.x:two")
    primary.unit.attention(0x2A, 0x01, excluding=second.nexus)
    assert attention_of(second) == 0
    assert attention_of(primary.initiator) == 0x2A01


def test_a_pending_attention_refuses_every_other_command(primary: Bench) -> None:
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


def test_a_grown_unit_raises_an_attention(primary: Bench) -> None:
    device = primary.device
    blocks = device.size // 512
    assert primary.run(cdb10(0x28, blocks, 1)).asc == 0x2100
    device.size *= 2
    device.data += bytes(blocks * 512)
    device.written += bytes(blocks)
    primary.unit.resized()
    assert attention_of(primary.initiator) == 0x2A09
    assert primary.run(cdb10(0x28, blocks, 1)).status == GOOD


def test_a_lun_reset_raises_an_attention_for_every_nexus(primary: Bench) -> None:
    second = primary.login("iqn.2026-11.x:two")
    assert not second.nexus.lun_reset(7 << 48)
    assert second.nexus.lun_reset(0)
    assert attention_of(primary.initiator) == 0x2903
    assert attention_of(second) == 0x2903


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


def test_reservation_conflict_of_a_backend_is_a_status(primary: Bench) -> None:
    primary.device.inject("writev", block_device.ReservationConflict())
    assert primary.run(cdb10(0x2A, 0, 1), b"x" * 512) == Result(Status.RESERVATION_CONFLICT, b"", b"")


def test_an_unforeseen_error_is_a_hardware_error_and_logged(primary: Bench, caplog: pytest.LogCaptureFixture) -> None:
    primary.device.inject("readv", ZeroDivisionError("a bug"))
    result = primary.run(cdb10(0x28, 0, 1))
    assert (result.status, result.key, result.asc) == (CHECK, 0x4, 0x4400)
    assert "ZeroDivisionError: a bug" in caplog.text
    assert "vol0" in caplog.text


def test_counters(primary: Bench) -> None:
    primary.run(cdb10(0x2A, 0, 2), b"x" * 1024)
    primary.run(cdb10(0x28, 0, 3))
    primary.run(cdb10(0x28, primary.unit.blocks, 1))
    counters = primary.unit.counters
    assert (counters.commands, counters.errors) == (3, 1)
    assert (counters.bytes_read, counters.bytes_written) == (3 * 512, 2 * 512)
