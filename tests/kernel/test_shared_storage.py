# SPDX-License-Identifier: Apache-2.0
"""Four machines, as the idea intends: a storage host, two nodes that write, and one node that reads the snapshot.

No node sends a message to another.  The snapshot shows the primary as it was before any node wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernel import image
from tests.kernel.guest_daemon import GuestDaemon, loopback_disk, sys_disk, wait_for_writes
from tests.kernel.lab import CHECKOUT, Lab
from tests.kernel.machine import Machine, MachineGone

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

STORAGE = """
target: iqn.2026-11.io.wolun:storage
fabric: lio
access:
  networks: [0.0.0.0/0]
volumes:
  - name: vol0
    lun: 0
    size: 16MiB
write_once:
  - volume: vol0
    snapshot: before
    lun: 1
    size: 16MiB
"""
NODE = """
target: iqn.2026-11.io.wolun:{name}
fabric: lio
lio:
  listen: []
  loopback: true
volumes: []
shared:
  - name: vol0
    snapshot: before
    primary: {primary}
    write_once: {write_once}
    {lun}
"""
WRITERS = ("writer1", "writer2")
NODES = (*WRITERS, "reader")
LOAD_TIMEOUT = 1000  # seconds; a load takes 20 if nothing else runs
ENOUGH = "/run/enough"  # the load of `writes_until_enough` ends once this file exists
SUM = "dd if={} bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1"


def remote_disk(machine: Machine, lun: int) -> str:
    """Return the disk of a LUN of the iSCSI session."""
    pattern = f"/sys/class/iscsi_session/session*/device/target*/*:{lun}/block/*"
    return sys_disk(machine, pattern)


def writes(disk: str, seed: int, count: int) -> str:
    """Return a load: `count` writes of 4 KiB to random places of chunks that all writers share.

    The last 2 MiB stay blank.
    """
    return (
        f"fio --name=load --filename={disk} --direct=1 --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 "
        f"--randseed={seed} --number_ios={count} --size=14m --norandommap"
    )


def writes_until_enough(disk: str, seed: int) -> str:
    """Return the same load as a loop that ends once the file `ENOUGH` exists."""
    return f"rm -f {ENOUGH}; while [ ! -e {ENOUGH} ]; do {writes(disk, seed, 300)} || exit 1; done"


class Cluster:
    """The machines with all daemons started, and the checksum of the primary before any write."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        storage = lab["storage"]
        self.daemon = GuestDaemon(storage, STORAGE)
        storage.run(f"mkdir -p {self.daemon.state}")
        self.daemon.start()
        self.daemons: dict[str, GuestDaemon] = {}
        self.disks: dict[str, str] = {}
        primary = f"{self.daemon.state}/volumes/vol0/primary.img"
        storage.run(
            f"head -c 16M /dev/urandom > {self.daemon.state}/content; cat {self.daemon.state}/content > {primary}"
        )
        self.before = storage.output(f"sha256sum < {self.daemon.state}/content | cut -d' ' -f1")
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start, NODES))

    def _start(self, name: str) -> None:
        node = self.lab[name]
        node.run(
            "modprobe -a iscsi_tcp sd_mod sg && iscsid\n"
            "iscsiadm -m discovery -t sendtargets -p storage && iscsiadm -m node --login"
        )
        primary, write_once = remote_disk(node, 0), remote_disk(node, 1)
        lun = "view_lun: 5" if name == "reader" else "lun: 5"
        self.daemons[name] = GuestDaemon(
            node, NODE.format(name=name, primary=primary, write_once=write_once, lun=lun), name="node"
        )
        self.daemons[name].start()
        self.disks[name] = loopback_disk(node, 5)

    def view(self) -> str:
        """Return the checksum of the snapshot, as the reader's view shows it."""
        return self.lab["reader"].output(SUM.format(self.disks["reader"]))

    def primary(self) -> str:
        return self.lab["storage"].output(f"sha256sum < {self.daemon.state}/volumes/vol0/primary.img | cut -d' ' -f1")


@pytest.fixture(scope="module")
def cluster(boot_image: image.Image) -> Iterator[Cluster]:
    with Lab(boot_image, ["storage", *NODES], memory=512) as lab:
        yield Cluster(lab)


# The tests run in this order: each continues with the state that the test before left.


def test_concurrent_writers_leave_the_view_unchanged(cluster: Cluster) -> None:
    assert cluster.view() == cluster.before
    loads = [
        cluster.lab[name].submit(writes(cluster.disks[name], seed, 300), timeout=LOAD_TIMEOUT)
        for seed, name in enumerate(WRITERS)
    ]
    # The reader reads the view while both nodes write.
    assert cluster.view() == cluster.before
    for load in loads:
        ended = load.result(LOAD_TIMEOUT)
        assert ended.code == 0, ended.output
    assert cluster.view() == cluster.before
    assert cluster.primary() != cluster.before


