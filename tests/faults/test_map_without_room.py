# SPDX-License-Identifier: Apache-2.0
"""Maps on file systems that run out of room for changed pages, and a map that is cut short.

Btrfs, and XFS with a reflinked file, write changed pages to a new place, so pages that are on the disk already need room, too.
A store into the mapping of such a file would end the daemon with SIGBUS.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, libiscsi, peers

pytestmark = pytest.mark.interop

MAKE = {
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
}
CHUNK = 4096
SIZE = 256 << 20


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Mount a small file system of the type that the test names."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    kind = request.param
    with image.open("wb") as file:
        file.truncate(320 << 20)
    peers.need_root("a mount")
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "wolun-test"]
    else:
        make = MAKE[kind]
        peers.require(make[0])
        subprocess.run([*make, image], check=True, capture_output=True)
        mount = ["mount", "-o", "loop", str(image)]
    subprocess.run([*mount, disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def volume(directory: Path) -> str:
    primary = directory / "primary.img"
    with primary.open("wb") as file:
        file.truncate(SIZE)
    return f"  - {{name: vol0, lun: 0, primary: {primary}, chunk_size: 4KiB}}\n"


def write(session: libiscsi.Session, chunk: int) -> libiscsi.Answer:
    return session.command(0, b"\x2a\0" + (chunk * 8).to_bytes(4) + b"\0\0\1\0", out=bytes([9]) * 512)


def read(session: libiscsi.Session, lun: int, chunk: int) -> libiscsi.Answer:
    return session.command(lun, b"\x28\0" + (chunk * 8).to_bytes(4) + b"\0\0\1\0", read=512)


@pytest.mark.parametrize("disk", ["btrfs", "ext4", "tmpfs", "xfs"], indirect=True)
def test_a_map_whose_pages_find_no_room_refuses_writes(disk: Path, tmp_path: Path) -> None:
    """The map's pages are on the disk and, on XFS, shared with a copy; then the file system is filled."""
    state = tmp_path / "state"
    (disk / "state").mkdir()
    state.symlink_to(disk / "state")
    with daemon.Daemon(tmp_path, volume(tmp_path)) as running:
        running.run("snapshot", "create", "vol0", "a")
        view = running.json("snapshot", "list")[0]["view_lun"]
        with running.session() as session:
            for lun in (0, view):
                session.settle(lun)
            chunks = range(0, SIZE // CHUNK, 997)
            assert {write(session, chunk).status for chunk in chunks} == {0}
            os.sync()
            path = next((disk / "state").rglob("*.map"))
            subprocess.run(["cp", "--reflink=auto", path, disk / "copy"], check=True)
            os.sync()
            _fill(disk)
            answers = [write(session, chunk + 1) for chunk in chunks]
            assert 2 in {answer.status for answer in answers}
            for chunk, answer in zip(chunks, answers, strict=True):
                for place in (chunk, chunk + 1):
                    assert read(session, view, place).data == bytes(512)
                assert read(session, 0, chunk + 1).data == (bytes(512) if answer.status else bytes([9]) * 512)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as filler:
        with pytest.raises(OSError, match="No space"):
            for offset in range(0, 1 << 40, 8 << 20):
                os.posix_fallocate(filler.fileno(), offset, 8 << 20)
        for length in (65536, 4096, 512):
            with pytest.raises(OSError, match="No space"):
                while filler.write(os.urandom(length)):
                    pass
    os.sync()


def test_a_map_that_is_cut_short_ends_the_daemon_and_makes_no_snapshot_look_good(tmp_path: Path) -> None:
    running = daemon.Daemon(tmp_path, volume(tmp_path)).start()
    running.run("snapshot", "create", "vol0", "a")
    view = running.json("snapshot", "list")[0]["view_lun"]
    with running.session() as session:
        for lun in (0, view):
            session.settle(lun)
        assert write(session, 5).status == 0
        path = next(running.state.rglob("*.map"))
        os.truncate(path, 8192)
        with pytest.raises(libiscsi.LibiscsiError):
            read(session, view, 5)
    assert running.process is not None
    assert running.process.wait(60) == -signal.SIGBUS
    assert "SIGBUS" in (tmp_path / "stderr").read_text() or "Bus error" in (tmp_path / "stderr").read_text()
    assert path.stat().st_size == 8192
    with running:
        shown = running.json("snapshot", "list")[0]
        assert shown["state"] == "invalid"
        assert "bytes long" in shown["reason"]
