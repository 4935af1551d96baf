# SPDX-License-Identifier: Apache-2.0
"""The measured servers: wolun, tgtd, and qemu-storage-daemon with its copy-before-write filter.

Each is a context manager that starts a real process and stops it.  All listen on loopback ports or sockets of their
own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

IQN = "iqn.2026-11.io.wolun:bench"
START_SECONDS = 30.0
PROJECT = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """A server or a load failed; the text has the command and its output."""


def run(command: Sequence[str], *, timeout: float = 300.0) -> str:
    """Run a command to its end and return its standard output.  Raise BenchError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise BenchError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def free_port() -> int:
    """Return a TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, *, stdout_to: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as errors, (stdout_to or log).open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd=PROJECT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until(ready: Iterator[bool], what: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    for answer in ready:
        if answer:
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{what} did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Wolun:
    """A running `wolun serve`."""

    port: int
    state: Path
    process: subprocess.Popen[bytes]

    def url(self, lun: int) -> str:
        """Return the libiscsi URL of a LUN."""
        return f"iscsi://127.0.0.1:{self.port}/{IQN}/{lun}"

    def command(self, *words: str) -> object:
        """Run a `wolun` command with `--json` and return what it printed, decoded."""
        return json.loads(run([wolun_program(), "--state-dir", str(self.state), "--json", *words]))


def wolun_program() -> str:
    """Return the path of the `wolun` beside the running interpreter."""
    return str(Path(sys.executable).with_name("wolun"))


@contextlib.contextmanager
def wolun(directory: Path, volumes: str, *, prefix: Sequence[str] = ()) -> Iterator[Wolun]:
    """Serve `volumes` (the YAML list of that setting) from a state directory below `directory`.

    `prefix` precedes the command, for example strace.
    """
    port = free_port()
    state = directory / "state"
    config = directory / "wolun.yaml"
    config.write_text(
        f"target: {IQN}\nportal:\n  listen: 127.0.0.1:{port}\naccess:\n  networks: [127.0.0.0/8]\nvolumes:\n{volumes}"
    )
    log, out = directory / "wolun.log", directory / "wolun.out"
    out.write_bytes(b"")
    command = [*prefix, wolun_program(), "serve", "--config", str(config), "--state-dir", str(state)]
    with _process(command, log, stdout_to=out) as process:
        _until(((out.read_text().startswith("ready")) for _ in iter(int, 1)), "wolun", process, log)
        yield Wolun(port, state, process)


@dataclass(frozen=True, slots=True)
class Tgtd:
    """A running tgtd, and the libiscsi URL of its LUN."""

    url: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def tgtd(directory: Path, backing: Path, *, prefix: Sequence[str] = ()) -> Iterator[Tgtd]:
    """Serve `backing` with tgtd; `prefix` precedes the command."""
    port = free_port()
    control = os.getpid() % 30000 + 1  # the number of its control socket, 32767 at most
    log = directory / "tgtd.log"
    admin = ["tgtadm", "-C", str(control), "--lld", "iscsi", "--mode"]
    with _process([*prefix, "tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{port}", "-C", str(control)], log) as process:
        _until((_answers([*admin, "target", "--op", "show"]) for _ in iter(int, 1)), "tgtd", process, log)
        run([*admin, "target", "--op", "new", "--tid", "1", "-T", IQN])
        run([*admin, "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", str(backing)])
        run([*admin, "target", "--op", "bind", "--tid", "1", "-I", "ALL"])
        yield Tgtd(f"iscsi://127.0.0.1:{port}/{IQN}/1", process)


def _answers(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


@contextlib.contextmanager
def copy_before_write(directory: Path, primary: Path) -> Iterator[str]:
    """Serve `primary` over NBD through qemu's copy-before-write filter with a new raw target, and yield the URL."""
    target, unix, log = directory / "cbw-target.img", directory / "cbw.sock", directory / "qsd.log"
    target.unlink(missing_ok=True)
    unix.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(primary.stat().st_size)
    command = ["qemu-storage-daemon"]
    for name, path in (("primary", primary), ("target", target)):
        command += ["--blockdev", f"driver=file,node-name={name}-file,filename={path},aio=threads"]
        command += ["--blockdev", f"driver=raw,node-name={name},file={name}-file"]
    command += ["--blockdev", "driver=copy-before-write,node-name=cbw,file=primary,target=target"]
    command += ["--nbd-server", f"addr.type=unix,addr.path={unix}"]
    command += ["--export", "type=nbd,id=e,node-name=cbw,name=cbw,writable=on"]
    with _process(command, log) as process:
        _until((unix.exists() for _ in iter(int, 1)), "qemu-storage-daemon", process, log)
        time.sleep(0.2)  # the socket exists a moment before the export does
        yield f"nbd+unix:///cbw?socket={unix}"
    target.unlink(missing_ok=True)


def versions() -> list[str]:
    """Return a line for each program that takes part, with its name and the version that it prints."""
    lines = [f"python {sys.version.split()[0]}"]
    for command in (["tgtd", "--version"], ["qemu-img", "--version"], ["qemu-storage-daemon", "--version"]):
        if shutil.which(command[0]) is None:
            raise BenchError(
                f"{command[0]} is not installed: apt-get install tgt qemu-utils qemu-system-x86 libiscsi-bin strace"
            )
        lines.append(f"{command[0]} {run(command).splitlines()[0].strip()}")
    return lines
