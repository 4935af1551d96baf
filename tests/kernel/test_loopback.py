# SPDX-License-Identifier: Apache-2.0
"""One machine: the three handlers through tcm_loop, and a daemon that is killed under load, again and again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel import image
from tests.kernel.guest_daemon import GuestDaemon, loopback_disk
from tests.kernel.lab import Lab
from tests.kernel.machine import Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

CONFIGURATION = """
target: iqn.2026-11.io.wolun:loopback
fabric: lio
lio:
  listen: []
  loopback: true
volumes:
  - name: vol0
    lun: 0
    size: 64MiB
"""
KILLS = 10
OBJECTS = "find /sys/kernel/config/target -mindepth 2 -type d | grep -v -e discovery_auth -e core/alua | sort"
OTHERS = """
dbus-daemon --system --fork
targetcli << END
/backstores/ramdisk create name=other size=1M
/iscsi create iqn.2026-11.test.other:target
/iscsi/iqn.2026-11.test.other:target/tpg1/luns create /backstores/ramdisk/other
END
"""


@pytest.fixture(scope="module")
def lab(boot_image: image.Image) -> Iterator[Lab]:
    with Lab(boot_image, ["solo"]) as machines:
        yield machines


@pytest.fixture
def solo(lab: Lab) -> Machine:
    machine = lab["solo"]
    machine.run("modprobe -a sd_mod sg ext4")
    return machine


@pytest.fixture
def daemon(solo: Machine) -> Iterator[GuestDaemon]:
    """A new volume each time; nothing of ours may be left in the kernel after it, nothing of others may be gone."""
    solo.run("rm -rf /run/wolun")
    if solo.run("ls -d /sys/kernel/config/target/iscsi/iqn.2026-11.test.other:target", check=False).code:
        solo.run(OTHERS)
    before = solo.output(OBJECTS)
    started = GuestDaemon(solo, CONFIGURATION)
    started.start()
    yield started
    started.stop()
    assert solo.output(OBJECTS) == before


def sha256(machine: Machine, path: str) -> str:
    return machine.output(f"dd if={path} bs=1M iflag=direct status=none | sha256sum")


def test_the_view_shows_the_files_of_the_snapshots_moment(solo: Machine, daemon: GuestDaemon) -> None:
    disk = loopback_disk(solo, 0)
    solo.run(f"mkfs.ext4 -q {disk} && mkdir -p /run/volume /run/view && mount {disk} /run/volume")
    solo.run(
        "cd /run/volume; for i in $(seq 20); do head -c $((RANDOM * 40)) /dev/urandom > file$i; done\n"
        "find . -type f | xargs sha256sum > /run/sums; fsfreeze -f /run/volume"
    )
    taken = daemon.snapshot("vol0", "before")
    solo.run(
        "fsfreeze -u /run/volume; cd /run/volume\n"
        "for i in $(seq 1 10); do head -c 300000 /dev/urandom > file$i; done; rm file1[1-5]; echo new > new; sync"
    )
    view, write_once = loopback_disk(solo, taken["view_lun"]), loopback_disk(solo, taken["write_once_lun"])
    solo.run(f"mount -o ro {view} /run/view && cd /run/view && sha256sum --quiet -c /run/sums && [ ! -e new ]")
    solo.run("cd /run/volume && ! sha256sum --status -c /run/sums")
    assert solo.run(f"dd if=/dev/zero of={view} bs=4k count=1 oflag=direct", check=False).code

    # the write-once LUN by raw SCSI: the first blank block, found by asking the device, answers BLANK CHECK with its LBA
    status = solo.output(f"sg_get_lba_status --maxlen=4096 --brief {write_once} | grep ^0x")
    first_blank = next(int(lba, 16) for lba, _, state, *_ in map(str.split, status.splitlines()) if state == "1")
    block = f"{first_blank:08x}"
    read = f"28 00 {' '.join(block[at : at + 2] for at in (0, 2, 4, 6))} 00 00 01 00"
    blank = solo.run(f"sg_raw -r 512 {write_once} {read}", check=False)
    assert blank.code
    assert "Blank Check" in blank.output
    assert f"[{first_blank}]" in blank.output or f"0x{first_blank:x}" in blank.output
    # writing it is allowed once
    write = read.replace("28 00", "2a 00", 1)
    solo.run(f"sg_raw -s 512 -i /dev/zero {write_once} {write}")
    again = solo.run(f"sg_raw -s 512 -i /dev/zero {write_once} {write}", check=False)
    assert "Blank Check" in again.output
    solo.run("umount /run/view /run/volume")
    daemon.wolun("snapshot", "delete", "vol0@before")
    solo.wait_until(f"[ ! -b {view} ] && [ ! -b {write_once} ]")


def test_a_daemon_killed_under_load_costs_initiators_a_pause(solo: Machine, daemon: GuestDaemon) -> None:
    disk = loopback_disk(solo, 0)
    solo.run(f"head -c 64M /dev/urandom | dd of={disk} bs=1M oflag=direct iflag=fullblock status=none")
    expected = sha256(solo, disk)
    view = loopback_disk(solo, daemon.snapshot("vol0", "before")["view_lun"])
    fio = (
        f"fio --name=load --filename={disk} --direct=1 --rw=randwrite --bs=4k --size=6m "
        "--ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 --offset=$((RANDOM % 56))m"
    )
    load = solo.submit(f"while [ ! -e /run/enough ]; do {fio} || exit 1; done", timeout=600)
    for _ in range(KILLS):
        solo.run("sleep 1")
        daemon.kill()
        daemon.start(until="the kernel's target serves 3 LUNs")
    solo.run("touch /run/enough")
    ended = load.result(120)
    assert ended.code == 0, ended.output
    # of the volume's disk: the write-once LUN's is probed for partitions when it appears, and is blank
    assert not solo.run(f"dmesg | grep -iE '(I/O|target|medium) error.* dev {disk[5:]}'", check=False).output
    assert sha256(solo, view) == expected
