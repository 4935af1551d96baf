# SPDX-License-Identifier: Apache-2.0
"""libiscsi's suite against each kind of LUN: every result is the one of expected.yaml.

* the volume: no test fails, and a snapshot taken before shows the earlier content;
* a volume on a disk with physical blocks of 4 KiB: the tests for such disks;
* a snapshot's view: tests fail because a view refuses writes, and nothing changes;
* a write-once LUN: tests fail because of the write-once rule.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.portal import portal
from tests import peers
from tests.conformance import suite
from tests.daemon import Daemon
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, make_target

SIZE = 64 << 20


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    """Yield a daemon with a volume full of random bytes at LUN 0."""
    primary = tmp_path / "primary.img"
    primary.write_bytes(os.urandom(SIZE))
    keys = f"primary: {primary}, durability: process-crash, physical_block_size: 128KiB, map_write_once: read-write"
    with Daemon(tmp_path, f"  - {{name: vol, lun: 0, {keys}}}\n") as daemon:
        yield daemon


def content(daemon: Daemon, lun: int, directory: Path) -> str:
    """Return a digest of the whole content of a LUN."""
    image = directory / "image"
    command = [peers.require("qemu-img"), "convert", "-f", "raw", "-O", "raw", daemon.url(lun), str(image)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return hashlib.file_digest(image.open("rb"), "sha256").hexdigest()


def test_the_volume_passes_and_a_snapshot_keeps_its_content(served: Daemon, tmp_path: Path) -> None:
    """No test fails, and every command that changes blocks goes through copy-on-write (rule 5, lun_backends/README.md)."""
    before = content(served, 0, tmp_path)
    view = served.json("snapshot", "create", "vol", "before")["view_lun"]
    assert suite.deviations(suite.run(served.url(0)), "primary") == []
    assert content(served, view, tmp_path) == before
    assert content(served, 0, tmp_path) != before


def test_a_volume_on_a_disk_with_physical_blocks_of_4_kib() -> None:
    """Run the tests for which the size of a physical block matters."""
    device = MemoryDevice(SIZE)
    device.physical_block_size = 4096
    served = portal.Portal("127.0.0.1", 0, {TARGET: make_target(device)})
    served.start()
    try:
        host, port = served.address
        url = f"iscsi://{host}:{port}/{TARGET}/0"
        families = ("CompareAndWrite", "GetLBAStatus", "WriteSame10", "WriteSame16")
        results = [result for family in families for result in suite.run(url, f"ALL.{family}")]
    finally:
        served.close(0)
    assert suite.deviations(results, "4-kib-physical-blocks") == []
    assert {result.name.partition(".")[0] for result in results} == set(families)


def test_a_view_refuses_writes_and_never_changes(served: Daemon, tmp_path: Path) -> None:
    view = served.json("snapshot", "create", "vol", "before")["view_lun"]
    with served.session() as session:
        session.settle(0)
        assert session.command(0, bytes.fromhex("2a000000000000000800"), out=b"new!" * 1024).status == 0
    before = content(served, 0, tmp_path), content(served, view, tmp_path)
    assert before[0] != before[1]
    assert suite.deviations(suite.run(served.url(view)), "view") == []
    assert (content(served, 0, tmp_path), content(served, view, tmp_path)) == before


def test_a_write_once_lun_keeps_the_write_once_rule(served: Daemon, tmp_path: Path) -> None:
    before = content(served, 0, tmp_path)
    write_once = served.json("snapshot", "create", "vol", "before")["write_once_lun"]
    assert suite.deviations(suite.run(served.url(write_once)), "write-once") == []
    assert content(served, 0, tmp_path) == before
