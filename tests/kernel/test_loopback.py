# SPDX-License-Identifier: Apache-2.0
"""The three handlers through tcm_loop, on one machine; on a second machine, a daemon that is killed under load."""

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
import ctypes, fcntl, os, sys
from lun_backends.initiator import sg_io
device, lba, length = sys.argv[1], int(sys.argv[2]), 512 * int(sys.argv[3])
header, data, sense = sg_io._Header(), ctypes.create_string_buffer(b"-" * length, length), ctypes.create_string_buffer(64)
cdb = ctypes.create_string_buffer(b"\x28\0" + lba.to_bytes(4) + b"\0" + (length // 512).to_bytes(2) + b"\0", 10)
header.interface_id, header.dxfer_direction, header.cmd_len, header.mx_sb_len = ord("S"), sg_io._FROM_DEVICE, 10, 64
header.dxfer_len, header.timeout = length, 300_000
header.dxferp, header.cmdp, header.sbp = map(ctypes.addressof, (data, cdb, sense))
fcntl.ioctl(os.open(device, os.O_RDONLY), sg_io._SG_IO, header)
print(header.status, header.resid, data.raw.rstrip(b"-").decode())
"""
# A daemon with a fault: it keeps a piece of each ring's memory for ever.
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
# A daemon that crashes after the kernel has enabled a device, and before the kernel gets the device's serial number.
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
    """Yield the future of `kill_under_load`, which runs while the other tests use the other machine.

    It takes minutes and one of two processors.
    """
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(kill_under_load, lab["killed"])
        lab["killed"].power_off()  # end `kill_under_load` at once if its test was not selected


@contextlib.contextmanager
def new_daemon(machine: Machine) -> Iterator[GuestDaemon]:
    """Yield a daemon with a new volume, not started.

    In the end, the kernel must have no object of the daemon, and all objects of others.
    """
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
    """Put a script on the machine that stands in for the daemon's program, and return its command."""
    machine.put_file("/run/program.py", script)
    return f"env PYTHONPATH={CHECKOUT} {CHECKOUT}/.venv/bin/python /run/program.py"


def sha256(machine: Machine, path: str) -> str:
    return machine.output(f"dd if={path} bs=1M iflag=direct status=none | sha256sum")


def kill_under_load(machine: Machine) -> None:
    """Kill the daemon and start it again, several times, while fio writes and verifies.

    Raise AssertionError if initiators see more than a pause.
    """
    with new_daemon(machine) as daemon:
        daemon.start()
        disk = loopback_disk(machine, 0)
        machine.run(f"head -c 64M /dev/urandom | dd of={disk} bs=1M oflag=direct iflag=fullblock status=none")
        # A restart takes long on a busy emulated machine.  With this time limit it is a pause and not an abort.
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
        # Only errors of the volume's disk count.  The kernel looks for partitions on the write-once LUN's disk, and
        # gets errors because that disk is blank.
        assert not machine.run(f"dmesg | grep -iE '(I/O|target|medium) error.* dev {disk[5:]}'", check=False).output
        assert sha256(machine, view) == expected


def test_view_shows_the_files_as_they_were_at_the_snapshot(solo: Machine, daemon: GuestDaemon) -> None:
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
    solo.run("umount /run/view /run/volume")  # otherwise a write to the volume might fill the block that is found blank

    # Read the write-once LUN by raw SCSI: the first blank block of the LBA status answers BLANK CHECK with its LBA.
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
    # The block can be written once.
    write = read.replace("28 00", "2a 00", 1)
    solo.run(f"yes written | head -c 512 > /run/block; sg_raw -s 512 -i /run/block {write_once} {write}")
    again = solo.run(f"sg_raw -s 512 -i /run/block {write_once} {write}", check=False)
    assert "Blank Check" in again.output
    # A read of this block and of blank blocks behind it returns the first block, together with the sense data.
    solo.put_file("/run/partial.py", PARTIAL_READ)
    partial = f"cd {CHECKOUT} && PYTHONPATH=. .venv/bin/python /run/partial.py {write_once} {first_blank} {READ_BLOCKS}"
    check_condition, left, *data = solo.output(partial).split()
    assert (check_condition, int(left)) == ("2", (READ_BLOCKS - 1) * 512)
    assert data == solo.output("cat /run/block").split()
    daemon.wolun("snapshot", "delete", "vol0@before", "--force")  # this host has just read it
    solo.wait_until(f"[ ! -b {view} ] && [ ! -b {write_once} ]")


def test_aborted_command_stops(solo: Machine, daemon: GuestDaemon) -> None:
    """Stop the daemon until the kernel has put both the command and its abort in the ring."""
    disk = loopback_disk(solo, 0)
    before = sha256(solo, disk)
    events = "cat /sys/class/uio/uio0/event"
    solo.run(f"kill -STOP $(cat {daemon.state}/pid)")
    at_rest = solo.output(events)
    solo.run("yes new | head -c 512 > /run/new")
    writing = solo.submit(f"sg_write_same --10 --num=65535 --in=/run/new --xferlen=512 --timeout=2 {disk}")
    solo.wait_until(f"[ $({events}) -gt {at_rest} ]")
    commanded = solo.output(events)
    solo.wait_until(f"[ $({events}) -gt {commanded} ]")  # this is the abort, because no other command runs
    solo.run(f"kill -CONT $(cat {daemon.state}/pid)")
    assert writing.result(400).code
    assert sha256(solo, disk) == before


def test_daemon_stops_although_a_ring_cannot_be_unmapped(solo: Machine, unstarted: GuestDaemon) -> None:
    """The fixture checks that the kernel still has no object of the daemon in the end."""
    unstarted.start(program=program(solo, KEEPING))
    loopback_disk(solo, 0)
    unstarted.snapshot("vol0", "before")
    unstarted.stop()
    assert solo.output(f"grep -c 'stays mapped: its memory is still referred to' {unstarted.log}") == "3"


def test_device_left_without_a_serial_number_by_a_crash_gets_it(solo: Machine, unstarted: GuestDaemon) -> None:
    """The kernel finds the reservations of a device by its serial number."""
    serial = "sed 's/.*: *//; s/-//g' /sys/kernel/config/target/core/user_*/wolun-*/wwn/vpd_unit_serial"
    with pytest.raises(CommandFailed, match="ended with 1"):
        unstarted.start(program=program(solo, DYING))
    assert solo.output(serial) == ""
    unstarted.start()
    disk = loopback_disk(solo, 0)
    assert solo.output(serial) == solo.output(f"tail -c 32 /sys/block/{disk[5:]}/device/vpd_pg80")


def test_initiators_see_only_a_pause_when_the_daemon_is_killed_under_load(lab: Lab, kills: Future[None]) -> None:
    kills.result()
