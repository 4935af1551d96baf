# SPDX-License-Identifier: Apache-2.0
"""`wolun snapshot mount` with real file systems: a file is got back, and nothing is left behind, whatever was killed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.commands import mounting
from tests import daemon

MIB = 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB}


def run(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


def left() -> list[str]:
    """Return what there is of mounts of wolun."""
    loops = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    mounts = Path("/proc/mounts").read_text().splitlines()
    found = [line for line in (*loops, *mounts) if str(mounting.RUN) in line]
    return found + list(map(str, mounting.RUN.glob("*")))


@pytest.fixture(params=list(SIZES))
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[daemon.Daemon]:
    """Serve a volume with a file system, whose file `got-back` a snapshot has; its journal holds the file `in-journal`."""
    kind, primary, there = request.param, tmp_path / "primary.img", tmp_path / "there"
    with primary.open("wb") as file:
        file.truncate(SIZES[kind])
    run(f"mkfs.{kind}", "-q", primary)
    there.mkdir()
    run("mount", "-o", "loop", primary, there)
    (there / "got-back").write_text("yesterday's")
    run("umount", there)
    run("mount", "-o", "loop", primary, there)
    (there / "in-journal").write_text("not yet in its place")
    run("sync", "-f", there)
    crashed = tmp_path / "crashed.img"
    run("cp", "--sparse=always", primary, crashed)
    run("umount", there)
    volumes = f"  - {{name: vol0, lun: 0, primary: {crashed}, map_views: none}}\n"
    with daemon.Daemon(tmp_path, volumes) as running:
        running.run("snapshot", "create", "vol0", "a")
        yield running
    assert not left()


def test_file_is_got_back_and_nothing_is_left(served: daemon.Daemon, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    said = served.run("snapshot", "mount", "vol0@a", str(place)).stdout
    assert said.startswith(f"vol0@a is mounted on {place}, read-only (")
    assert (place / "got-back").read_text() == "yesterday's"
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").touch()
    again = served.run("snapshot", "mount", "vol0@a", str(place), check=False)
    assert "something is mounted there" in again.stderr
    served.run("snapshot", "umount", str(place))
    assert not list(place.iterdir())
    assert not left()
    (shown,) = served.json("snapshot", "list", "vol0")
    assert shown["view_lun"] is None  # it had a LUN for the mount only
    assert "wolun mounted nothing" in served.run("snapshot", "umount", str(place), check=False).stderr


def test_killed_daemon_and_killed_server_leave_nothing(served: daemon.Daemon, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    for victim in ("daemon", "server"):
        served.run("snapshot", "mount", "vol0@a", str(place))
        if victim == "daemon":
            served.kill()
        else:
            os.kill(int(next(mounting.RUN.glob("*/pid")).read_text()), signal.SIGKILL)
        served.run("snapshot", "umount", str(place))
        assert not left(), victim
        if victim == "daemon":
            served.start()


def test_what_cannot_be_mounted_leaves_nothing(served: daemon.Daemon, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    for words, reason in (
        (("vol0@a", str(place), "--partition", "3"), "partition 3"),
        (("vol0@b", str(place)), "vol0 has no snapshot b"),
        (("vol0@a", str(tmp_path / "nothing")), "it is no directory"),
    ):
        refused = served.run("snapshot", "mount", *words, check=False)
        assert (refused.returncode, reason in refused.stderr) == (1, True), refused.stderr
        assert not left()


def test_partition_is_mounted(tmp_path: Path) -> None:
    primary, there, place = tmp_path / "primary.img", tmp_path / "there", tmp_path / "mounted"
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), MIB // 512, 63 * MIB // 512)
    with primary.open("wb") as file:  # a master boot record with one partition
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", "-E", f"offset={MIB}", primary, "60M")
    for directory in (there, place):
        directory.mkdir()
    run("mount", "-o", f"loop,offset={MIB}", primary, there)
    (there / "got-back").write_text("yesterday's")
    run("umount", there)
    with daemon.Daemon(tmp_path, f"  - {{name: vol0, lun: 0, primary: {primary}}}\n") as running:
        running.run("snapshot", "create", "vol0", "a")
        whole = running.run("snapshot", "mount", "vol0@a", str(place), check=False)
        assert "it has partitions" in whole.stderr
        running.run("snapshot", "mount", "vol0@a", str(place), "--partition", "1")
        assert (place / "got-back").read_text() == "yesterday's"
        running.run("snapshot", "umount", str(place))
    assert not left()


def write_read_write(served: daemon.Daemon, place: Path) -> str:
    """Mount vol0@a read-write, write to it, and return the name of the clone."""
    place.mkdir(exist_ok=True)
    said = served.run("snapshot", "mount", "vol0@a", str(place), "--rw").stdout
    (clone,) = served.json("clone", "list")
    assert said.startswith(f"vol0@a is mounted on {place}, as clone {clone['name']}, read-write (")
    assert (place / "got-back").read_text() == "yesterday's"
    (place / "new").write_text("today's")
    return str(clone["name"])


def test_clone_replays_the_journal_and_goes_with_its_mount(served: daemon.Daemon, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    write_read_write(served, place)
    assert (place / "in-journal").read_text() == "not yet in its place"
    assert "clone mount-" in served.run("snapshot", "delete", "vol0@a", check=False).stderr
    served.run("snapshot", "umount", str(place), "--yes")
    assert served.json("clone", "list") == []
    name = write_read_write(served, place)  # the snapshot has stayed as it was
    kept = served.run("snapshot", "umount", str(place), "--keep").stdout
    assert kept == f"vol0@a is no longer mounted on {place}; its clone {name} is kept\n"
    assert not left()
    there = served.run("clone", "mount", name, str(place)).stdout
    assert there.startswith(f"{name} is mounted on {place}, read-write (")
    assert (place / "new").read_text() == "today's"
    served.run("clone", "umount", str(place))
    assert [clone["name"] for clone in served.json("clone", "list")] == [name]
    served.run("clone", "delete", name, "--yes")


def test_killed_daemon_and_killed_server_leave_no_clone(served: daemon.Daemon, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    write_read_write(served, place)
    served.kill()
    refused = served.run("snapshot", "umount", str(place), "--keep", check=False)
    assert (refused.returncode, "no daemon serves" in refused.stderr) == (1, True), refused.stderr
    half = served.run("snapshot", "umount", str(place), "--yes", check=False)
    assert (half.returncode, "is unmounted, but its clone mount-" in half.stderr) == (1, True), half.stderr
    assert not place.is_mount()
    served.start()
    served.run("snapshot", "umount", str(place), "--yes")
    assert (served.json("clone", "list"), left()) == ([], [])
    write_read_write(served, place)
    served.kill()
    served.start()
    (place / "after").write_text("the initiator has logged in again")
    run("sync", "-f", place)
    os.kill(int(next(mounting.RUN.glob("*/pid")).read_text()), signal.SIGKILL)
    served.run("snapshot", "umount", str(place), "--yes")
    assert (served.json("clone", "list"), left()) == ([], [])
    place.rmdir()
    refused = served.run("snapshot", "mount", "vol0@a", str(place), "--rw", check=False)
    assert "it is no directory" in refused.stderr
    place.mkdir()
    refused = served.run("snapshot", "mount", "vol0@a", str(place), "--rw", "--partition", "3", check=False)
    assert "partition 3" in refused.stderr
    assert served.json("clone", "list") == []
