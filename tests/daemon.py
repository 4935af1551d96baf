# SPDX-License-Identifier: Apache-2.0
"""A real `wolun serve` in its own process, for tests that use it from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests import libiscsi

IQN = "iqn.2026-11.io.wolun:test"
PROGRAM = Path(sys.executable).with_name("wolun")
START_SECONDS = 60.0


class Daemon:
    """A `wolun serve` on a free loopback port; `with Daemon(tmp_path, VOLUMES) as daemon: …` stops it with SIGTERM.

    `volumes` is the YAML list of the setting `volumes`, `access` the lines of `access`, and `extra` further top-level YAML.
    """

    def __init__(
        self, directory: Path, volumes: str, *, extra: str = "", access: str = "  networks: [127.0.0.0/8]\n"
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.configuration = directory / "wolun.yaml"
        self.volumes, self.extra, self._access = volumes, extra, access
        self.program: Sequence[str | Path] = (PROGRAM,)
        self.process: subprocess.Popen[bytes] | None = None
        self.portal = "127.0.0.1:0"

    def start(self, *, text: str | None = None) -> Self:
        """Start and wait for `ready`; a restart keeps the port of the first start.  `text` is a whole configuration."""
        self.configuration.write_text(
            text
            or f"target: {IQN}\nportal:\n  listen: {self.portal}\naccess:\n{self._access}{self.extra}volumes:\n{self.volumes}"
        )
        out, log = self.directory / "stdout", self.directory / "stderr"
        out.write_bytes(b"")
        with out.open("wb") as stdout, log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*self.program, "serve", "--config", self.configuration, "--state-dir", self.state],
                stdout=stdout,
                stderr=stderr,
            )
        deadline = time.monotonic() + START_SECONDS
        while not out.read_text().endswith("\n"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                state = f"exit status {self.process.poll()} after {START_SECONDS - deadline + time.monotonic():.0f} s"
                raise AssertionError(f"the daemon did not start ({state}): {log.read_text()}")
            time.sleep(0.02)
        self.portal = out.read_text().split()[-1]  # ready: NAME on HOST:PORT
        return self

    def url(self, lun: int) -> str:
        """Return the libiscsi URL of a LUN, as qemu-img accepts it."""
        return f"iscsi://{self.portal}/{IQN}/{lun}"

    def session(self, **options: Any) -> libiscsi.Session:
        """Log in and return a raw session of libiscsi."""
        return libiscsi.Session(self.portal, IQN, **options)

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `wolun` command against this daemon."""
        done = subprocess.run([PROGRAM, "--state-dir", self.state, *words], capture_output=True, text=True, timeout=300)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def json(self, *words: str) -> Any:
        """Run a command with `--json` and return its decoded output."""
        return json.loads(self.run("--json", *words).stdout)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.process = None
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()
