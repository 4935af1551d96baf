# SPDX-License-Identifier: Apache-2.0
"""The daemon never outlives its own death: a loop that ends ends the process, and a signal always ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from target import ending
from tests import daemon

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"


def broken(tmp_path: Path, fault: str, name: str) -> tuple[daemon.Daemon, Path]:
    """Return a daemon with a fault (see `breaking`), and the file with which it begins."""
    begins = tmp_path / "begins"
    served = daemon.Daemon(tmp_path, VOLUMES)
    served.program = (sys.executable, "-m", "tests.target.breaking", fault, name, str(begins))
    return served, begins


def child(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program with `ending` imported and a log on standard error."""
    begin = "import logging, os, signal, threading, time\nfrom target import ending\nlogging.basicConfig(level=20)\n"
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["iscsi-portal", "control-socket", "schedule", "rates"])
def test_loop_that_ends_ends_the_process_with_a_line_in_the_log(tmp_path: Path, name: str) -> None:
    served, begins = broken(tmp_path, "ends", name)
    served.start()
    assert served.process is not None
    begins.touch()
    assert served.process.wait(30) == ending.FAILED
    log = (tmp_path / "stderr").read_text()
    assert f"CRITICAL {name} ended, so the process ends with status {ending.FAILED}" in log
    assert "RuntimeError: the test's fault" in log


def test_loop_of_the_control_socket_that_returns_ends_the_process(tmp_path: Path) -> None:
    served, begins = broken(tmp_path, "quits", "")
    served.start()
    assert served.process is not None
    begins.touch()
    assert served.process.wait(30) == ending.FAILED
    assert "control-socket ended, so the process ends" in (tmp_path / "stderr").read_text()


def test_second_signal_ends_a_stop_that_hangs(tmp_path: Path) -> None:
    served, _ = broken(tmp_path, "stop", "")
    served.start()
    assert served.process is not None
    os.kill(served.process.pid, signal.SIGTERM)
    while "SIGTERM: stopping" not in (tmp_path / "stderr").read_text():
        assert served.process.poll() is None
    os.kill(served.process.pid, signal.SIGINT)
    assert served.process.wait(30) == 128 + signal.SIGINT
    assert "SIGINT again: the process ends at once" in (tmp_path / "stderr").read_text()


def test_stop_that_takes_too_long_ends_and_says_where_each_thread_was() -> None:
    done = child(
        "def hangs(): time.sleep(60)\n"
        "signals = ending.StopSignals(0.1)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signals.wait()\n"
        "hangs()\n"
    )
    assert done.returncode == ending.FAILED
    assert "not stopped after 0.1 s" in done.stderr
    assert "in hangs" in done.stderr


def test_signal_that_comes_before_the_daemon_waits_for_it_is_not_lost() -> None:
    done = child(
        "signals = ending.StopSignals()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.1)\n"
        "signals.wait()\n"
        "print('stopped')\n"
    )
    assert (done.returncode, done.stdout) == (0, "stopped\n")


@pytest.mark.parametrize("error", ["SystemExit(0)", "MemoryError()", "KeyboardInterrupt()"])
def test_any_exception_of_a_thread_ends_the_process(error: str) -> None:
    done = child(
        "ending.with_any_thread()\n"
        f"def ends(): raise {error}\n"
        "threading.Thread(target=ends, name='helper').start()\n"
        "time.sleep(60)\n"
    )
    assert done.returncode == ending.FAILED
    assert "helper ended" in done.stderr