def test_cut_link_causes_only_a_pause(cluster: Cluster) -> None:
    writer = cluster.lab["writer2"]
    load = writer.submit(writes_until_enough(cluster.disks["writer2"], 7), timeout=LOAD_TIMEOUT)
    wait_for_writes(writer, cluster.disks["writer2"])
    cluster.lab.switch.cut("writer2", "storage")
    writer.wait_until("! grep -q LOGGED_IN /sys/class/iscsi_session/session*/state")
    assert not load.done()
    cluster.lab.switch.heal("writer2", "storage")
    wait_for_writes(writer, cluster.disks["writer2"])
    writer.run(f"touch {ENOUGH}")
    ended = load.result(LOAD_TIMEOUT)
    assert ended.code == 0, ended.output
    assert cluster.view() == cluster.before


def test_writer_that_loses_power_leaves_the_view_unchanged(cluster: Cluster) -> None:
    writer, other = cluster.lab["writer1"], cluster.lab["writer2"]
    dying = writer.submit(writes(cluster.disks["writer1"], 11, 1_000_000), timeout=LOAD_TIMEOUT)
    surviving = other.submit(writes_until_enough(cluster.disks["writer2"], 12), timeout=LOAD_TIMEOUT)
    wait_for_writes(writer, cluster.disks["writer1"])
    wait_for_writes(other, cluster.disks["writer2"])
    writer.power_off()
    with pytest.raises(MachineGone):
        dying.result(10)
    wait_for_writes(other, cluster.disks["writer2"])
    other.run(f"touch {ENOUGH}")
    ended = surviving.result(LOAD_TIMEOUT)
    assert ended.code == 0, ended.output
    assert cluster.view() == cluster.before


def test_errno_distinguishes_blank_written_full_and_broken(cluster: Cluster) -> None:
    """Use the backend for a remote device on the real device, and on a device that fails."""
    node = cluster.lab["writer2"]
    cluster.daemons["writer2"].stop()
    device = remote_disk(node, 1)
    code = f"""
from pathlib import Path
from lun_backends import block_device, remote
side = remote.RemoteWriteOnce(Path("{device}"))
blank = next(extent for extent in side.extents(0, side.size) if extent.kind is block_device.ExtentKind.BLANK)
lba, data = blank.offset // 512, memoryview(bytearray(b"x" * 512))
def outcome(call, *arguments):
    try:
        call(*arguments)
    except block_device.BlockDeviceError as error:
        return error
assert outcome(side.readv, blank.offset, [data]).lba == lba
assert isinstance(outcome(side.readv, blank.offset, [data]), block_device.BlankBlock)
assert outcome(side.writev, blank.offset, [data]) is None
refused = outcome(side.writev, blank.offset, [data])
assert isinstance(refused, block_device.BlockWritten) and refused.lba == lba, refused
assert outcome(side.readv, blank.offset, [data]) is None and bytes(data) == b"x" * 512
assert isinstance(outcome(side.readv, side.size, [data]), block_device.OutOfRange)
side.close()
"""
    node.put_file("/run/check.py", code)
    node.run(f"cd {CHECKOUT} && .venv/bin/python /run/check.py")
    # A host without free space reports that, and the block can still be written once the host has free space again.
    storage = cluster.lab["storage"]
    full = f"""
from pathlib import Path
from lun_backends import block_device, remote
side = remote.RemoteWriteOnce(Path("{device}"))
blank = next(extent.offset for extent in side.extents(0, side.size) if extent.kind is block_device.ExtentKind.BLANK and extent.length >= 131072)
try:
    side.writev(-(-blank // 65536) * 65536, [memoryview(b"y" * 512)])
    print("written")
except block_device.SpaceExhausted:
    print("full")
"""
    node.put_file("/run/full.py", full)
    write = f"cd {CHECKOUT} && PYTHONPATH=. .venv/bin/python /run/full.py"
    # The host could still fill space that it has allocated behind the end of the file, so free this space.
    storage.run(
        f"chunks={cluster.daemon.state}/write-once/vol0@before.chunks; truncate -s $(stat -c %s $chunks) $chunks"
    )
    storage.run("mount -o remount,size=$(df --output=used -B1 /run | tail -n 1) /run")
    assert node.output(write) == "full"
    storage.run("mount -o remount,size=50% /run")
    assert node.output(write) == "written"
    # A path that fails reports neither blank nor written blocks.
    broken = """
from pathlib import Path
from lun_backends import block_device, remote
side = remote.RemoteWriteOnce(Path("/dev/mapper/failing"))
"""
    node.run(f"modprobe dm-mod; export DM_DISABLE_UDEV=1; dmsetup create failing --table '0 32768 linear {device} 0'")
    broken += """
import subprocess
subprocess.run("export DM_DISABLE_UDEV=1; dmsetup suspend --noflush failing; dmsetup load failing --table '0 32768 error'; dmsetup resume failing", shell=True, check=True)
for call in (lambda: side.readv(0, [memoryview(bytearray(512))]), lambda: side.writev(0, [memoryview(bytearray(512))])):
    try:
        call()
    except block_device.MediumError:
        continue
    raise SystemExit("no error")
"""
    node.put_file("/run/check.py", broken)
    node.run(f"cd {CHECKOUT} && .venv/bin/python /run/check.py")
