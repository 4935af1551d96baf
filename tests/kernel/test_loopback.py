# SPDX-License-Identifier: Apache-2.0
"""One machine: the three handlers through tcm_loop.  And beside it another, whose daemon is killed under load, again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.kernel import image
from tests.kernel.guest_daemon import GuestDaemon, loopback_disk, wait_for_writes
from tests.kernel.lab import CHECKOUT, Lab
from tests.kernel.machine import CommandFailed, Machine

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
    map_write_once: read-write
"""
KILLS = 10
READ_BLOCKS = 16
PARTIAL_READ = r"""
import fcntl, os, sys
from lun_backends import remote
device, lba, length = sys.argv[1], int(sys.argv[2]), 512 * int(sys.argv[3])
header, data, sense = remote._SgIoHeader(), remote.ctypes.create_string_buffer(b"-" * length, length), remote.ctypes.create_string_buffer(64)
cdb = remote.ctypes.create_string_buffer(b"\x28\0" + lba.to_bytes(4) + b"\0" + (length // 512).to_bytes(2) + b"\0", 10)
header.interface_id, header.dxfer_direction, header.cmd_len, header.mx_sb_len = ord("S"), remote.SG_DXFER_FROM_DEV, 10, 64
header.dxfer_len, header.timeout = length, 300_000
header.dxferp, header.cmdp, header.sbp = map(remote.ctypes.addressof, (data, cdb, sense))
fcntl.ioctl(os.open(device, os.O_RDONLY), remote.SG_IO, header)
print(header.status, header.resid, data.raw.rstrip(b"-").decode())
"""
# A daemon should never do this: it keeps a piece of each ring's memory for ever.
KEEPING = """
import sys
from target import cli
from target.tcmu import ring
kept, make = [], ring.Ring.__init__
def make_and_keep(self, *arguments):
    make(self, *arguments)
    kept.append(self._view[:1])
ring.Ring.__init__ = make_and_keep
cli.main(sys.argv[1:])
"""
# A crash after the kernel has enabled a device, and before it is told the device's serial number.
DYING = """
import os, signal, sys
from rtslib_fb import tcm
from target import cli
tcm.StorageObject.wwn = property(None, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
cli.main(sys.argv[1:])
"""
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
    with Lab(boot_image, ["solo", "killed"]) as machines:
        yield machines


@pytest.fixture(scope="module", autouse=True)
def kills(lab: Lab) -> Iterator[Future[None]]:
    """They take minutes and one of two processors, and go on while the other tests have the other."""
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(kill_under_load, lab["killed"])
        lab["killed"].power_off()  # nobody waits for them who did not ask


@contextlib.contextmanager
def new_daemon(machine: Machine) -> Iterator[GuestDaemon]:
    """One that is not started, with a new volume; nothing of ours may be left in the kernel after it, nothing of others be gone."""
    machine.run("modprobe -a sd_mod sg ext4; rm -rf /run/wolun")
    if machine.run("ls -d /sys/kernel/config/target/iscsi/iqn.2026-11.test.other:target", check=False).code:
        machine.run(OTHERS)
    before = machine.output(OBJECTS)
    made = GuestDaemon(machine, CONFIGURATION)
    yield made
    if made.runs:
        made.stop()
    assert machine.output(OBJECTS) == before


@pytest.fixture
def solo(lab: Lab) -> Machine:
    return lab["solo"]


@pytest.fixture
def unstarted(solo: Machine) -> Iterator[GuestDaemon]:
    with new_daemon(solo) as made:
        yield made


@pytest.fixture
def daemon(unstarted: GuestDaemon) -> GuestDaemon:
    unstarted.start()
    return unstarted


def program(machine: Machine, script: str) -> str:
    """Return the daemon's program, as a script makes it."""
    machine.put_file("/run/program.py", script)
    return f"env PYTHONPATH={CHECKOUT} {CHECKOUT}/.venv/bin/python /run/program.py"


def sha256(machine: Machine, path: str) -> str:
    return machine.output(f"dd if={path} bs=1M iflag=direct status=none | sha256sum")


