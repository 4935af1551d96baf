# SPDX-License-Identifier: Apache-2.0
"""The unit in `config/`, checked by systemd itself, and the daemon's messages to systemd."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from target import descriptors, ending, systemd
from tests import daemon, peers

UNIT = Path(__file__).resolve().parents[2] / "config/wolun.service"


def complaints(unit: Path) -> str:
    """Return systemd's complaints about the unit, without those about other units of this machine."""
    analyze = [peers.require("systemd-analyze"), "verify", "--man=no", str(unit)]
    done = subprocess.run(analyze, capture_output=True, text=True, timeout=120, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if unit.name in line)


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    peers.require("modprobe", "kmod")  # the unit calls it
    text = UNIT.read_text().replace("/opt/wolun/.venv/bin/wolun", str(daemon.PROGRAM))
    unit = tmp_path / "wolun.service"
    unit.write_text(text)
    assert not complaints(unit)
    unit.write_text(text.replace("TimeoutStopSec", "TimeoutToStop"))
    assert "TimeoutToStop" in complaints(unit)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Yield the socket at which systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(60)
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_systemd_is_notified_when_initiators_can_log_in(tmp_path: Path, manager: socket.socket) -> None:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 8MiB}\n") as served:
        assert manager.recv(100) == b"READY=1"
        host, port = served.portal.split(":")
        socket.create_connection((host, int(port))).close()
        assert served.stop() == 0
    assert b"STOPPING=1" in (manager.recv(100), manager.recv(100))


def test_systemd_gets_signs_of_life_until_a_loop_stands_still(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    begins = tmp_path / "begins"
    served = daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 8MiB}\n")
    served.program = (sys.executable, "-m", "tests.target.breaking", "hangs", "iscsi-portal", str(begins))
    served.start()
    try:
        assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        begins.touch()
        while "the loop of iscsi-portal stands still" not in (tmp_path / "stderr").read_text():
            time.sleep(0.01)
        manager.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                manager.recv(100)  # those from before
    finally:
        served.kill()


@pytest.mark.parametrize(
    ("period", "process", "seconds"),
    [("2500000", "", 2.5), ("2500000", str(os.getpid()), 2.5), ("2500000", "1", None), ("", "", None), ("0", "", None)],
)
def test_watchdog_of_systemd_is_for_this_process(
    monkeypatch: pytest.MonkeyPatch, period: str, process: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.setenv("WATCHDOG_PID", process)
    assert systemd.watchdog_seconds() == seconds


def test_nothing_is_sent_where_no_manager_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify(systemd.READY)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify(systemd.READY)


def test_unit_watches_the_daemon_starts_it_again_and_waits_for_an_orderly_stop() -> None:
    lines = dict(re.findall(r"^(\w+)=(\S+)$", UNIT.read_text(), re.MULTILINE))
    assert (lines["Type"], lines["Restart"], lines["StartLimitIntervalSec"]) == ("notify", "always", "0")
    assert int(lines["WatchdogSec"]) >= 30
    assert int(lines["TimeoutStopSec"]) > ending.STOP_SECONDS
    assert descriptors.enough_for(int(lines["LimitNOFILE"])) > 100_000
