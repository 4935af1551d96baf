# SPDX-License-Identifier: Apache-2.0
"""Speed in one machine, against peers on files of the same kind, in turn.

The tests compare medians and ratios, because absolute figures differ between hosts.  The machine has two processors,
because hosts have at least two.  With one processor, the process that serves and the process that waits would take
turns.

* `copyonwrite` over a raw preallocated file on tmpfs, against tcmu-runner's qcow handler on such a file.  The aim is at
  least `BAR` times the peer's rate.  It is printed beside each figure and not asserted, because a busy machine must not
  turn a test red.
* The first write to each chunk under a snapshot, against dm-snapshot (persistent, same chunk size and durability).  The
  figures are reported, with the processor time of each part.

`pytest -s` and a red run show the figures.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator

import pytest

from tests.kernel import image
from tests.kernel.guest_daemon import TCMU_SERVICE_IS_THERE, GuestDaemon, loopback_disk
from tests.kernel.lab import Lab
from tests.kernel.machine import Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

CONFIGURATION = """
target: iqn.2026-11.io.wolun:speed
fabric: lio
lio:
  listen: []
  loopback: true
volumes:
  - name: vol0
    lun: 10
    primary: /run/files/wolun.img
"""
MEBIBYTES = 64
ROUNDS = 3
SECONDS = 3
BAR = 1.1
LOADS = [(mode, depth) for mode in ("randread", "randwrite") for depth in (1, 32)]
CHUNK = 64  # KiB


def iops(machine: Machine, disk: str, mode: str, depth: int, *options: str) -> float:
    """Return the transfers of 4 KiB per second that fio reaches, past the page cache."""
    options = options or (f"--runtime={SECONDS}", "--time_based")
    report = machine.output(
        f"fio --name=load --filename={disk} --direct=1 --rw={mode} --bs=4k --ioengine=libaio --iodepth={depth} "
        f"--output-format=json {' '.join(options)}"
    )
    job = json.loads(report[report.index("{") :])["jobs"][0]
    return float(job["read" if "read" in mode else "write"]["iops"])


def processor(daemon: GuestDaemon) -> tuple[float, float, float]:
    """Return the processor seconds so far of the daemon's own code, of its system calls, and of everything else."""
    own, everything = daemon.machine.output(
        f"cat /proc/$(cat {daemon.state}/pid)/stat; grep '^cpu ' /proc/stat"
    ).splitlines()
    fields = own.rpartition(")")[2].split()
    code, calls = int(fields[11]) / 100, int(fields[12]) / 100
    user, nice, system, _idle, _waiting, *interrupts = map(int, everything.split()[1:8])
    return code, calls, (user + nice + system + sum(interrupts)) / 100 - code - calls


def say(text: str) -> None:
    """Write a line to pytest's captured output, which `-s` and a red run show."""
    sys.stdout.write(text + "\n")


@pytest.fixture(scope="module")
def lab(boot_image: image.Image) -> Iterator[Lab]:
    with Lab(boot_image, ["solo"], memory=1024, processors=2) as machines:
        solo = machines["solo"]
        solo.run("modprobe -a sd_mod loop dm-snapshot tcm_loop target_core_user; mkdir /run/files")
        for name in ("wolun", "runner", "origin", "exceptions"):
            size = MEBIBYTES + (16 if name == "exceptions" else 0)  # dm-snapshot also keeps its map in this file
            solo.run(f"head -c {size}M /dev/zero > /run/files/{name}.img")
        yield machines


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[GuestDaemon]:
    started = GuestDaemon(lab["solo"], CONFIGURATION)
    started.start()
    yield started
    started.stop()


def test_copy_on_write_against_tcmu_runner_is_reported(lab: Lab, daemon: GuestDaemon) -> None:
    solo = lab["solo"]
    solo.run("dbus-daemon --system --fork; pgrep -x tcmu-runner || (tcmu-runner > /run/log/tcmu-runner.log 2>&1 &)")
    solo.wait_until(TCMU_SERVICE_IS_THERE)
    solo.wait_until("targetcli ls /backstores/user:qcow")
    wwn = "naa.5001405000000002"
    solo.run(
        f"targetcli << END\n/backstores/user:qcow create peer {MEBIBYTES}M /run/files/runner.img\n/loopback create {wwn}\n"
        f"/loopback/{wwn}/luns create /backstores/user:qcow/peer 20\nEND"
    )
    sides = {"wolun": loopback_disk(solo, 10), "tcmu-runner": loopback_disk(solo, 20)}
    ratios = {}
    for mode, depth in LOADS:
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side, disk in sides.items():
                rates[side].append(iops(solo, disk, mode, depth))
        median = {side: statistics.median(values) for side, values in rates.items()}
        ratios[mode, depth] = median["wolun"] / median["tcmu-runner"]
        both = ", ".join(f"{side} {value:.0f}/s" for side, value in median.items())
        say(f"4 KiB {mode}, {depth} in flight: {both}: {ratios[mode, depth]:.2f} times (aim {BAR})")
    assert all(ratio > 0 for ratio in ratios.values()), ratios


def test_first_writes_against_dm_snapshot_are_reported(lab: Lab, daemon: GuestDaemon) -> None:
    solo = lab["solo"]
    sectors = MEBIBYTES * 2048
    first = (f"--size={MEBIBYTES}m", f"--number_ios={MEBIBYTES * 1024 // CHUNK}")
    mode = f"write:{CHUNK - 4}k"  # one write at the beginning of each chunk
    solo.run("losetup /dev/loop0 /run/files/origin.img; losetup /dev/loop1 /run/files/exceptions.img")
    ours, theirs = [], []
    spent = [0.0, 0.0, 0.0]
    for number in range(ROUNDS):
        daemon.snapshot("vol0", f"s{number}")
        disk = loopback_disk(solo, 10)
        before = processor(daemon)
        ours.append(iops(solo, disk, mode, 32, *first))
        spent = [total + now - then for total, now, then in zip(spent, processor(daemon), before, strict=True)]
        daemon.wolun("snapshot", "delete", f"vol0@s{number}", "--force")
        solo.run(
            "dd if=/dev/zero of=/dev/loop1 bs=1M count=1 status=none\n"
            "export DM_DISABLE_UDEV=1  # there is no udev that would answer\n"
            f"dmsetup create origin --table '0 {sectors} snapshot-origin /dev/loop0'\n"
            f"dmsetup create snapshot --table '0 {sectors} snapshot /dev/loop0 /dev/loop1 P {CHUNK * 2}'"
        )
        theirs.append(iops(solo, "/dev/mapper/origin", mode, 32, *first))
        solo.run("export DM_DISABLE_UDEV=1; dmsetup remove snapshot; dmsetup remove origin")
    mine, other = statistics.median(ours), statistics.median(theirs)
    say(
        f"first write of 4 KiB to each {CHUNK} KiB chunk, 32 in flight: wolun {mine:.0f}/s, dm-snapshot {other:.0f}/s: {mine / other:.2f} times"
    )
    per_write = 1000 / (ROUNDS * MEBIBYTES * 1024 // CHUNK)  # seconds of all first writes -> milliseconds of one
    code, calls, others = (per_write * total for total in spent)
    say(
        f"such a write takes {1000 * statistics.mean(1 / value for value in ours):.2f} ms, and of the two processors {code:.2f} ms for the "
        f"daemon's code, {calls:.2f} for its system calls (copying, syncing), {others:.2f} for the kernel's target and fio"
    )
    assert mine > 0
    assert other > 0
