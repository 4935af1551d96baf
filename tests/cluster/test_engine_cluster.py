# SPDX-License-Identifier: Apache-2.0
"""Two nodes on one shared primary whose snapshots are in Ceph or in object storage, under verified load.

Nothing but the services keeps log and snapshots.  OSD, gateway and nodes fail meanwhile, and calls land late.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import cluster as hosts
from tests.cluster import load
from tests.cluster.cluster import LATE, SIZE, VOLUME
from tests.cluster.engine_cluster import TIMEOUT, EngineCluster
from tests.cluster.load import Writer
from tests.cluster.under_load import REGION, Taken, regions, some, writing


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineCluster]:
    with EngineCluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_all_that_a_snapshot_can_do_works_on_each_node(cluster: EngineCluster, tmp_path: Path) -> None:
    alpha, beta = cluster.nodes
    with writing(cluster, [alpha], [beta], [alpha, beta]) as writers:
        taken = Taken(cluster, writers)
        for number, node in enumerate((alpha, beta, alpha)):
            taken.take(node, f"s{number}")
            some(writers)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for one in [pool.submit(taken.take, node, f"with-{node}") for node in cluster.nodes]:
                one.result()
        some(writers)
        listed = cluster.names(alpha)
        assert sorted(listed) == sorted(taken.bounds)
        cluster.wait_for_names(listed)
        taken.check(cluster.nodes)

        cluster.run(alpha, "snapshot", "hold", f"{VOLUME}@s1", "--reason", "audit")
        refused = cluster.hosts[beta].run("snapshot", "delete", f"{VOLUME}@s1", check=False)
        assert "audit" in refused.stderr
        cluster.run(beta, "snapshot", "release", f"{VOLUME}@s1")
        cluster.run(beta, "snapshot", "delete", f"{VOLUME}@s1")
        cluster.wait_for_names([name for name in listed if name != "s1"])
        del taken.bounds["s1"]
        taken.check(cluster.nodes)
        image = tmp_path / "image.img"
        cluster.run(beta, "snapshot", "export", f"{VOLUME}@s2", str(image))
        load.check(image.read_bytes(), writers, *taken.bounds["s2"])
        changed = cluster.run(alpha, "snapshot", "diff", f"{VOLUME}@s0", f"{VOLUME}@s2")
        assert 0 < changed["changed_bytes"] < SIZE
        assert cluster.run(beta, "snapshot", "verify", f"{VOLUME}@s0")["sound"]
        cluster.run(alpha, "snapshot", "label", f"{VOLUME}@s2", "by=test")
        cluster.run(alpha, "snapshot", "expire", f"{VOLUME}@s2", "1d")
        cluster.run(beta, "snapshot", "rename", f"{VOLUME}@s0", "first")
        taken.bounds["first"] = taken.bounds.pop("s0")
        shown = cluster.run(beta, "snapshot", "show", f"{VOLUME}@s2")
        assert shown["labels"] == {"by": "test"}
        assert shown["expires"] is not None
        assert 0 < shown["preserved_bytes"] <= SIZE
    registered = {node["name"]: node["registered"] for node in cluster.run(alpha, "node", "list", VOLUME)}
    assert registered == dict.fromkeys(cluster.nodes, True)
    assert cluster.run(alpha, "status")["volumes"][0]["store"] == "rados"
    cluster.run(beta, "snapshot", "restore", f"{VOLUME}@first", "--force")
    for node in cluster.nodes:
        cluster.wait_for_state(node, "armed")
        with cluster.session(node) as session:
            load.check(hosts.read(session, 0, SIZE), writers, *taken.bounds["first"])
    taken.check(cluster.nodes)


def test_nothing_is_lost_when_an_osd_fails_and_calls_land_late(cluster: EngineCluster) -> None:
    alpha, beta = cluster.nodes
    with writing(cluster, [alpha], [beta]) as writers:
        taken = Taken(cluster, writers)
        taken.take(alpha, "before")
        some(writers)

        cluster.ceph.kill("ceph-osd")
        cluster.ceph.ceph("osd", "down", "0")  # so that the monitor does not wait until it misses it
        cluster.ceph.start_osd()
        some(writers)
        taken.take(beta, "after-osd")
        some(writers)

        cluster.ceph.signal("ceph-osd", signal.SIGSTOP)  # puts and records get no answer, and land later
        time.sleep(TIMEOUT + 2)
        cluster.ceph.signal("ceph-osd", signal.SIGCONT)
        some(writers)
        taken.take(alpha, "after-silence")
        some(writers)

        process = cluster.hosts[alpha].process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        taken.take(beta, "while-stopped")
        cluster.run(beta, "snapshot", "delete", f"{VOLUME}@after-osd")
        some(writers[1:])
        os.kill(process.pid, signal.SIGCONT)
        some(writers)
    del taken.bounds["after-osd"]
    taken.check(cluster.nodes)


def test_nothing_is_lost_when_a_node_is_killed(cluster: EngineCluster) -> None:
    alpha, beta = cluster.nodes
    with writing(cluster, [alpha]) as steady, cluster.session(beta) as session:
        first = next(regions)
        writers = [*steady, Writer([session], first, REGION, first, mortal=True)]
        taken = Taken(cluster, writers)
        writers[1].start()
        taken.take(beta, "before-kill")
        some(writers)
        cluster.hosts[beta].kill()
        writers[1].stop()
        taken.take(alpha, "after-kill")
        some(steady)
        cluster.start(beta)
        cluster.wait_for_state(beta, "armed")
        taken.take(beta, "by-the-dead")
        some(steady)
        cluster.run(beta, "node", "leave", VOLUME)
        place = [word for pair in cluster.place.items() for word in ("--place", "=".join(pair))]
        cluster.run(
            beta, "node", "join", VOLUME, cluster.primary, "--lun", "0", "--node", beta, "--store", "rados", *place
        )
        cluster.wait_for_state(beta, "armed")
    taken.check(cluster.nodes)
    with cluster.session(beta) as session:
        load.check(hosts.read(session, 0, SIZE), writers, load.ended(writers), load.begun(writers))


def test_node_of_another_place_or_another_primary_is_refused(cluster: EngineCluster) -> None:
    """It would fence the others, and preserve where they do not look."""
    for wrong, why in (
        (cluster.text(LATE, namespace="elsewhere"), "initiators are registered at its primary"),
        (cluster.text(LATE, primary=cluster.other), "and that of the volume is"),
    ):
        cluster.start(LATE, wrong)
        hosts.wait(lambda why=why: why in cluster.ask(LATE).volume(VOLUME).trouble, f"not refused: {why}")  # type: ignore[misc]
        cluster.hosts.pop(LATE).stop()
    for node in cluster.nodes:
        cluster.wait_for_state(node, "armed")


def test_two_nodes_keep_their_snapshots_in_object_storage(cluster: EngineCluster) -> None:
    cluster.move_to_objects()
    alpha, beta = cluster.nodes
    with writing(cluster, [alpha], [beta], [alpha, beta]) as writers:
        taken = Taken(cluster, writers)
        for number, node in enumerate((alpha, beta, alpha)):
            taken.take(node, f"o{number}")
            some(writers)
        cluster.ceph.kill("radosgw")
        time.sleep(1)
        cluster.ceph.start_gateway()
        some(writers)
        cluster.run(beta, "snapshot", "delete", f"{VOLUME}@o1")
        del taken.bounds["o1"]
        some(writers)
    cluster.wait_for_names(["o0", "o2"])
    taken.check(cluster.nodes)
    assert cluster.run(beta, "snapshot", "verify", f"{VOLUME}@o0")["sound"]
