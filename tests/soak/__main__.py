# SPDX-License-Identifier: Apache-2.0
"""`make soak`: open and close many sessions on a real daemon for `--seconds`, and report its memory.

Each of `--workers` threads logs in, reads, writes and reserves, and then logs out or drops the connection in the middle of a
command.  Some connections send no iSCSI at all.  Meanwhile snapshots are taken and deleted.  After each twentieth of the
time, a line reports the daemon's memory, threads and open files.  The exit status is 1 if they grew after the first fifth.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from tests import libiscsi
from tests.daemon import Daemon

SIZE = 256 << 20
GROWTH_MIB = 16
"""The allowed growth after the first fifth: an allocator's use always varies a little, but a leak exceeds this."""
SPARE_FILES = 40
"""The number of open files that depends on the current sessions and snapshots."""


@dataclass(frozen=True, slots=True)
class Held:
    """The daemon's resources: its own memory, mapped pages of files such as chunk maps, threads and open files."""

    own_mib: float
    mapped_mib: float
    threads: int
    files: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """Return the resources of process `pid`, as the kernel reports them."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        mib = {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "RssShmem")}
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(mib["RssAnon"], mib["RssFile"] + mib["RssShmem"], int(lines["Threads"]), files)


class Soak:
    """The workers and the counts of their actions."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.daemon = daemon
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.over = threading.Event()
        self._seed = seed

    def worker(self, number: int) -> None:
        """Run sessions of one initiator until the end."""
        dice = random.Random(self._seed + number)
        name = f"iqn.2026-11.io.wolun:soak{number}"
        while not self.over.is_set():
            try:
                if dice.random() < 0.25:
                    self._knock(dice)
                else:
                    self._session(dice, name)
            except (libiscsi.LibiscsiError, OSError):
                self.done["cut off"] += 1  # the portal may refuse too many connections at once
            except AssertionError as error:
                self.failures.append(f"{name}: {error}")
                return

    def _knock(self, dice: random.Random) -> None:
        host, _, port = self.daemon.portal.rpartition(":")
        # Use another address, because the portal delays logins from an address with failed logins.
        stranger = f"127.0.{dice.randrange(1, 100)}.{dice.randrange(1, 250)}"
        with socket.create_connection((host, int(port)), timeout=10, source_address=(stranger, 0)) as sock:
            sock.sendall(dice.randbytes(dice.choice((1, 48, 300, 5000))))
            if dice.random() < 0.5:
                sock.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    sock.recv(1000)
        self.done["strangers"] += 1

    def _session(self, dice: random.Random, name: str) -> None:
        session = self.daemon.session(initiator=name, digests=dice.random() < 0.2)
        try:
            session.settle(0)
            for _ in range(dice.randrange(1, 60)):
                self._command(session, dice)
        finally:
            session.close()
        self.done["sessions"] += 1

    def _command(self, session: libiscsi.Session, dice: random.Random) -> None:
        blocks = dice.choice((1, 8, 64, 512))
        lba = dice.randrange((SIZE >> 9) - blocks)
        match dice.randrange(5):
            case 0 | 1:
                cdb = struct.pack(">BBIxHx", 0x28, 0, lba, blocks)
                answer = session.command(0, cdb, read=512 * blocks)
                assert answer.status != 0 or len(answer.data) == 512 * blocks, "a read came back short"
            case 2 | 3:
                flags = dice.choice((0, 0, 0, 8))
                session.command(0, struct.pack(">BBIxHx", 0x2A, flags, lba, blocks), out=dice.randbytes(512) * blocks)
            case _:
                cdb = struct.pack(">BB3xIB", 0x5F, dice.choice((0, 6)), 24, 0)
                session.command(0, cdb, out=struct.pack(">QQ8x", 0, dice.randrange(2)))
        self.done["commands"] += 1

    def snapshots(self) -> None:
        """Take snapshots and delete them."""
        try:
            self._snapshots()
        except AssertionError as error:
            self.failures.append(f"snapshots: {error}")

    def _snapshots(self) -> None:
        number = 0
        while not self.over.wait(2):
            self.daemon.run("snapshot", "create", "vol", f"s{number}")
            self.over.wait(2)
            self.daemon.run("snapshot", "delete", f"vol@s{number}", "--force")
            self.done["snapshots"] += 1
            number += 1


def _report(held: Held, soak: Soak) -> str:
    did = ", ".join(f"{count} {what}" for what, count in sorted(soak.done.items()))
    return f"{held.own_mib:7.1f} MiB and {held.mapped_mib:.1f} MiB of files, {held.threads} threads, {held.files} files; {did}"


@click.command()
@click.option("--seconds", default=3600.0, show_default=True)
@click.option("--workers", default=8, show_default=True)
@click.option("--seed", type=int, help="Repeat a run's choices, as far as the scheduling of threads allows.")
def main(seconds: float, workers: int, seed: int | None) -> None:
    """Open and close sessions, and watch the daemon's memory."""
    console = Console(highlight=False)
    seed = random.randrange(1 << 32) if seed is None else seed
    console.print(f"seed {seed}")
    lines: list[Held] = []
    with tempfile.TemporaryDirectory() as directory:
        volumes = f"  - {{name: vol, lun: 0, size: {SIZE}, durability: process-crash}}\n"
        with Daemon(Path(directory), volumes) as daemon:
            assert daemon.process is not None
            soak = Soak(daemon, seed)
            threads = [threading.Thread(target=soak.worker, args=(number,)) for number in range(workers)]
            threads.append(threading.Thread(target=soak.snapshots))
            for thread in threads:
                thread.start()
            began = time.monotonic()
            for step in range(1, 21):
                soak.over.wait(max(0.0, began + seconds * step / 20 - time.monotonic()))
                lines.append(Held.by(daemon.process.pid))
                console.print(f"{seconds * step / 20:6.0f} s {_report(lines[-1], soak)}")
                if soak.failures:
                    break
            soak.over.set()
            for thread in threads:
                thread.join()
        tracebacks = (Path(directory) / "stderr").read_text().count("Traceback")
    first, last = lines[min(3, len(lines) - 1)], lines[-1]
    grown, mapped = last.own_mib - first.own_mib, last.mapped_mib - first.mapped_mib
    console.print(
        f"grown by {grown:.1f} MiB, and {mapped:.1f} MiB of files, since the first fifth; {tracebacks} tracebacks in the log"
    )
    for failure in soak.failures:
        console.print(failure)
    flat = (
        max(grown, mapped) <= GROWTH_MIB
        and last.threads <= first.threads + 8
        and last.files <= first.files + SPARE_FILES
    )
    sys.exit(0 if flat and not tracebacks and not soak.failures else 1)


if __name__ == "__main__":
    main()
