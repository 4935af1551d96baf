# SPDX-License-Identifier: Apache-2.0
"""The unit in `config/`, checked by systemd itself, and the daemon's notifications to systemd."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

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


def test_systemd_is_notified_when_initiators_can_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(60)
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 8MiB}\n") as served:
            assert systemd.recv(100) == b"READY=1"
            host, port = served.portal.split(":")
            socket.create_connection((host, int(port))).close()
            assert served.stop() == 0
        assert systemd.recv(100) == b"STOPPING=1"
