# SPDX-License-Identifier: Apache-2.0
"""The part of libiscsi's suite that every test run sends to the kernel's target.

This part has plain commands, and the reservations, which need files of the kernel.  `make conformance FABRIC=lio` runs
the whole suite.  Another test checks that persistent reservations survive a stop of the daemon.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from tests.conformance import suite
from tests.kernel import conformance, image
from tests.kernel.guest_daemon import WOLUN, GuestDaemon
from tests.kernel.lab import CHECKOUT, Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

FAMILIES = (
    "PrinReadKeys",
    "PrinReportCapabilities",
    "ProutRegister",
    "ProutReserve",
    "ProutClear",
    "ProutPreempt",
    "ReadCapacity16",
    "Read10",
    "Write10",
)
RESERVED = """
target: iqn.2026-11.io.wolun:reserved
fabric: lio
lio:
  listen: ["127.0.0.1:3262"]
access:
  networks: [0.0.0.0/0]
volumes:
  - name: vol0
    lun: 0
    size: 64MiB
"""
INITIATOR = """
import struct
from tests import libiscsi
from tests.conformance.test_barrier import *
APTPL = 1
ALL_REGISTRANTS = 8  # exclusive access, all registrants; the kernel writes 08 to its file, and cannot read 08
NODE, OTHER = (f"iqn.2026-11.org.example:{name}" for name in ("node", "other"))
def session(initiator):
    opened = libiscsi.Session("127.0.0.1:3262", "iqn.2026-11.io.wolun:reserved", initiator=initiator)
    opened.settle(0)
    return opened
def write(session):
    return session.command(0, struct.pack(">BBIxHx", 0x2A, 0, 0, 1), out=bytes(512)).status
def report(action, session):
    data = session.command(0, struct.pack(">BB5xHx", 0x5E, action, 4096), read=4096).data
    return data[8 : 8 + int.from_bytes(data[4:8])]
"""
RESERVE_FOR_EVER = """
with session(NODE) as node:
    assert reserve_out(node, IGNORE, 0, 17, flags=APTPL) == GOOD
    assert reserve_out(node, RESERVE, 17, 0, kind=ALL_REGISTRANTS) == GOOD
"""
STILL_RESERVED = """
with session(OTHER) as other:
    assert write(other) == CONFLICT
    assert report(0, other) == struct.pack(">Q", 17)
    assert report(1, other)[13] == ALL_REGISTRANTS
    assert NODE.encode() in report(3, other)
    assert reserve_out(other, REGISTER, 0, 18, flags=APTPL) == GOOD
    assert reserve_out(other, PREEMPT_AND_ABORT, 18, 17, kind=ALL_REGISTRANTS) == GOOD
    assert write(other) == GOOD
    assert report(0, other) == struct.pack(">Q", 18)
    assert reserve_out(other, CLEAR, 18, 0) == GOOD
"""


@pytest.fixture(scope="module")
def lab(boot_image: image.Image) -> Iterator[Lab]:
    with Lab(boot_image, ["solo"]) as machines:
        yield machines


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[GuestDaemon]:
    started = conformance.prepare(lab)
    started.start()
    yield started
    started.stop()


def test_physical_block_size_of_a_disk_is_reported(lab: Lab, daemon: GuestDaemon) -> None:
    url = f"iscsi://127.0.0.1/{conformance.TARGET}/1"
    printed = lab["solo"].output(f"iscsi-readcapacity16 -i {conformance.INITIATORS[0]} {url}")
    assert "PHYSICAL BLOCK EXPONENT:3" in printed


def test_results_are_as_expected(lab: Lab, daemon: GuestDaemon) -> None:
    results = [result for family in FAMILIES for result in conformance.run(lab["solo"], f"ALL.{family}")]
    assert {result.name.partition(".")[0] for result in results} == set(FAMILIES)
    assert [result for result in results if result.outcome is not suite.Outcome.PASSED] == []


def test_persistent_reservations_survive_a_stop(lab: Lab, daemon: GuestDaemon) -> None:
    """Stop the daemon, which leaves nothing in the kernel, and start it again.

    The reservations hold from the start on, before their holder has come back.  Meanwhile another daemon serves a
    volume of the same name: neither daemon changes the other's reservations.
    """
    solo = lab["solo"]
    reserved = GuestDaemon(solo, RESERVED, name="reserved")

    def initiator(script: str) -> None:
        python = WOLUN.with_name("python")
        solo.run(f"cd {CHECKOUT} && {python} -c {shlex.quote(INITIATOR + script)} 2>&1")

    reserved.start()
    initiator(RESERVE_FOR_EVER)
    reserved.stop()
    assert not solo.output("find /sys/kernel/config/target/iscsi -name '*:reserved'")
    reserved.start()
    initiator(STILL_RESERVED)
    reserved.stop()
    results = conformance.run(solo, "ALL.Write10")
    assert [result for result in results if result.outcome is not suite.Outcome.PASSED] == []
