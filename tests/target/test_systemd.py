# SPDX-License-Identifier: Apache-2.0
"""The unit in `config/`, checked by systemd itself, and the daemon's messages to systemd."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from target import descriptors, ending, systemd
from tests import daemon, peers

UNIT = Path(__file__).resolve().parents[2] / "config/wolun.service"
DROP_INS = [UNIT.with_name(f"wolun.service.{name}.conf") for name in ("lio", "disks")]
VOLUMES = "  - {name: vol0, lun: 0, size: 8MiB}\n"


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


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.name)
def test_systemd_understands_every_line_of_a_drop_in(tmp_path: Path, drop_in: Path) -> None:
    peers.require("modprobe", "kmod")  # one calls it
    unit = tmp_path / "wolun.service"
    unit.write_text(UNIT.read_text().replace("/opt/wolun/.venv/bin/wolun", str(daemon.PROGRAM)))
    directory = tmp_path / "wolun.service.d"
    directory.mkdir()
    for text, sound in ((drop_in.read_text(), True), (drop_in.read_text().replace("Private", "Pirate"), False)):
        (directory / drop_in.name).write_text(text)
        analyze = [peers.require("systemd-analyze"), "verify", "--man=no", str(unit)]
        done = subprocess.run(analyze, capture_output=True, text=True, timeout=120, check=False)
        assert (drop_in.name not in done.stderr) == sound, done.stderr


def test_unit_exposes_little_and_needs_no_root() -> None:
    analyze = [peers.require("systemd-analyze"), "security", "--offline=true", "--no-pager", str(UNIT)]
    done = subprocess.run(analyze, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"Overall exposure level for wolun.service: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) < 3
    lines = UNIT.read_text().splitlines()
    assert "User=wolun" in lines
    assert "CapabilityBoundingSet=" in lines
    assert not [line for line in lines if re.match(r"Exec\w+=[-:@]*[+!]", line)]  # these run as root


def system_calls(unit: str) -> set[str]:
    """Return the system calls that the unit's filter allows."""
    done = subprocess.run(
        [peers.require("systemd-analyze"), "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True
    )
    groups: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            group = groups[line.strip()] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            group.append(line.strip())

    def expand(name: str) -> set[str]:
        return set().union(*map(expand, groups[name])) if name in groups else {name}

    allowed = expand("@default")
    for names in re.findall("^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        chosen = set().union(*map(expand, names.lstrip("~").split()))
        allowed = allowed - chosen if names.startswith("~") else allowed | chosen
    return allowed


def test_daemon_makes_only_system_calls_that_the_unit_allows(tmp_path: Path) -> None:
    served = daemon.Daemon(tmp_path, VOLUMES)
    calls = tmp_path / "calls"
    served.program = (peers.require("strace"), "-D", "-f", "-qq", "-c", "-U", "name", "-o", str(calls), daemon.PROGRAM)
    with served:
        with served.session() as session:
            session.settle(0)
            served.run("snapshot", "create", "vol0", "s")
            session.settle(0)
            write = bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 8, 0))
            assert session.command(0, write, out=b"x" * 4096).status == 0
        served.run("snapshot", "export", "vol0@s", str(tmp_path / "image.qcow2"))
        served.run("snapshot", "delete", "vol0@s")
        served.run("status")
        assert served.stop() == 0
    while not calls.exists() or not calls.read_text().strip():
        time.sleep(0.05)  # the tracer ends after the daemon
    made = {name for name in calls.read_text().split() if re.fullmatch(r"[a-z0-9_]{3,}", name)} - {
        "name",
        "syscall",
        "total",
    }
    assert {"pwritev", "epoll_wait", "fdatasync"} & made
    assert made - system_calls(UNIT.read_text()) == set()


def test_daemon_of_the_portal_runs_without_root_and_without_capabilities() -> None:
    """An ordinary user, as the unit has one: nothing in the product needs more."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        if not os.geteuid():
            os.chown(directory, nobody, nobody)
        served = daemon.Daemon(Path(directory), VOLUMES)
        drop = ("--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
        as_nobody = (peers.require("setpriv", "util-linux"), "--no-new-privs", *(drop if not os.geteuid() else ()))
        served.program = (*as_nobody, daemon.PROGRAM)
        with served:
            assert served.process is not None
            status = Path(f"/proc/{served.process.pid}/status").read_text()
            assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
            with served.session() as session:
                session.settle(0)
            served.run("snapshot", "create", "vol0", "s")
            assert served.stop() == 0


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
