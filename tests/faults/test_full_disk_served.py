# SPDX-License-Identifier: Apache-2.0
"""A daemon with a full state directory serves everything that needs no space, reports the fault, and recovers by a deletion."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, libiscsi, peers

pytestmark = pytest.mark.interop

CHUNK = 64 << 10
CHUNKS = 64
SIZE_KIB = 3072


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[daemon.Daemon, Path]]:
    """Start a daemon with two volumes whose primaries have room, and its state on a small disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KIB}k", "wolun-test", str(disk)]
    peers.need_root("mounting a small tmpfs")
    subprocess.run(command, check=True)
    volumes = ""
    for lun, name in enumerate(("vol0", "vol1")):
        primary = tmp_path / f"{name}.img"
        primary.write_bytes(bytes([lun + 1]) * CHUNK * CHUNKS)
        volumes += f"  - {{name: {name}, lun: {lun}, primary: {primary}}}\n"
    running = daemon.Daemon(disk, volumes)
    try:
        yield running.start(), disk
    finally:
        if running.process is not None:
            running.stop()
        subprocess.run(["umount", "-l", disk], check=True)


def write(session: libiscsi.Session, lun: int, chunk: int) -> libiscsi.Answer:
    lba = chunk * CHUNK // 512
    return session.command(lun, bytes([0x2A, 0]) + lba.to_bytes(4, "big") + b"\0\0\1\0", out=bytes([9]) * 512)


def read(session: libiscsi.Session, lun: int, chunk: int) -> bytes:
    session.settle(lun)
    lba = chunk * CHUNK // 512
    answer = session.command(lun, bytes([0x28, 0]) + lba.to_bytes(4, "big") + b"\0\0\1\0", read=512)
    assert answer.status == 0, answer.sense.hex()
    return answer.data


def test_a_full_state_directory_stops_only_writes_that_need_it(full: tuple[daemon.Daemon, Path]) -> None:
    running, disk = full
    running.run("snapshot", "create", "vol0", "a")
    view = running.json("snapshot", "list")[0]["view_lun"]
    with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while filler.write(bytes(4096)):
            pass
    with running.session() as session:
        for lun in (0, 1, view):
            session.settle(lun)
        for _ in range(2):
            refused = write(session, 0, 5)
            assert (refused.key, refused.asc) == (0x07, (0x27, 0x07))
        assert write(session, 1, 5).status == 0  # without a snapshot it needs no room
        assert read(session, 0, 5) == read(session, view, 5) == bytes([1]) * 512
        assert read(session, 1, 5) == bytes([9]) * 512
        codes = {alert["code"] for alert in running.json("status")["alerts"]}
        assert {"low-space", "copies-failed"} <= codes
        for name in ("out.img", "out.qcow2"):
            refused_export = running.run("--json", "snapshot", "export", "vol0@a", str(disk / name), check=False)
            assert json.loads(refused_export.stderr)["error"] == "no-room"
            assert not (disk / name).exists()
            failed = running.run("snapshot", "export", "--anyway", "vol0@a", str(disk / name), check=False)
            assert "No space" in failed.stderr
            assert not (disk / name).exists()
        running.run("snapshot", "export", "vol0@a", str(disk.parent / "out.img"))
        assert (disk.parent / "out.img").read_bytes() == bytes([1]) * CHUNK * CHUNKS
        taken = running.run("snapshot", "create", "vol1", "b", check=False)
        assert taken.returncode == 1
        assert "space" in taken.stderr
        running.kill()
    running.start()  # starting needs no room either
    with running.session() as session:
        session.settle(0)
        assert read(session, view, 5) == bytes([1]) * 512
        refused = write(session, 0, 5)
        assert (refused.key, refused.asc) == (0x07, (0x27, 0x07))
    running.run("snapshot", "delete", "vol0@a")
    with running.session() as session:
        session.settle(0)
        assert write(session, 0, 5).status == 0
        assert read(session, 0, 5) == bytes([9]) * 512
