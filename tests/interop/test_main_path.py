# SPDX-License-Identifier: Apache-2.0
"""The main path, end to end, with initiators of other projects.

qemu writes a file system, the daemon takes a snapshot, and random writes overwrite the volume while an export runs. The
export and the view must both equal the volume as it was at the snapshot.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sysconfig
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, peers

pytestmark = pytest.mark.interop
MIB = 1 << 20
SIZE = 128 * MIB


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """Return an ext4 image that holds real files (a part of Python's standard library)."""
    files = tmp_path / "files"
    shutil.copytree(Path(sysconfig.get_path("stdlib")) / "asyncio", files / "asyncio")
    shutil.copytree(Path(sysconfig.get_path("stdlib")) / "email", files / "email")
    (files / "big").write_bytes(random.Random(1).randbytes(24 * MIB))
    image = tmp_path / "ext4.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    _run(peers.require("mke2fs"), "-q", "-t", "ext4", "-F", "-d", files, image)
    return image


@pytest.fixture(params=["process-crash", "power-loss"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[daemon.Daemon]:
    """Run a daemon with one volume as large as the image."""
    volumes = f"  - {{name: vol0, lun: 0, size: {SIZE}, durability: {request.param}}}\n"
    with daemon.Daemon(tmp_path, volumes) as running:
        yield running


def _scribble(url: str, seed: int, count: int) -> None:
    """Make `count` random writes of up to 128 KiB through qemu-io, each with a random byte and unaligned to chunks."""
    dice = random.Random(seed)
    commands: list[str] = []
    for _ in range(count):
        length = 512 * dice.randint(1, 256)
        offset = 512 * dice.randint(0, (SIZE - length) // 512)
        commands += ["-c", f"aio_write -q -P {dice.randint(1, 255)} {offset} {length}"]
    _run(peers.require("qemu-io"), "-f", "raw", "-t", "none", *commands, "-c", "aio_flush", url)


def test_export_and_view_are_bit_identical_while_the_volume_is_overwritten(
    served: daemon.Daemon, ext4: Path, tmp_path: Path
) -> None:
    qemu_img = peers.require("qemu-img")
    _run(qemu_img, "convert", "-n", "-f", "raw", "-O", "raw", ext4, served.url(0))
    taken = served.json("snapshot", "create", "vol0", "before-upgrade")
    assert {"volume", "name", "view_lun", "write_once_lun"} <= taken.keys()

    export, failures = tmp_path / "out.img", []

    def writing() -> None:
        try:
            for seed in range(4):
                _scribble(served.url(0), seed, 150)
        except AssertionError as error:
            failures.append(error)

    writer = threading.Thread(target=writing)
    writer.start()
    served.run("snapshot", "export", "vol0@before-upgrade", str(export))
    writer.join()
    assert not failures
    _run("cmp", ext4, export)
    assert export.stat().st_blocks * 512 < SIZE * 3 // 4, "the export is not sparse"

    view = tmp_path / "view.img"
    _run(qemu_img, "convert", "-f", "raw", "-O", "raw", served.url(taken["view_lun"]), view)
    _run("cmp", ext4, view)
    _run(peers.require("e2fsck"), "-f", "-n", view)

    volume = tmp_path / "volume.img"
    _run(qemu_img, "convert", "-f", "raw", "-O", "raw", served.url(0), volume)
    assert subprocess.run(["cmp", "-s", ext4, volume]).returncode == 1, "the writes did not reach the volume"


def test_each_snapshot_shows_the_volume_at_its_own_moment(served: daemon.Daemon, ext4: Path, tmp_path: Path) -> None:
    qemu_img = peers.require("qemu-img")
    _run(qemu_img, "convert", "-n", "-f", "raw", "-O", "raw", ext4, served.url(0))
    moments: list[tuple[int, Path]] = []
    for number in range(3):
        moment = tmp_path / f"moment{number}.img"
        _run(qemu_img, "convert", "-f", "raw", "-O", "raw", served.url(0), moment)
        moments.append((served.json("snapshot", "create", "vol0", f"s{number}")["view_lun"], moment))
        _scribble(served.url(0), 10 + number, 60)
    for lun, moment in moments:
        _run(qemu_img, "compare", "-f", "raw", "-F", "raw", served.url(lun), moment)


def test_a_killed_daemon_keeps_what_was_acknowledged_and_preserved(served: daemon.Daemon, ext4: Path) -> None:
    qemu_img = peers.require("qemu-img")
    _run(qemu_img, "convert", "-n", "-f", "raw", "-O", "raw", ext4, served.url(0))
    taken = served.json("snapshot", "create", "vol0", "s")
    _scribble(served.url(0), 99, 100)
    _run(peers.require("qemu-io"), "-f", "raw", "-c", f"write -q -P 77 {5 * MIB} {MIB}", served.url(0))
    served.kill()
    served.start()
    _run(qemu_img, "compare", "-f", "raw", "-F", "raw", served.url(taken["view_lun"]), ext4)
    # qemu-io exits with 1 if the blocks do not hold the pattern.
    _run(peers.require("qemu-io"), "-f", "raw", "-c", f"read -q -P 77 {5 * MIB} {MIB}", served.url(0))


def test_printed_url_of_a_lun_above_255_works_and_so_does_the_plain_number(tmp_path: Path) -> None:
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 300, size: 1MiB}\n") as served:
        _run(peers.require("qemu-io"), "-f", "raw", "-c", "write -q -P 7 0 1M", served.url(300))
        served.stop()
        # snapshots of a volume that is not served at present have all the lower numbers
        taken = {str(uuid.UUID(int=at)): {"volume": "v", "view": at, "write_once": at + 1} for at in range(0, 298, 2)}
        (served.state / "luns.json").write_text(json.dumps({"snapshots": taken}))
        served.start()
        snapshot = served.json("snapshot", "create", "vol0", "s")
        assert (snapshot["view_lun"], snapshot["view_url"]) == (298, served.url(0x4000 | 298))
        for url in (snapshot["view_url"], served.url(298)):
            assert "1 MiB" in _run(peers.require("qemu-io"), "-r", "-f", "raw", "-c", "read -P 7 0 1M", url)
