# SPDX-License-Identifier: Apache-2.0
"""Commands in processes of their own, in a pipe and on a terminal, and writes that fill a volume."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path

from tests import daemon

MIB = 1 << 20
VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n  - {name: big, lun: 1, size: 4GiB, durability: process-crash}\n"


def wolun(
    *words: str | Path, environment: Mapping[str, str] | None = None, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `wolun` to its end, with its output in pipes."""
    return subprocess.run(
        [daemon.PROGRAM, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
        cwd=directory,
    )


def fill(served: daemon.Daemon, lun: int, byte: int, start: int, end: int) -> None:
    """Write the value `byte` to each byte from `start` to `end`."""
    with served.session() as session:
        session.settle(lun)
        for offset in range(start, end, 64 << 10):
            cdb = b"\x2a\x00" + (offset // 512).to_bytes(4, "big") + b"\x00" + (128).to_bytes(2, "big") + b"\x00"
            assert session.command(lun, cdb, out=bytes([byte]) * (64 << 10)).status == 0


class Terminal:
    """A command on a terminal of its own, 100 columns wide."""

    def __init__(self, *words: str | Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8"}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [daemon.PROGRAM, *words], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.output = ""

    def read_until(self, pattern: str) -> None:
        """Read until the output matches `pattern`, or ends."""
        while not re.search(pattern, self.output):
            try:
                self.output += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                return

    def finish(self) -> int:
        """Read the rest of the output and return the exit status."""
        self.read_until(r"(?!)")
        os.close(self.master)
        return self.process.wait(30)
