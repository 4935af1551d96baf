# SPDX-License-Identifier: Apache-2.0
"""A daemon with few file descriptors: it raises its limit, warns, says what helps, and serves what it has on."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from target import descriptors
from tests import daemon

READ = bytes.fromhex("28000000000000000100")  # READ (10) and WRITE (10) of block 0
WRITE = bytes.fromhex("2a000000000000000100")
VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limited(tmp_path: Path, option: str, volumes: str = VOLUMES) -> daemon.Daemon:
    """Return a daemon that a shell starts after `ulimit` with this option."""
    served = daemon.Daemon(tmp_path, volumes)
    served.program = ("bash", "-c", f'ulimit {option}; exec "$@"', "bash", daemon.PROGRAM)
    return served


def test_soft_limit_is_raised_to_the_hard_one(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    assert descriptors.limit() == 256
    assert descriptors.raise_limit() == limits[1]
    assert descriptors.limit() == limits[1]


def test_daemon_has_the_hard_limit_whatever_its_soft_limit_was(tmp_path: Path) -> None:
    with limited(tmp_path, "-Sn 100") as served:
        assert served.process is not None
        soft, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 100


def test_open_descriptors_are_counted() -> None:
    before = descriptors.used()
    with socket.socket():
        assert descriptors.used() == before + 1


def test_daemon_without_descriptors_says_what_helps_and_serves_what_it_has_on(tmp_path: Path) -> None:
    with limited(tmp_path, "-n 36") as served, served.session() as session:
        session.settle(0)
        for number in range(12):
            done = served.run("snapshot", "create", "vol0", f"s{number}", check=False)
            if done.returncode:
                break
        assert "Too many open files; this process may have 36 (LimitNOFILE= of its unit" in done.stderr
        assert "Raise the limit of open files and start the daemon again, or delete snapshots" in done.stderr
        alerts = {alert["code"]: alert for alert in served.json("status")["alerts"]}
        assert "may have 36" in alerts["open-files-low"]["message"]
        log = tmp_path / "stderr"
        host, port = served.portal.split(":")
        crowd = [socket.create_connection((host, int(port)), timeout=20) for _ in range(30)]
        while "no connection can be accepted, so they wait" not in log.read_text():
            session.settle(0)
        before = len(log.read_text())
        for _ in range(200):
            session.settle(0)
        assert len(log.read_text()) - before < 1000
        for connection in crowd:
            connection.close()
        served.run("snapshot", "delete", "vol0@s0")
        with served.session(initiator=f"{daemon.IQN}:late") as late:
            late.settle(0)


def test_snapshots_taken_with_many_descriptors_start_with_few(tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(110)]
    volumes = f"  - {{name: vol0, lun: 0, size: 1MiB, snapshots: [{', '.join(names)}]}}\n"
    with daemon.Daemon(tmp_path, volumes) as served, served.session() as session:
        session.settle(0)
        before = session.command(0, READ, read=512).data
        assert session.command(0, WRITE, out=b"\xee" * 512).status == 0
    few = limited(tmp_path, "-n 280", volumes)  # two for each snapshot, and some for the rest of the daemon
    with few:
        few.run("snapshot", "export", "vol0@s109", str(tmp_path / "newest.img"))
        few.run("snapshot", "export", "vol0@s0", str(tmp_path / "oldest.img"))
        assert (tmp_path / "newest.img").read_bytes()[:512] == before
        assert (tmp_path / "oldest.img").read_bytes()[:512] == before
        assert len(few.json("snapshot", "list", "vol0")) == len(names)
