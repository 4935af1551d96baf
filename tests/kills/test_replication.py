# SPDX-License-Identifier: Apache-2.0
"""Sender, receiver and the command between them are killed while they replicate; it goes on, and the replica is right."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.backups import frames
from target import messages
from target.control import client
from tests import daemon

MIB = 1 << 20
SIZE = 48 * MIB
KILLS = int(os.environ.get("WOLUN_REPLICATION_KILLS", "4"))
VICTIMS = ("sender", "receiver", "command", "both")


def volumes(backup: Path) -> str:
    """Return the sender's volume.  At this rate a stream takes some seconds, in which it is killed."""
    command = [str(daemon.PROGRAM), "--state-dir", str(backup), "volume", "receive", "copy"]
    return (
        "  - name: vol0\n    lun: 0\n    size: 48MiB\n"
        f"    replicate: [{{name: backup, schedule: monthly, limit: 8MiB, to: {command!r}}}]\n"
    )


def replication(source: daemon.Daemon) -> messages.Replication:
    asked = client.Client(source.state)
    try:
        return next(iter(asked.status().replications))
    finally:
        asked.close()


def reaches(source: daemon.Daemon, part: float) -> None:
    """Return when so much of the stream is sent, or all."""
    asked = client.Client(source.state)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(one.arrived for one in asked.status().replications):
            break
        sent = [job.done / job.total for job in asked.jobs() if job.kind == "replicate" and job.total]
        if sent and sent[-1] >= part:
            break
        time.sleep(0.02)
    asked.close()


def command_of(source: daemon.Daemon) -> Iterator[int]:
    """Yield the process of the command that receives, if it runs."""
    assert source.process is not None
    done = subprocess.run(["pgrep", "-P", str(source.process.pid)], capture_output=True, text=True, timeout=60)
    yield from map(int, done.stdout.split())


def offset(backup: daemon.Daemon) -> int:
    """Return how far the receiver has come."""
    asked = client.Client(backup.state)
    try:
        token = asked.replica("copy").resume
    finally:
        asked.close()
    return frames.token(token).offset if token else 0


@pytest.mark.timeout(1200)
def test_killed_replication_goes_on(tmp_path: Path) -> None:
    chance = random.Random(7)
    backup = daemon.Daemon(tmp_path / "backup", "  - {name: own, lun: 0, size: 1MiB}\n")
    source = daemon.Daemon(tmp_path / "source", volumes(backup.state))
    for served in (backup, source):
        served.directory.mkdir()
    primary = source.state / "volumes" / "vol0" / "primary.img"
    primary.parent.mkdir(parents=True)
    primary.write_bytes(b"".join(chance.randbytes(3 * MIB) + bytes(MIB) for _ in range(SIZE // (4 * MIB))))
    reached = []
    with backup:
        for victim in itertools.islice(itertools.cycle(VICTIMS), KILLS):
            source.start()
            reaches(source, chance.uniform(0, 0.4))
            if victim == "command":
                for process in command_of(source):
                    os.kill(process, signal.SIGKILL)
            if victim in ("receiver", "both"):
                backup.kill()
            source.kill()  # with "receiver" and "command" as well, because a new start tries again at once
            if backup.process is None:
                backup.start()
            reached.append(offset(backup))
        source.start()
        reaches(source, 2)
        arrived = replication(source).arrived
        assert arrived, replication(source)
        assert [snapshot["name"] for snapshot in source.json("snapshot", "list", "vol0")] == [arrived]
        images = []
        for served, volume in ((source, "vol0"), (backup, "copy")):
            path = served.directory / "image.img"
            served.run("snapshot", "export", f"{volume}@{arrived}", str(path))
            images.append(path.read_bytes())
        assert images[0] == images[1]
        assert source.stop() == 0
    assert any(reached), "no stream was interrupted in its middle"
    assert reached == sorted(reached), "a stream began anew"
    for served in (source, backup):
        assert "Traceback" not in (served.directory / "stderr").read_text()
