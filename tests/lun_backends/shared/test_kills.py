# SPDX-License-Identifier: Apache-2.0
"""A node is killed with SIGKILL at every step of a job.  The others go on at once, and the past stays what it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.cluster import node as cluster_node
from tests.lun_backends.memory_side import block
from tests.lun_backends.shared.rig import CHUNK, PATIENCE, Array, Writer, check_views, content, nodes, settle, wait


class Mortals:
    """Nodes that kill themselves, see `child`."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lun_backends.shared.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, job: str, after: int = 0, node: str = "mortal") -> int:
        """Let a node begin a job; return its process."""
        host, port = self._array.served.portal.address
        order = {
            "portal": f"{host}:{port}",
            "luns": [str(lun) for lun in self._array.luns],
            "node": node,
            "job": job,
            "after": after,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        word, pid = self.answer().split()
        assert word == "pid"
        return int(pid)

    def answer(self) -> str:
        """Return the next line that a node says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def dies(self, job: str, after: int) -> bool:
        """Let a node do a job until it has sent `after` commands.  Return whether it was killed, and not done before."""
        self.begin(job, after)
        answer = self.answer()
        assert answer in ("killed", "done"), answer
        return answer == "killed"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


@pytest.fixture
def big_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Array]:
    monkeypatch.setattr(cluster_node, "POLL", 0.05)
    monkeypatch.setattr(cluster_node, "RESCAN", 0.05)
    made = Array(tmp_path, pool=32, size=256 << 10)
    yield made
    made.close()


@pytest.fixture
def mortals(big_array: Array) -> Iterator[Mortals]:
    made = Mortals(big_array)
    yield made
    made.close()


def test_a_taker_is_killed_at_every_step(big_array: Array, mortals: Mortals) -> None:
    with nodes(big_array, "one", "two") as opened:
        writers = [Writer(node, share, 2, share) for share, node in enumerate(opened)]
        for writer in writers:
            writer.start()
        step = 0
        while mortals.dies(f"take s{step}", step):
            wait(lambda: all(node.refresh() and not node.status.pending for node in opened))
            step += 1
        for writer in writers:
            writer.finish()
        assert step > 8
        taken = {snapshot.name for snapshot in opened[0].snapshots}
        assert f"s{step}" in taken
        assert "s0" not in taken  # it died before the log had it
        assert check_views(big_array, *opened) == 2 * len(taken)


@pytest.mark.parametrize("after", [0, 3])
def test_a_rollback_is_killed_and_goes_on(big_array: Array, mortals: Mortals, after: int) -> None:
    with nodes(big_array, "one") as (one,):
        for number in range(8):
            one.device.writev(number * CHUNK, block(number + 1))
        one.create_snapshot("before")
        for number in range(8):
            one.device.writev(number * CHUNK, block(number + 101))
        one.create_snapshot("after")
        assert mortals.dies("rollback before", after)
        assert one.refresh()
        assert one.status.rolling_back == "mortal"
        with nodes(big_array, "mortal"):
            wait(lambda: not one.status.rolling_back)
            settle(big_array, one)
            assert content(one.device) == big_array.moments[1]
            assert check_views(big_array, one) == 2


@pytest.mark.parametrize("after", [0, 1])
def test_a_deletion_is_killed_and_another_node_finishes_it(big_array: Array, mortals: Mortals, after: int) -> None:
    with nodes(big_array, "one", takeover=0.2) as (one,):
        for at, name in enumerate("abc"):
            for chunk in range(0, 60, at + 2):
                one.device.writev(chunk * CHUNK, block(ord(name)))
            one.create_snapshot(name)
        for chunk in range(60):
            one.device.writev(chunk * CHUNK, block(chunk))
        assert check_views(big_array, one) == 3
        assert mortals.dies("delete b", after)
        wait(lambda: one.refresh() and [snapshot.name for snapshot in one.snapshots] == ["a", "c"])
        assert check_views(big_array, one) == 2


def test_a_node_is_stopped_and_goes_on_under_load(big_array: Array, mortals: Mortals) -> None:
    """SIGSTOP at any moment of its writes: it wakes in an epoch that is over, and knows nothing of that."""
    with nodes(big_array, "one") as (one,):
        writer = Writer(one, 0, 2, 0)
        writer.start()
        stopped = mortals.begin("load 4")
        wait(lambda: any(seen.name == "" for seen in one.nodes()) or len(one.nodes()) > 1)
        for number in range(6):
            time.sleep(0.1)
            os.kill(stopped, signal.SIGSTOP)
            try:
                one.create_snapshot(f"s{number}")
                time.sleep(0.1)
            finally:
                os.kill(stopped, signal.SIGCONT)
        written = json.loads(mortals.answer())
        assert mortals.answer() == "done"
        writer.finish()
        other = Writer(one, 1, 2, 1)
        other.written = {int(block): number for block, number in written.items()}
        other.check(content(one.device))
        assert check_views(big_array, one) == 6
