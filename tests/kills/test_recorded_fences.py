# SPDX-License-Identifier: Apache-2.0
"""A storage host that records the medium at each fence, and two nodes that write; takers are killed in the midst of it.

Each view must be, bit for bit, what the recorder (tests/kernel/recorder.py) says was on the medium, apart from copy-on-write.
`make cluster-lab` does the same with machines and Linux as the initiator.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from target.control.client import Client
from tests import peers

pytestmark = pytest.mark.timeout(600)

SIZE = 8 << 20
PATIENCE = 120.0  # seconds
STEPS = ("Append", "Preempt", "ResetLogicalUnit", "Register")  # the taker is killed before its first such command
STORAGE = """
target: iqn.2026-11.io.wolun:storage
portal: {{listen: 127.0.0.1:0}}
access: {{networks: [127.0.0.0/8]}}
volumes:
  - {{name: vol0, lun: 0, size: 8MiB, primary: {image}}}
write_once:
  - {{volume: vol0, size: 8MiB, pool: 3}}
"""
NODE = """
target: iqn.2026-11.io.wolun:node
portal: {{listen: 127.0.0.1:0}}
access: {{networks: [127.0.0.0/8]}}
volumes: []
shared:
  - {{name: vol0, node: {name}, primary: "iscsi://{portal}/iqn.2026-11.io.wolun:storage/0", lun: 0}}
"""


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


class Program:
    """A daemon in a process of its own."""

    def __init__(self, module: str, directory: Path, configuration: str, medium: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self._module, self._medium = directory, module, medium
        (directory / "wolun.yaml").write_text(configuration)
        self.start()

    def start(self) -> None:
        for left in ("fuse", "halted"):
            (self.directory / left).unlink(missing_ok=True)
        words = ["serve", "--config", str(self.directory / "wolun.yaml"), "--state-dir", str(self.directory / "state")]
        variables = {"WOLUN_LAB_MEDIUM": str(self._medium), "WOLUN_LAB_RUN": str(self.directory)}
        log = (self.directory / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.kernel.{self._module}", *words],
            env=os.environ | variables,
            stdout=log,
            stderr=log,
        )
        wait(lambda: "\nready:" in (self.directory / "log").read_text())

    @property
    def client(self) -> Client:
        return Client(self.directory / "state")

    @property
    def portal(self) -> str:
        return str(self.client.status().portal)

    def wait_armed(self) -> None:
        wait(lambda: [volume.sharing.state for volume in self.client.status().volumes if volume.sharing] == ["armed"])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Program]]:
    medium = tmp_path / "medium"
    medium.mkdir()
    (medium / "delay").write_text("60")
    (medium / "image").touch()
    os.truncate(medium / "image", SIZE)
    programs = [Program("recorder", tmp_path / "storage", STORAGE.format(image=medium / "image"), medium)]
    try:
        portal = programs[0].portal
        for name in ("one", "two"):
            programs.append(Program("halting", tmp_path / name, NODE.format(name=name, portal=portal), medium))
        for node in programs[1:]:
            node.wait_armed()
        yield programs[1:]
    finally:
        for program in programs:
            program.kill()


def write(node: Program, share: int, count: int = 300) -> None:
    """Write blocks that no other share writes, each time with another content."""
    url = f"iscsi://{node.portal}/iqn.2026-11.io.wolun:node/0"
    for turn in range(2):
        pattern = 1 + (share + 2 * turn + int(time.time())) % 250
        bench = [peers.require("qemu-img"), "bench", "-f", "raw", "-w", "-c", str(count), "-d", "4", "-s", "4096"]
        done = subprocess.run(
            [*bench, "-S", "24576", "-o", str(share * 4096), "--pattern", str(pattern), url],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def take(node: Program, name: str) -> None:
    """Ask for a snapshot, and be content without an answer."""
    socket, url = str(node.directory / "state/control.sock"), "http://wolun/v1/volumes/vol0/snapshots"
    asking = ["curl", "-sS", "--unix-socket", socket, url, "--json", json.dumps({"name": name})]
    subprocess.run(asking, capture_output=True, check=False)


def same(node: Program, name: str, medium: Path) -> None:
    """Compare a snapshot with the recorded medium."""
    image = node.directory / f"{name}.img"
    wolun = [str(Path(sys.executable).with_name("wolun")), "--state-dir", str(node.directory / "state")]
    wait(lambda: name in {taken.name for taken in node.client.snapshots("vol0") if taken.view_lun is not None})
    exported = subprocess.run(
        [*wolun, "snapshot", "export", f"vol0@{name}", str(image)], capture_output=True, check=False
    )
    assert exported.returncode == 0, exported.stderr
    assert image.read_bytes() == (medium / "fences" / name).read_bytes()
    assert not list((medium / "in-flight").iterdir())


def test_views_are_the_medium_at_their_fences_also_if_the_taker_dies(cluster: list[Program], tmp_path: Path) -> None:
    medium, (one, two) = tmp_path / "medium", cluster
    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(write, node, share) for share, node in enumerate(cluster)]
        for number in range(4):
            cluster[number % 2].client.create_snapshot("vol0", f"in-turn{number}")
        for taking in [pool.submit(node.client.create_snapshot, "vol0", node.directory.name) for node in cluster]:
            taking.result()
        for load in loads:
            load.result()
    for name in (*(f"in-turn{number}" for number in range(4)), "one", "two"):
        same(two, name, medium)

    for step in STEPS:
        with ThreadPoolExecutor() as pool:
            load = pool.submit(write, two, 1, 100)
            (one.directory / "fuse").write_text(step)
            asking = pool.submit(take, one, step)
            wait((one.directory / "halted").exists)
            one.kill()
            asking.result()
            load.result()
        if step != "Append":  # before that, no record says that the snapshot was taken
            same(two, step, medium)
        one.start()
        one.wait_armed()
    assert "Append" not in {taken.name for taken in two.client.snapshots("vol0")}
