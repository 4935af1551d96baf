# SPDX-License-Identifier: Apache-2.0
"""What of libiscsi's suite runs against the kernel's target in every test run: reservations, which need the kernel's files, and
plain commands.  `make conformance FABRIC=lio` runs all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance import suite
from tests.kernel import conformance, image
from tests.kernel.guest_daemon import GuestDaemon
from tests.kernel.lab import Lab

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


def test_a_disks_physical_blocks_are_told(lab: Lab, daemon: GuestDaemon) -> None:
    url = f"iscsi://127.0.0.1/{conformance.TARGET}/1"
    told = lab["solo"].output(f"iscsi-readcapacity16 -i {conformance.INITIATORS[0]} {url}")
    assert "PHYSICAL BLOCK EXPONENT:3" in told


def test_results_are_as_expected(lab: Lab, daemon: GuestDaemon) -> None:
    results = [result for family in FAMILIES for result in conformance.run(lab["solo"], f"ALL.{family}")]
    assert {result.name.partition(".")[0] for result in results} == set(FAMILIES)
    assert [result for result in results if result.outcome is not suite.Outcome.PASSED] == []
