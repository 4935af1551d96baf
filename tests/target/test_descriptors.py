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

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limited(tmp_path: Path, option: str) -> daemon.Daemon:
    """Return a daemon that a shell starts after `ulimit` with this option."""
    served = daemon.Daemon(tmp_path, VOLUMES)
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