def kill_under_load(machine: Machine) -> None:
    """Kills the daemon, and starts it again, while fio writes and verifies; raises AssertionError if initiators see more than a pause."""
    with new_daemon(machine) as daemon:
        daemon.start()
        disk = loopback_disk(machine, 0)
        machine.run(f"head -c 64M /dev/urandom | dd of={disk} bs=1M oflag=direct iflag=fullblock status=none")
        # so that a restart on a busy emulated machine is a pause, not an abort
        machine.run(f"echo 130 > /sys/block/{disk[5:]}/device/timeout")
        expected = sha256(machine, disk)
        view = loopback_disk(machine, daemon.snapshot("vol0", "before")["view_lun"])
        fio = (
            f"fio --name=load --filename={disk} --direct=1 --rw=randwrite --bs=4k --size=6m "
            "--ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 --offset=$((RANDOM % 56))m"
        )
        load = machine.submit(f"while [ ! -e /run/enough ]; do {fio} || exit 1; done", timeout=1150)
        for _ in range(KILLS):
            wait_for_writes(machine, disk)
            daemon.kill()
            daemon.start(until="the kernel's target serves 3 LUNs")
        machine.run("touch /run/enough")
        ended = load.result(400)
        assert ended.code == 0, ended.output
        # of the volume's disk: the write-once LUN's is probed for partitions when it appears, and is blank
        assert not machine.run(f"dmesg | grep -iE '(I/O|target|medium) error.* dev {disk[5:]}'", check=False).output
        assert sha256(machine, view) == expected


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
    solo.run("umount /run/view /run/volume")  # or writes to the volume might fill what is found blank

    # the write-once LUN by raw SCSI: the first blank block, found by asking the device, answers BLANK CHECK with its LBA
    status = solo.output(f"sg_get_lba_status --maxlen=4096 --brief {write_once} | grep ^0x")
    first_blank = next(
        int(lba, 16)
        for lba, blocks, state, *_ in map(str.split, status.splitlines())
        if state == "1" and int(blocks, 16) >= READ_BLOCKS
    )
    block = f"{first_blank:08x}"
    read = f"28 00 {' '.join(block[at : at + 2] for at in (0, 2, 4, 6))} 00 00 01 00"
    blank = solo.run(f"sg_raw -r 512 {write_once} {read}", check=False)
    assert blank.code
    assert "Blank Check" in blank.output
    assert f"[{first_blank}]" in blank.output or f"0x{first_blank:x}" in blank.output
    # writing it is allowed once
    write = read.replace("28 00", "2a 00", 1)
    solo.run(f"yes written | head -c 512 > /run/block; sg_raw -s 512 -i /run/block {write_once} {write}")
    again = solo.run(f"sg_raw -s 512 -i /run/block {write_once} {write}", check=False)
    assert "Blank Check" in again.output
    # and a read over it and the next one brings the first, with the sense data
    solo.put_file("/run/partial.py", PARTIAL_READ)
    partial = f"cd {CHECKOUT} && PYTHONPATH=. .venv/bin/python /run/partial.py {write_once} {first_blank} {READ_BLOCKS}"
    check_condition, left, *data = solo.output(partial).split()
    assert (check_condition, int(left)) == ("2", (READ_BLOCKS - 1) * 512)
    assert data == solo.output("cat /run/block").split()
    daemon.wolun("snapshot", "delete", "vol0@before")
    solo.wait_until(f"[ ! -b {view} ] && [ ! -b {write_once} ]")


def test_a_command_that_is_aborted_stops(solo: Machine, daemon: GuestDaemon) -> None:
    """The kernel tells of the abort through the ring; the daemon, held until then, finds both there."""
    disk = loopback_disk(solo, 0)
    before = sha256(solo, disk)
    events = "cat /sys/class/uio/uio0/event"
    solo.run(f"kill -STOP $(cat {daemon.state}/pid)")
    at_rest = solo.output(events)
    solo.run("yes new | head -c 512 > /run/new")
    writing = solo.submit(f"sg_write_same --10 --num=65535 --in=/run/new --xferlen=512 --timeout=2 {disk}")
    solo.wait_until(f"[ $({events}) -gt {at_rest} ]")
    commanded = solo.output(events)
    solo.wait_until(f"[ $({events}) -gt {commanded} ]")  # nothing else is in use: this is the abort
    solo.run(f"kill -CONT $(cat {daemon.state}/pid)")
    assert writing.result(400).code
    assert sha256(solo, disk) == before


def test_a_stop_survives_a_ring_that_cannot_be_unmapped(solo: Machine, unstarted: GuestDaemon) -> None:
    """The fixture finds nothing left in the kernel all the same."""
    unstarted.start(program=program(solo, KEEPING))
    loopback_disk(solo, 0)
    unstarted.snapshot("vol0", "before")
    unstarted.stop()
    assert solo.output(f"grep -c 'stays mapped: its memory is still referred to' {unstarted.log}") == "3"


def test_a_device_that_a_crash_left_without_a_serial_number_gets_it(solo: Machine, unstarted: GuestDaemon) -> None:
    """By it the kernel knows which reservations are the device's."""
    serial = "sed 's/.*: *//; s/-//g' /sys/kernel/config/target/core/user_*/wolun-*/wwn/vpd_unit_serial"
    with pytest.raises(CommandFailed, match="ended with 1"):
        unstarted.start(program=program(solo, DYING))
    assert solo.output(serial) == ""
    unstarted.start()
    disk = loopback_disk(solo, 0)
    assert solo.output(serial) == solo.output(f"tail -c 32 /sys/block/{disk[5:]}/device/vpd_pg80")


def test_a_daemon_killed_under_load_costs_initiators_a_pause(lab: Lab, kills: Future[None]) -> None:
    kills.result()
