# SPDX-License-Identifier: Apache-2.0
"""The write-once LUN by raw SCSI from libiscsi: the commands it takes and refuses, and its sense data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, libiscsi

pytestmark = pytest.mark.interop

BLOCK = 512
GOOD, CHECK_CONDITION = 0x00, 0x02
UNIT_ATTENTION, DATA_PROTECT, BLANK_CHECK, ILLEGAL_REQUEST = 0x06, 0x07, 0x08, 0x05
INVENTORY_CHANGED = (0x3F, 0x0E)


def read10(lba: int, blocks: int) -> bytes:
    return b"\x28\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write10(lba: int, blocks: int) -> bytes:
    return b"\x2a\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write16(lba: int, blocks: int) -> bytes:
    return b"\x8a\0" + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + b"\0\0"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 16MiB, map_write_once: read-write}\n") as running:
        yield running


@pytest.fixture
def lun(served: daemon.Daemon) -> int:
    return int(served.json("snapshot", "create", "vol0", "s")["write_once_lun"])


@pytest.fixture
def session(served: daemon.Daemon, lun: int) -> Iterator[libiscsi.Session]:
    with served.session() as logged_in:
        for number in (0, lun):
            logged_in.settle(number)
        yield logged_in


def refused(answer: libiscsi.Answer, lba: int) -> None:
    assert (answer.status, answer.key) == (CHECK_CONDITION, BLANK_CHECK)
    assert answer.information == lba


def test_a_blank_block_is_refused_until_written_and_then_never_written_again(
    session: libiscsi.Session, lun: int
) -> None:
    refused(session.command(lun, read10(100, 1), read=BLOCK), 100)
    first, second = os.urandom(BLOCK), os.urandom(BLOCK)
    assert session.command(lun, write10(100, 1), out=first).status == GOOD
    refused(session.command(lun, write10(100, 1), out=second), 100)
    assert session.command(lun, read10(100, 1), read=BLOCK).data == first


def test_mixed_ranges_name_the_first_offender_and_store_nothing(session: libiscsi.Session, lun: int) -> None:
    data = os.urandom(BLOCK)
    for lba in (205, 210):
        assert session.command(lun, write10(lba, 1), out=data).status == GOOD
    refused(session.command(lun, write10(200, 20), out=os.urandom(20 * BLOCK)), 205)
    refused(session.command(lun, write16(206, 10), out=os.urandom(10 * BLOCK)), 210)
    for lba in (*range(200, 205), *range(206, 210), *range(211, 220)):
        refused(session.command(lun, read10(lba, 1), read=BLOCK), lba)
    refused(session.command(lun, read10(205, 3), read=3 * BLOCK), 206)
    # These ranges cross the border of two chunks (64 KiB are 128 blocks).
    assert session.command(lun, write10(250, 12), out=os.urandom(12 * BLOCK)).status == GOOD
    refused(session.command(lun, write10(120, 260), out=os.urandom(260 * BLOCK)), 205)
    refused(session.command(lun, read10(120, 20), read=20 * BLOCK), 120)


def test_preserved_blocks_can_be_read_but_not_written(session: libiscsi.Session, lun: int) -> None:
    old = os.urandom(128 * BLOCK)
    assert session.command(0, write10(1024, 128), out=old).status == GOOD
    # The snapshot was taken before the write, so the preserved blocks hold zeroes, as the volume did then.
    assert session.command(lun, read10(1024, 128), read=128 * BLOCK).data == bytes(128 * BLOCK)
    refused(session.command(lun, write10(1024, 1), out=old[:BLOCK]), 1024)
    refused(session.command(lun, read10(1024, 129), read=129 * BLOCK), 1152)


def test_lba_status_reports_the_changed_blocks(session: libiscsi.Session, lun: int) -> None:
    assert session.command(0, write10(1024, 1), out=bytes(BLOCK)).status == GOOD
    status = b"\x9e\x12" + (0).to_bytes(8, "big") + (256).to_bytes(4, "big") + b"\0\0"
    answer = session.command(lun, status, read=256)
    assert answer.status == GOOD
    length = int.from_bytes(answer.data[:4], "big") + 4
    extents = [
        (
            int.from_bytes(answer.data[at : at + 8], "big"),
            int.from_bytes(answer.data[at + 8 : at + 12], "big"),
            answer.data[at + 12] & 0xF,
        )
        for at in range(8, min(length, len(answer.data)), 16)
    ]
    mapped = [(lba, blocks) for lba, blocks, state in extents if state == 0]
    assert mapped == [(1024, 8)], extents  # a grain


def test_deallocation_is_refused_on_the_write_once_lun(session: libiscsi.Session, lun: int) -> None:
    unmap = b"\x42" + bytes(6) + (24).to_bytes(2, "big") + b"\0"
    parameters = (
        (22).to_bytes(2, "big") + (16).to_bytes(2, "big") + bytes(4) + bytes(8) + (8).to_bytes(4, "big") + bytes(4)
    )
    for cdb, out in (
        (unmap, parameters),
        (b"\x41\x08" + bytes(5) + (8).to_bytes(2, "big") + b"\0", bytes(BLOCK)),
        (b"\x93\x00" + bytes(8) + (8).to_bytes(4, "big") + b"\0\0", bytes(BLOCK)),
    ):
        answer = session.command(lun, cdb, out=out)
        assert (answer.status, answer.key) == (CHECK_CONDITION, ILLEGAL_REQUEST)
    refused(session.command(lun, read10(0, 1), read=BLOCK), 0)


def test_the_view_takes_no_write(served: daemon.Daemon, session: libiscsi.Session) -> None:
    view = int(served.json("snapshot", "show", "vol0@s")["view_lun"])
    session.settle(view)
    before = session.command(view, read10(0, 8), read=8 * BLOCK)
    answer = session.command(view, write10(0, 8), out=os.urandom(8 * BLOCK))
    assert (answer.status, answer.key, answer.asc) == (CHECK_CONDITION, DATA_PROTECT, (0x27, 0x00))
    assert session.command(view, read10(0, 8), read=8 * BLOCK).data == before.data


def test_logged_in_initiators_learn_of_luns_that_come_and_go(served: daemon.Daemon) -> None:
    with served.session() as session:
        session.settle(0)
        taken = served.json("snapshot", "create", "vol0", "late")
        answer = session.command(0, bytes(6))
        assert (answer.status, answer.key, answer.asc) == (CHECK_CONDITION, UNIT_ATTENTION, INVENTORY_CHANGED)
        report = session.command(0, b"\xa0" + bytes(5) + (256).to_bytes(4, "big") + b"\0\0", read=256)
        listed = {report.data[at + 1] for at in range(8, 8 + int.from_bytes(report.data[:4], "big"), 8)}
        assert listed == {0, taken["view_lun"], taken["write_once_lun"]}
        session.settle(taken["view_lun"])
        served.run("snapshot", "delete", "vol0@late")
        answer = session.command(0, bytes(6))
        assert (answer.status, answer.key, answer.asc) == (CHECK_CONDITION, UNIT_ATTENTION, INVENTORY_CHANGED)
        gone = session.command(taken["view_lun"], read10(0, 1), read=BLOCK)
        assert (gone.status, gone.key, gone.asc) == (CHECK_CONDITION, ILLEGAL_REQUEST, (0x25, 0x00))


def test_initiators_do_not_see_the_write_once_lun_by_default(tmp_path: Path) -> None:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 16MiB}\n") as running, running.session() as session:
        taken = running.json("snapshot", "create", "vol0", "s")
        session.settle(0)
        report = session.command(0, b"\xa0" + bytes(5) + (256).to_bytes(4, "big") + b"\0\0", read=256)
        listed = {report.data[at + 1] for at in range(8, 8 + int.from_bytes(report.data[:4], "big"), 8)}
        assert (listed, taken["write_once_lun"]) == ({0, taken["view_lun"]}, None)
        answer = session.command(taken["view_lun"] + 1, write10(0, 8), out=os.urandom(8 * BLOCK))
        assert (answer.status, answer.asc) == (CHECK_CONDITION, (0x25, 0x00))


def test_what_an_initiator_put_into_the_past_is_named_and_not_restored_unasked(
    served: daemon.Daemon, session: libiscsi.Session, lun: int
) -> None:
    old = os.urandom(8 * BLOCK)
    assert session.command(0, write10(512, 8), out=old).status == GOOD  # preserved: no mark
    assert session.command(lun, write10(0, 128), out=b"evil" * (32 * BLOCK)).status == GOOD
    verified = served.json("snapshot", "verify", "vol0@s")
    assert verified["outside"] == [{"kept_in": "s", "lba": 0, "blocks": 128, "offset": 0, "length": 65536}]
    assert (verified["sound"], verified["outside_bytes"]) == (True, 65536)
    assert "initiators wrote 64 KiB of it" in served.run("snapshot", "verify", "vol0@s").stdout
    assert served.json("snapshot", "show", "vol0@s")["outside_bytes"] == 65536
    assert "64 KiB that initiators wrote" in served.run("snapshot", "show", "vol0@s").stdout
    refusal = served.run("snapshot", "restore", "vol0@s", "--force", check=False)
    assert refusal.returncode == 1
    assert "initiators wrote to blocks 0 to 127 of 's'" in refusal.stderr
    assert session.command(0, read10(512, 8), read=8 * BLOCK).data == old
    served.run("snapshot", "restore", "vol0@s", "--force", "--outside")
    session.settle(0)
    assert session.command(0, read10(0, 1), read=BLOCK).data == b"evil" * (BLOCK // 4)
