# SPDX-License-Identifier: Apache-2.0
"""The policies as users and initiators see them: sense data, unit attentions, list, status, metrics, alerts, explanations."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from target import explanations
from tests import daemon, libiscsi

pytestmark = pytest.mark.interop

CHUNK = 64 << 10
Served = Callable[..., daemon.Daemon]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Return a function that starts a daemon with one volume that has these keys, too; no chunk of it is zeroes."""
    running: list[daemon.Daemon] = []

    def start(keys: str) -> daemon.Daemon:
        running.append(daemon.Daemon(tmp_path, f"  - {{name: vol0, lun: 0, size: 4MiB, {keys}}}\n").start())
        with running[0].session() as session:
            session.settle(0)
            for chunk in range(64):
                assert write(session, chunk, 6).status == 0
        return running[0]

    yield start
    for daemon_ in running:
        if daemon_.process is not None:
            daemon_.stop()


def write(session: libiscsi.Session, chunk: int, fill: int = 7) -> libiscsi.Answer:
    """Write one block at the beginning of a chunk."""
    lba = chunk * CHUNK // 512
    return session.command(0, bytes([0x2A, 0]) + lba.to_bytes(4, "big") + b"\0\0\1\0", out=bytes([fill]) * 512)


def read(session: libiscsi.Session, lun: int) -> libiscsi.Answer:
    return session.command(lun, bytes([0x28, 0]) + bytes(4) + b"\0\0\1\0", read=512)


def metric(running: daemon.Daemon, name: str) -> float:
    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(running.state / "control.sock"))

    asked = Connection("wolun")
    asked.request("GET", "/metrics")
    lines = asked.getresponse().read().decode().splitlines()
    asked.close()
    return float(next(line for line in lines if line.startswith(name + "{")).rpartition(" ")[2])


def codes(running: daemon.Daemon) -> list[str]:
    return [alert["code"] for alert in running.json("status")["alerts"]]


def test_fail_writes_refuses_writes_at_the_limit(served: Served) -> None:
    running = served("limit: 512KiB, warn_at: 50")
    running.run("snapshot", "create", "vol0", "a")
    view = running.json("snapshot", "list")[0]["view_lun"]
    with running.session() as session, running.session(initiator="iqn.2026-11.io.wolun:other") as other:
        session.settle(0)
        other.settle(0)
        assert [write(session, chunk).status for chunk in range(4)] == [0, 0, 0, 0]
        for initiator in (session, other):
            attention = initiator.command(0, bytes(6))
            assert (attention.key, attention.asc) == (0x06, (0x38, 0x07))
            assert initiator.command(0, bytes(6)).status == 0
        assert codes(running) == ["snapshot-space-low"]
        assert [write(session, chunk).status for chunk in range(4, 8)] == [0, 0, 0, 0]
        refused = write(session, 8)
        assert (refused.key, refused.asc, refused.information) == (0x07, (0x27, 0x07), 8 * CHUNK // 512)
        assert write(session, 0).status == 0
        session.settle(view)
        assert read(session, view).data == bytes([6]) * 512
        assert set(codes(running)) == {"snapshot-space-full", "copies-failed"}
        assert metric(running, "wolun_volume_preserved_bytes") == 8 * CHUNK
        assert metric(running, "wolun_volume_preserved_limit_bytes") == 8 * CHUNK
        assert metric(running, "wolun_volume_space_low") == 1
        shown = running.run("status").stdout
        assert "512 KiB of 512 KiB allowed" in shown
        assert "wolun explain snapshot-space-full" in shown
        refusal = running.run("--json", "snapshot", "create", "vol0", "b", check=False)
        assert json.loads(refusal.stderr)["error"] == "no-space-left"
        running.run("snapshot", "delete", "vol0@a", "--force")  # the session has just read it
        assert write(session, 8).status in (0, 2)  # perhaps a unit attention: the LUNs have changed
        assert write(session, 8).status == 0


def test_drop_snapshot_invalidates_the_oldest_at_the_limit(served: Served) -> None:
    running = served("limit: 512KiB, on_error: drop-snapshot, warn_at: 100, map_write_once: read-only")
    for name in ("a", "b"):
        running.run("snapshot", "create", "vol0", name)
        with running.session() as session:
            session.settle(0)
            first = 0 if name == "a" else 4
            assert [write(session, chunk).status for chunk in range(first, first + 4)] == [0] * 4
    a, b = running.json("snapshot", "list")
    with running.session() as session:
        session.settle(0)
        answer = write(session, 20)
        assert answer.status == 0 or answer.asc == (0x38, 0x07)
        assert write(session, 20).status == 0
        for lun in (a["view_lun"], a["write_once_lun"]):
            session.settle(lun)
            gone = read(session, lun)
            assert (gone.key, gone.asc) == (0x02, (0x04, 0x03))
        session.settle(b["view_lun"])
        assert read(session, b["view_lun"]).status == 0
    dropped, kept = running.json("snapshot", "list")
    assert (dropped["name"], dropped["state"], kept["state"]) == ("a", "invalid", "active")
    assert "invalidated to make room" in dropped["reason"]
    assert "snapshot-invalid" in codes(running)
    assert "invalidated to make room" in running.run("status").stdout
    refusal = running.run("--json", "snapshot", "export", "vol0@a", str(running.directory / "out.img"), check=False)
    assert json.loads(refusal.stderr)["error"] == "refused"
    running.kill()
    running.start()
    assert [snapshot["state"] for snapshot in running.json("snapshot", "list")] == ["invalid", "active"]
    running.run("snapshot", "delete", "vol0@a")
    assert "snapshot-invalid" not in codes(running)


def test_no_snapshot_is_taken_beyond_max_snapshots(served: Served) -> None:
    running = served("max_snapshots: 1")
    running.run("snapshot", "create", "vol0", "a")
    refused = running.run("snapshot", "create", "vol0", "b", check=False)
    assert refused.returncode == 1
    assert "as many as are allowed" in refused.stderr


def explain(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `wolun` without a daemon."""
    return subprocess.run([daemon.PROGRAM, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", explanations.EXPLANATIONS)
def test_each_code_is_explained(code: str) -> None:
    text = explain("explain", code).stdout
    assert text.startswith(code)
    assert len(text) > 200


def test_unknown_code_is_refused_with_the_list_of_codes() -> None:
    refused = explain("--json", "explain", "nonsense")
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["error"] == "no-such-code"
    assert list(json.loads(explain("--json", "explain").stdout)) == list(explanations.EXPLANATIONS)
