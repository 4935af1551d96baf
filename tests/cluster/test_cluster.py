# SPDX-License-Identifier: Apache-2.0
"""Three nodes and a storage host in network namespaces: snapshots under verified load, whatever fails meanwhile.

The tests share one cluster, because its start takes longer than most of them.  Each has cells of its own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.control import client
from tests.cluster import cluster as hosts
from tests.cluster import load
from tests.cluster.cluster import LATE, NODES, SIZE, STORAGE, VOLUME, Cluster
from tests.cluster.under_load import Taken, mine, regions, some, writing

_CONFLICT = 0x18


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_snapshots_under_load_show_one_moment_on_every_node(cluster: Cluster, tmp_path: Path) -> None:
    """Snapshots from alternating nodes and two at once, then whatever can be done with them, on different nodes."""
    with writing(cluster, ["alpha"], ["beta"], ["alpha", "beta", "gamma"]) as writers:
        taken, traffic = Taken(cluster, writers), cluster.network.traffic()
        for number, node in enumerate(NODES):
            taken.take(node, f"s{number}")
            some(writers)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for one in [pool.submit(taken.take, node, f"with-{node}") for node in NODES[:2]]:
                one.result()
        some(writers)
        listed = cluster.names("alpha")
        assert sorted(listed) == sorted(taken.bounds)
        cluster.wait_for_names(listed, (*NODES, STORAGE))
        taken.check(NODES)

        # The other snapshots are as true as before when one of them is gone.
        cluster.run("beta", "snapshot", "delete", f"{VOLUME}@s1")
        cluster.wait_for_names([name for name in listed if name != "s1"], (*NODES, STORAGE))
        del taken.bounds["s1"]
        taken.check(["gamma"])
        image = tmp_path / "image.img"
        cluster.run("beta", "snapshot", "export", f"{VOLUME}@s2", str(image))
        load.check(image.read_bytes(), writers, *taken.bounds["s2"])
        changed = cluster.run("gamma", "snapshot", "diff", f"{VOLUME}@s0", f"{VOLUME}@s2")
        assert 0 < changed["changed_bytes"] < SIZE
        assert cluster.run("alpha", "snapshot", "verify", f"{VOLUME}@s0")["sound"]
        between = {pair: count for pair, count in traffic.close().items() if STORAGE not in pair}
    assert between == {}
    registered = {node["name"]: node["registered"] for node in cluster.run("alpha", "node", "list", VOLUME)}
    assert registered == dict.fromkeys(NODES, True)


def test_preserved_write_costs_the_device_what_it_costs_on_one_host(cluster: Cluster) -> None:
    """No message goes from node to node, and none to a device but the write itself."""
    cluster.take("alpha", "cost")
    cluster.wait_for_epoch()
    with cluster.session("alpha") as session:
        session.settle(0)
        write = bytes([0x8A, 0]) + (next(regions) * 8).to_bytes(8) + (8).to_bytes(4) + bytes(2)
        assert session.command(0, write, out=bytes(load.CELL)).status == 0  # this one is preserved first
        traffic, costs = cluster.network.traffic(), []
        for _ in range(5):
            before = cluster.commands()
            for _ in range(100):
                assert session.command(0, write, out=bytes(load.CELL)).status == 0
            after = cluster.commands()
            costs.append({name: after[name] - before.get(name, 0) for name in after if not name.endswith("/log")})
        packets = traffic.close()
    assert {pair: count for pair, count in packets.items() if STORAGE not in pair} == {}
    # Now and then a node asks all LUNs what they are, so the best of some rounds counts.
    least = {name: min(cost[name] for cost in costs) for name in costs[0]}
    assert least == {name: 100 if name == VOLUME else 0 for name in least}


def test_node_that_is_cut_off_stopped_or_killed_holds_up_no_other(cluster: Cluster) -> None:
    """Each of them comes back, and no write that was acknowledged is lost."""
    with writing(cluster, ["alpha"], ["beta"]) as (steady, troubled):
        both, process = [steady, troubled], cluster.hosts["beta"].process
        taken = Taken(cluster, both)
        assert process is not None

        cluster.network.cut("beta")
        taken.take("alpha", "while-cut")
        some([steady])
        cluster.network.heal("beta")
        some(both)

        os.kill(process.pid, signal.SIGSTOP)
        taken.take("gamma", "while-stopped")
        some([steady])
        os.kill(process.pid, signal.SIGCONT)
        some(both)

        taking = threading.Thread(target=_try_to_take, args=(cluster, "gamma", "killed"))
        taking.start()
        time.sleep(0.02)
        cluster.hosts["gamma"].kill()
        taking.join()
        some([steady])
        taken.take("alpha", "after")
        some(both)
        cluster.start("gamma")
        cluster.wait_for_state("gamma", "armed")
    assert mine(cluster.names("gamma"), taken) == ["while-cut", "while-stopped", "after"]
    taken.check(NODES)
    with cluster.session("gamma") as session:
        load.check(hosts.read(session, 0, SIZE), both, load.ended(both), load.begun(both))


def _try_to_take(cluster: Cluster, node: str, name: str) -> None:
    with contextlib.suppress(client.Failed):
        cluster.take(node, name)


def test_storage_host_that_starts_again_loses_nothing(cluster: Cluster) -> None:
    with writing(cluster, ["alpha"], ["beta"]) as writers:
        taken = Taken(cluster, writers)
        taken.take("alpha", "before-kill")
        some(writers)
        cluster.hosts[STORAGE].kill()
        cluster.start_storage()
        some(writers)
        taken.take("beta", "after-kill")
        some(writers)
    taken.check(NODES)


def test_late_node_takes_part_and_an_expelled_one_does_not(cluster: Cluster) -> None:
    with writing(cluster, ["alpha"]) as writers:
        taken = Taken(cluster, writers)
        taken.take("beta", "before-late")
        some(writers)
        cluster.start_alone(LATE)
        cluster.run(LATE, "node", "join", VOLUME, cluster.primary, "--lun", "0", "--node", LATE)
        cluster.wait_for_state(LATE, "armed")
        taken.check([*NODES, LATE])
        cluster.hosts[LATE].run("shell", "saveconfig")
        cluster.run(LATE, "node", "leave", VOLUME)
        with pytest.raises(client.Failed, match="there is no volume"):
            cluster.take(LATE, "never")
        cluster.hosts[LATE].stop()
        cluster.hosts[LATE].start(text=cluster.hosts[LATE].configuration.read_text())
        cluster.wait_for_state(LATE, "armed")
        taken.take(LATE, "by-late")
        some(writers)
        expelled = cluster.run("gamma", "node", "expel", VOLUME, LATE)
        assert [node["name"] for node in expelled if node["expelled"]] == [LATE]
        cluster.wait_for_state(LATE, "out")
        hosts.wait(lambda: "node-expelled" in {alert.code for alert in cluster.ask(LATE).alerts()}, "no alert")
        with pytest.raises(client.Failed):
            cluster.take(LATE, "never")
        taken.take("gamma", "without-late")
        some(writers)
    taken.check(NODES)
    cluster.hosts[LATE].stop()


def test_initiator_that_was_not_invited_is_fenced(cluster: Cluster) -> None:
    with cluster.network.on(LATE):
        stranger = cluster.hosts[STORAGE].session(initiator="iqn.2026-11.org.example:stranger")
    with stranger:
        stranger.settle(0)
        where = bytes(1) + bytes(8) + (8).to_bytes(4) + bytes(2)
        assert stranger.command(0, bytes([0x88]) + where, read=load.CELL).status == _CONFLICT
        assert stranger.command(0, bytes([0x8A]) + where, out=bytes(load.CELL)).status == _CONFLICT


def test_volume_is_restored_on_one_node_for_all(cluster: Cluster) -> None:
    with writing(cluster, ["alpha"], ["beta"]) as writers:
        taken = Taken(cluster, writers)
        taken.take("alpha", "before-restore")
        some(writers)
    cluster.run("gamma", "snapshot", "restore", f"{VOLUME}@before-restore", "--force")
    for node in NODES:
        cluster.wait_for_state(node, "armed")
        with cluster.session(node) as session:
            load.check(hosts.read(session, 0, SIZE), writers, *taken.bounds["before-restore"])
    taken.check(NODES)
