# SPDX-License-Identifier: Apache-2.0
"""Four machines: a storage host, two nodes that write and one that reads, with disks of open-iscsi below (SG_IO).

Snapshots are taken while both nodes write.  A view must show a moment of each node's writes, the same on all nodes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.kernel import image
from tests.kernel.cells import COUNT
from tests.kernel.guest_daemon import GuestDaemon, sys_disk
from tests.kernel.lab import CHECKOUT, Lab
from tests.kernel.machine import Completed, Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

STORAGE = """
target: iqn.2026-11.io.wolun:storage
portal: {listen: 0.0.0.0:3260}
access: {networks: [10.9.0.0/24]}
volumes:
  - {name: vol0, lun: 0, size: 8MiB}
write_once:
  - {volume: vol0, size: 8MiB, pool: 3}
"""
NODE = """
target: iqn.2026-11.io.wolun:%s
fabric: lio
lio: {listen: [], loopback: true}
volumes: []
shared:
  - {name: vol0, node: %s, primary: %s, lun: 0}
"""
WRITERS = ("node1", "node2")
READER = "node3"
NODES = (*WRITERS, READER)
CELLS = f"python3 -S {CHECKOUT}/tests/kernel/cells.py"
STATUS = "/run/cells"
LOAD_TIMEOUT = 1000  # seconds


class Node:
    """A machine with the daemon, its disk of the volume, and its writer."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine, self.first = machine, number * COUNT
        machine.run(
            "modprobe -a iscsi_tcp sd_mod sg && iscsid\n"
            "iscsiadm -m discovery -t sendtargets -p storage && iscsiadm -m node --login"
        )
        primary = sys_disk(machine, "/sys/class/iscsi_session/session*/device/target*/*:0/block/*")
        self.daemon = GuestDaemon(machine, NODE % (machine.name, machine.name, primary), name="node")
        self.daemon.start()
        self.disk = self.own_disk(0)
        self.load: Future[Completed] | None = None

    def own_disk(self, lun: int) -> str:
        """Return the disk that this machine's daemon serves under that number; the storage host has the same numbers."""
        return sys_disk(self.machine, f"/sys/devices/tcm_loop_0/tcm_loop_adapter_*/host*/target*/*:{lun}/block/*")

    def write(self) -> None:
        """Begin to write."""
        self.machine.run(f"rm -f {STATUS}.stop")
        self.load = self.machine.submit(f"{CELLS} write {self.disk} {self.first} {STATUS}", timeout=LOAD_TIMEOUT)
        self.wait_for_writes()

    def stop(self) -> None:
        """End the writer.  Raise AssertionError if a write failed."""
        assert self.load is not None
        self.machine.run(f"touch {STATUS}.stop")
        ended = self.load.result(LOAD_TIMEOUT)
        assert ended.code == 0, ended.output

    def writes(self) -> tuple[int, int]:
        """Return how many writes have begun, and how many have ended."""
        shown = bytes.fromhex(self.machine.output(f"od -An -v -tx1 {STATUS} | tr -d ' \\n'"))
        begun, ended = struct.unpack("<QQ", shown)
        return begun, ended

    def wait_for_writes(self, count: int = 10) -> None:
        """Return when that many further writes have ended."""
        number = f"$(od -An -j8 -N8 -tu8 {STATUS} 2> /dev/null || echo 0)"
        self.machine.wait_until(f"[ {number} -ge {count + int(self.machine.output(f'echo {number}'))} ]")

    def view(self, name: str) -> str:
        """Return the disk of a snapshot's view, once the node serves it."""
        find = f"[print(s['view_lun']) for s in json.load(sys.stdin) if s['name'] == '{name}' and s['view_lun'] is not None]"
        lun = self.machine.wait_until(
            f'{self.daemon.command} --json snapshot list vol0 | python3 -S -c "import json, sys; {find}" | grep .'
        )
        return self.own_disk(int(lun))


class Cluster:
    """The machines, and what each snapshot must show."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.storage = GuestDaemon(lab["storage"], STORAGE)
        self.storage.start()
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda pair: Node(lab[pair[1]], pair[0]), enumerate(NODES))
            self.nodes = dict(zip(NODES, made, strict=True))
        self.bounds: dict[str, list[tuple[int, int]]] = {}

    def take(self, node: str, name: str) -> None:
        """Take a snapshot on a node."""
        least = [self.nodes[writer].writes()[1] for writer in WRITERS]
        self.nodes[node].daemon.snapshot("vol0", name)
        most = [self.nodes[writer].writes()[0] for writer in WRITERS]
        self.bounds[name] = list(zip(least, most, strict=True))

    def check(self, name: str, nodes: tuple[str, ...] = (READER,)) -> None:
        """Check what a snapshot shows."""
        sums = set()
        for node in nodes:
            disk, machine = self.nodes[node].view(name), self.lab[node]
            for writer, (least, most) in zip(WRITERS, self.bounds[name], strict=True):
                machine.run(f"{CELLS} check {disk} {self.nodes[writer].first} {least} {most}")
            sums.add(machine.output(f"dd if={disk} bs=1M iflag=direct status=none | sha256sum"))
        assert len(sums) == 1


@pytest.fixture(scope="module")
def cluster(boot_image: image.Image) -> Iterator[Cluster]:
    with Lab(boot_image, ["storage", *NODES], memory=512) as lab:
        yield Cluster(lab)


@pytest.fixture
def load(cluster: Cluster) -> Iterator[None]:
    for writer in WRITERS:
        cluster.nodes[writer].write()
    yield
    for writer in WRITERS:
        cluster.nodes[writer].stop()


def test_snapshots_of_both_writers_show_one_moment(cluster: Cluster, load: None) -> None:
    """Snapshots from one node and two at once, while both write; the reader sees them."""
    cluster.take("node1", "one")
    with ThreadPoolExecutor() as pool:
        for taking in [pool.submit(cluster.take, node, f"by-{node}") for node in WRITERS]:
            taking.result()
    for writer in WRITERS:
        cluster.nodes[writer].wait_for_writes()
    cluster.check("one", (READER, "node1"))
    cluster.check("by-node1")
    cluster.check("by-node2")


def test_a_node_that_stood_still_writes_only_behind_the_fence(cluster: Cluster, load: None) -> None:
    """One node's machine is stopped in the midst of its writes; another takes a snapshot; the first one goes on."""
    before = cluster.nodes["node2"].writes()[1]
    cluster.lab["node2"].pause()
    try:
        least = cluster.nodes["node1"].writes()[1]
        cluster.nodes["node1"].daemon.snapshot("vol0", "stopped")
        most = cluster.nodes["node1"].writes()[0]
        cluster.nodes["node1"].wait_for_writes()
    finally:
        cluster.lab["node2"].resume()
    # The node had begun no more writes than it had when it went on, and ended no fewer than before it stood still.
    cluster.nodes["node2"].wait_for_writes()
    cluster.bounds["stopped"] = [(least, most), (before, cluster.nodes["node2"].writes()[0])]
    cluster.check("stopped", (READER, "node2"))
