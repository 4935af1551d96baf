# SPDX-License-Identifier: Apache-2.0
"""`wolun status` and `wolun version`."""

from __future__ import annotations

from pathlib import Path

import target
from tests import daemon, libiscsi
from tests.target.commands import commanding


def test_status_shows_volumes_sessions_and_throughput(served: daemon.Daemon) -> None:
    with libiscsi.Session(served.portal, daemon.IQN, initiator="iqn.2026-11.io.wolun:alice") as session:
        session.settle(0)
        for _ in range(50):
            session.command(0, b"\x28\x00\x00\x00\x00\x00\x00\x00\x80\x00", read=64 << 10)
        status = served.json("status")
        text = served.run("status").stdout
    assert status["volumes"][0]["read_bytes_per_second"] > 0
    assert [session["initiator"] for session in status["sessions"]] == ["iqn.2026-11.io.wolun:alice"]
    assert status["sessions"][0]["bytes_read"] >= 50 * 64 << 10
    assert status["trouble"] == []
    for expected in ("vol0", "big", "online", "16 MiB", "iqn.2026-11.io.wolun:alice", "no trouble"):
        assert expected in text
    assert "no initiator is logged in" in served.run("status").stdout


def test_version_is_that_of_the_package() -> None:
    setup = (Path(__file__).resolve().parents[3] / "setup.cfg").read_text()
    assert f"\nversion = {target.VERSION}\n" in setup
    assert commanding.wolun("version").stdout == f"wolun {target.VERSION}\n"
