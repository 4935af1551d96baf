# SPDX-License-Identifier: Apache-2.0
"""`make cluster-lab`: the long form of cluster_short.py, and what is too long for each change.

* fifty snapshots, from either node and two at once, while nodes stand still and links are cut;
* the taker's plug is pulled before each command of a snapshot;
* figures: how long a snapshot holds the writes of three loaded nodes; which fences wait for a write behind `fabric: lio`;
* OCFS2 on two nodes, whose snapshots a third machine replays, checks and mounts.

`pytest -s` prints the figures.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernel import cluster as clusters
from tests.kernel import image, in_flight, ocfs2
from tests.kernel.cluster import NODES, PRIMARY_AT, READER, STORAGE, WRITE_ONCE_AT, WRITERS, Bounds, Cluster
from tests.kernel.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(5400)]

SNAPSHOTS = 50
ROUNDS = 20  # snapshots for the figure


@pytest.fixture(scope="module")
def cluster(boot_image: image.Image) -> Iterator[Cluster]:
    with Lab(boot_image, [STORAGE, *NODES], memory=1536) as lab:
        yield Cluster(lab)


def say(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()


def test_writes_that_a_snapshot_holds_on_three_loaded_nodes(cluster: Cluster) -> None:
    """Print the longest pause of a writer around each snapshot: from the fence to the last node writing again."""
    cluster.machine.run(f"echo 0 > {clusters.MEDIUM}/delay")
    for node in cluster.nodes.values():
        node.write()
    usual, held = [], []
    for number in range(ROUNDS):
        pauses = [node.longest_pause() for node in cluster.nodes.values()]
        if number:
            usual.append(max(pauses))
        for node in cluster.nodes.values():
            node.wait_for_writes(2)
            node.longest_pause()
        cluster.nodes[WRITERS[number % 2]].snapshot(f"held{number}")
        for node in cluster.nodes.values():
            node.wait_for_writes(2)
        held.append(max(node.longest_pause() for node in cluster.nodes.values()))
        for node in cluster.nodes.values():
            node.wait_for_writes()
    for node in cluster.nodes.values():
        node.stop()
    cluster.machine.run(f"echo {clusters.MAX_DELAY} > {clusters.MEDIUM}/delay")
    for number in range(ROUNDS):
        cluster.check(f"held{number}")
    say(
        f"longest pause of a writer on three loaded nodes, {ROUNDS} snapshots: median {statistics.median(held):.3f} s, most "
        f"{max(held):.3f} s; without a snapshot: median {statistics.median(usual):.3f} s, most {max(usual):.3f} s"
    )


def test_fifty_snapshots_under_load(cluster: Cluster) -> None:
    """Each view is the medium at its fence, whatever happens to the node that does not take it."""
    dice = random.Random(13)
    for writer in WRITERS:
        cluster.nodes[writer].write()
    names: list[str] = []
    while len(names) < SNAPSHOTS:
        number = len(names)
        taker, other = (cluster.nodes[name] for name in dice.sample(WRITERS, 2))
        match dice.choice(("both", "alone", "alone", "machine", "daemon", PRIMARY_AT, WRITE_ONCE_AT)):
            case "both":
                with ThreadPoolExecutor() as pool:
                    pair = [f"n{number}", f"n{number + 1}"]
                    for taking in [pool.submit(cluster.take, *words) for words in zip(WRITERS, pair, strict=True)]:
                        taking.result()
                names += pair
            case what:
                least, name = cluster.ended(), f"n{number}"
                with contextlib.ExitStack() as disturbed:
                    if what in ("machine", "daemon"):
                        disturbed.enter_context(other.standing_still(what))
                    elif what != "alone":
                        disturbed.enter_context(cluster.lab.switch.without(other.machine.name, STORAGE, what))
                    taker.snapshot(name)
                for node in (taker, other):
                    node.wait_for_writes(5)
                cluster.bounds[name] = Bounds(least, cluster.begun())
                names.append(name)
    for writer in WRITERS:
        cluster.nodes[writer].stop()
    for number, name in enumerate(names):
        cluster.check(name, *((READER, *WRITERS) if number % 10 == 0 else (READER,)))
    say(f"{len(names)} snapshots show the medium at their fences")


def test_a_taker_loses_its_power_at_every_step(cluster: Cluster) -> None:
    """Before the first command of a snapshot, the second one, and so on; another node completes what is in the log."""
    halted: list[str] = []
    taken = 0
    while True:
        step = len(halted)
        taker, other = (cluster.nodes[WRITERS[(step + turn) % 2]] for turn in (0, 1))
        for node in (taker, other):
            node.write()
        least, name = cluster.ended(), f"step{step}"
        taker.machine.run(f"rm -f /run/created; echo {step} > /run/fuse")
        taker.machine.submit(f"{taker.taking(name)}; touch /run/created")
        taker.machine.wait_until("[ -e /run/halted ] || [ -e /run/created ]")
        if taker.machine.output("[ ! -e /run/created ] || echo done"):
            break
        halted.append(taker.machine.output("cat /run/halted"))
        begun = taker.writes()[0]
        taker.machine.power_off()
        other.wait_for_writes(20)
        if cluster.machine.run(f"grep -qx {name} {clusters.MEDIUM}/names/*", check=False).code == 0:
            taken += 1
            other.view(name)  # the fence is complete
            most = {taker.machine.name: begun, other.machine.name: other.writes()[0]}
            cluster.bounds[name] = Bounds(least, most)
            other.stop()
            cluster.check(name, READER, other.machine.name)
        else:
            other.stop()
        cluster.boot(taker.machine.name).await_status()
    for node in (taker, other):
        node.machine.run("rm -f /run/fuse")
        node.stop()
    cluster.check(name)
    say(f"the plug was pulled before each of {', '.join(halted)}; {taken} of these snapshots were taken all the same")
    assert {"Append", "Preempt", "ResetLogicalUnit", "Flush", "Register"} <= set(halted)


def test_fences_and_writes_in_flight_behind_the_kernels_target(boot_image: image.Image) -> None:
    """The table of lun_backends/cluster/README.md, for a volume of `fabric: lio`."""
    with Lab(boot_image, ["target", "node"]) as lab:
        lab["node"].run("modprobe -a iscsi_tcp sd_mod sg && iscsid")
        target = in_flight.Target(lab["target"], lab["node"])
        for fence in in_flight.FENCES:
            seen = target.see(fence)
            say(f"{fence}: {'waited' if seen.waited else 'not waited'}, {seen}")
            assert fence.waits in (None, seen.waited)
        target.close()


def test_ocfs2_on_two_nodes_is_whole_in_every_snapshot(boot_image: image.Image) -> None:
    ocfs2.ensure()
    with Lab(boot_image, [STORAGE, *NODES], memory=1024) as lab:
        mounted = ocfs2.Mounted(Cluster(lab, size=ocfs2.SIZE, delay=0))
        for number in range(4):
            mounted.take(WRITERS[number % 2], f"fs{number}")
        mounted.finish()
        for number in range(4):
            say(mounted.check(f"fs{number}"))
