# SPDX-License-Identifier: Apache-2.0
"""`make conformance FABRIC=lio`: libiscsi's suite against a volume behind the kernel's target.

One machine is both target and initiator.  The kernel itself answers for iSCSI, reservations and task management.  Some
tests of these fail; conformance.yaml names them, with the reasons.  Our device server answers everything else, through
TCMU.  The exit code is 1 if any result differs from the expected one.  Under software emulation this takes some
minutes.  `make test` runs a part of it, in test_conformance.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from rich.console import Console

from tests import peers
from tests.conformance import suite
from tests.kernel import image, packages
from tests.kernel.guest_daemon import GuestDaemon
from tests.kernel.lab import Lab
from tests.kernel.machine import Machine

EXPECTED = Path(__file__).with_name("conformance.yaml")
INITIATORS = (
    "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test",
    "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test-2",
)
TARGET = "iqn.2026-11.io.wolun:conformance"
CONFIGURATION = f"""
target: {TARGET}
fabric: lio
access:
  initiators:
    - name: {INITIATORS[0]}
    - name: {INITIATORS[1]}
volumes:
  - name: vol0
    lun: 0
    size: 64MiB
    durability: process-crash
  - name: on-a-disk
    lun: 1
    primary: /dev/sda
"""
TIMEOUT = 3000  # seconds; ALL takes 214 on two cores that are otherwise idle


def prepare(lab: Lab) -> GuestDaemon:
    """Return the daemon of the machine `solo`, ready to start; LUN 1 is a disk with blocks of 4096 bytes."""
    peers.require("iscsi-test-cu")  # the machine uses the host's programs
    solo = lab["solo"]
    solo.run("modprobe sd_mod && modprobe scsi_debug dev_size_mb=8 physblk_exp=3")
    solo.wait_until("[ -b /dev/sda ]")
    return GuestDaemon(solo, CONFIGURATION)


def run(solo: Machine, family: str) -> list[suite.Result]:
    """Run a family of tests against LUN 0, by two paths.  Raise suite.SuiteBroke if it does not run to its end."""
    url = f"iscsi://127.0.0.1/{TARGET}/0"
    done = solo.run(f"iscsi-test-cu --dataloss --test={family} {url} {url}", timeout=TIMEOUT, check=False)
    if "Run Summary" not in done.output:
        raise suite.SuiteBroke(done.output[-1000:])
    return list(suite.parse(done.output))


def main() -> int:
    """Run the whole suite and return the exit code."""
    console = Console()
    packages.ensure()
    with Lab(image.build(), ["solo"]) as lab:
        daemon = prepare(lab)
        daemon.start()
        results = run(lab["solo"], "ALL")
        daemon.stop()
    for result in results:
        if result.outcome is not suite.Outcome.PASSED:
            console.print(f"{result.name}: {result.outcome.value}, {result.detail}")
    counts = Counter(result.outcome for result in results)
    console.print(
        f"{len(results)} tests: " + ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in suite.Outcome)
    )
    surprising = suite.deviations(results, "lio", EXPECTED)
    for line in surprising:
        console.print(line)
    return 1 if surprising else 0


if __name__ == "__main__":
    sys.exit(main())
