# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a volume that two machines write, a third one reads, and a storage host keeps.

Each view must be, bit for bit, what was on the medium of the primary at the fence, which the storage host records apart from
copy-on-write.  `make cluster-lab` runs this, and the long form (cluster_lab.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernel import image
from tests.kernel.cluster import NODES, PRIMARY_AT, READER, STORAGE, WRITE_ONCE_AT, WRITERS, Bounds, Cluster
from tests.kernel.lab import Lab
from tests.kernel.machine import MachineGone
from tests.kernel.sessions import Session

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

WRITE_ONCE = "iqn.2026-11.io.wolun:archive"
UNINVITED = "iqn.2026-11.test.lab:uninvited"


@pytest.fixture(scope="module")
def cluster(boot_image: image.Image) -> Iterator[Cluster]:
    with Lab(boot_image, [STORAGE, *NODES], memory=512) as lab:
        yield Cluster(lab)


@pytest.fixture
def load(cluster: Cluster) -> Iterator[None]:
    for writer in WRITERS:
        cluster.nodes[writer].write()
    yield
    for writer in WRITERS:
        if cluster.lab[writer].running:
            cluster.nodes[writer].stop()


def test_snapshots_of_both_writers_show_the_medium_at_their_fences(cluster: Cluster, load: None) -> None:
    """Snapshots from either node, and two at once, while both write; the reader sees them."""
    for number in range(4):
        cluster.take(WRITERS[number % 2], f"in-turn{number}")
        cluster.nodes[WRITERS[number // 2]].wait_for_writes(3)
    with ThreadPoolExecutor() as pool:
        for taking in [pool.submit(cluster.take, node, f"by-{node}") for node in WRITERS]:
            taking.result()
    for writer in WRITERS:
        cluster.nodes[writer].wait_for_writes()
    for number in range(4):
        cluster.check(f"in-turn{number}")
    cluster.check("by-node1", READER, "node1")
    cluster.check("by-node2")


@pytest.mark.parametrize("what", ["machine", "daemon"])
def test_a_node_that_stood_still_writes_only_behind_the_fence(cluster: Cluster, load: None, what: str) -> None:
    """One node stands still in the midst of its writes; another takes a snapshot; the first one goes on."""
    still = cluster.nodes["node2"]
    before = still.writes()[1]
    with still.standing_still(what):
        least = cluster.nodes["node1"].writes()[1]
        cluster.nodes["node1"].snapshot(f"still-{what}")
        most = cluster.nodes["node1"].writes()[0]
        cluster.nodes["node1"].wait_for_writes()
    # The node had begun no more writes than it had when it went on, and ended no fewer than before it stood still.
    still.wait_for_writes()
    bounds = Bounds({"node1": least, "node2": before}, {"node1": most, "node2": still.writes()[0]})
    cluster.bounds[f"still-{what}"] = bounds
    cluster.check(f"still-{what}", READER, "node2")


@pytest.mark.parametrize("end", [PRIMARY_AT, WRITE_ONCE_AT, "node1"])
def test_a_link_of_a_node_is_cut(cluster: Cluster, load: None, end: str) -> None:
    """The link to the primary, to the write-once side, or to the other node; that one takes a snapshot meanwhile."""
    cut = ("node2", "node1") if end == "node1" else ("node2", STORAGE, end)
    least = cluster.ended()
    with cluster.lab.switch.without(*cut):
        cluster.nodes["node1"].snapshot(f"cut-{end}")
        cluster.nodes["node1"].wait_for_writes()
    cluster.nodes["node2"].wait_for_writes()
    cluster.bounds[f"cut-{end}"] = Bounds(least, cluster.begun())
    cluster.check(f"cut-{end}", READER, "node2")


def test_a_nodes_daemon_is_killed(cluster: Cluster, load: None) -> None:
    """The node's initiators see only a pause, and its disks stay."""
    killed = cluster.nodes["node2"]
    least = cluster.ended()
    killed.daemon.kill()
    cluster.nodes["node1"].snapshot("killed")
    killed.start_again()
    killed.wait_for_writes()
    cluster.bounds["killed"] = Bounds(least, cluster.begun())
    cluster.check("killed", READER, "node2")


def test_the_storage_host_restarts(cluster: Cluster, load: None) -> None:
    cluster.take("node1", "before-restart")
    cluster.restart_storage()
    for writer in WRITERS:
        cluster.nodes[writer].wait_for_writes()
    cluster.take("node2", "after-restart")
    cluster.check("before-restart")
    cluster.check("after-restart")


def test_an_uninvited_initiator_neither_reads_nor_writes(cluster: Cluster, load: None) -> None:
    """It logs in beside the reader's session; the primary refuses it, before and after a snapshot."""
    uninvited = Session.open(cluster.lab[READER], UNINVITED, PRIMARY_AT)
    reader, disk = uninvited.node, uninvited.disk
    for number in range(2):
        wrote = reader.run(f"dd if=/dev/urandom of={disk} bs=4096 count=16 oflag=direct", check=False)
        read = reader.run(f"dd if={disk} of=/dev/null bs=4096 count=1 iflag=direct", check=False)
        assert "Invalid exchange" in wrote.output, wrote.output  # EBADE
        assert "Invalid exchange" in read.output, read.output
        cluster.take("node1", f"uninvited{number}")
    uninvited.close()
    for number in range(2):
        cluster.check(f"uninvited{number}")


def test_a_write_once_lun_becomes_visible_late(cluster: Cluster, load: None) -> None:
    """A node whose kernel does not find new LUNs stays out, and holds up no other; later it joins by itself."""
    late, machine = cluster.nodes["node2"], cluster.lab["node2"]
    (pool,) = json.loads(cluster.write_once.wolun("--json", "status"))["pools"]
    blank = [lun["lun"] for lun in pool["luns"] if lun["state"] == "blank"]
    session = f"$(dirname $(grep -lx {WRITE_ONCE} /sys/class/iscsi_session/*/targetname))"
    scans = "$(readlink -f /sys/class/scsi_host/host*/scan)"
    machine.run(f"for scan in {scans}; do mount --bind /dev/null $scan; done")
    for lun in blank:
        machine.run(f"for gone in {session}/device/target*/*:{lun}/delete; do [ ! -e $gone ] || echo 1 > $gone; done")
    least = cluster.ended()
    cluster.nodes["node1"].snapshot("late")
    late.await_status("is not visible")
    cluster.nodes["node1"].wait_for_writes()
    machine.run(f"for scan in {scans}; do umount $scan; done")
    late.wait_for_writes()
    cluster.bounds["late"] = Bounds(least, cluster.begun())
    cluster.check("late", READER, "node2")


def test_a_taker_loses_its_power_within_its_fence(cluster: Cluster, load: None) -> None:
    """Between PREEMPT and LOGICAL UNIT RESET; another node completes the fence."""
    least = cluster.ended()
    taker = cluster.nodes["node1"]
    taker.machine.run("echo ResetLogicalUnit > /run/fuse")
    taking = taker.machine.submit(taker.taking("power"))
    taker.machine.wait_until("[ -e /run/halted ]")
    begun = taker.writes()[0]
    taker.machine.power_off()
    with pytest.raises(MachineGone):
        taking.result()
    cluster.nodes["node2"].wait_for_writes()
    cluster.bounds["power"] = Bounds(least, {"node1": begun, "node2": cluster.nodes["node2"].writes()[0]})
    cluster.check("power", READER, "node2")
