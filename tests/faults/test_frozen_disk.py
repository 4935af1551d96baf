# SPDX-License-Identifier: Apache-2.0
"""A file system that answers no write for a while holds up the volume on it, and no other.

`fsfreeze` does that, and LVM does it for a snapshot; a disk that is lost behind a multipath looks the same.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, peers

BLOCK = 4096
WRITE, READ = 0x2A, 0x28


def cdb(opcode: int, lba: int) -> bytes:
    return bytes((opcode, 0)) + lba.to_bytes(4, "big") + b"\0" + (BLOCK // 512).to_bytes(2, "big") + b"\0"


class Disk:
    """An ext4 of its own, which can be frozen."""

    def __init__(self, directory: Path) -> None:
        self.image, self.mount = directory / "ext4.img", directory / "mnt"
        self.mount.mkdir()
        with self.image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run([peers.require("mke2fs"), "-q", "-t", "ext4", self.image], check=True)
        subprocess.run([peers.require("mount"), "-o", "loop", self.image, self.mount], check=True)
        self.frozen = False

    def freeze(self) -> None:
        subprocess.run([peers.require("fsfreeze"), "--freeze", self.mount], check=True)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            subprocess.run([peers.require("fsfreeze"), "--unfreeze", self.mount], check=True)
            self.frozen = False

    def close(self) -> None:
        self.thaw()
        subprocess.run(["umount", self.mount], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    peers.need_root("mounting an ext4")
    made = Disk(tmp_path)
    yield made
    made.close()


class Stuck:
    """A write by a session of its own, which waits until the disk answers."""

    def __init__(self, served: daemon.Daemon) -> None:
        self.status: int | None = None
        self._session = served.session(initiator=f"{daemon.IQN}:stuck")
        self._session.settle(0)
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        self.status = self._session.command(0, cdb(WRITE, 0), out=b"w" * BLOCK).status

    def end(self) -> int | None:
        """Return the status, once the disk answers again."""
        self._thread.join(60)
        self._session.close()
        return self.status


@pytest.mark.parametrize("frozen", ["primary", "preserved data"])
def test_frozen_disk_holds_up_no_other_volume(tmp_path: Path, disk: Disk, frozen: str) -> None:
    """Neither for sessions that were there, nor for new ones."""
    places = {"primary": tmp_path, "preserved data": tmp_path, frozen: disk.mount}
    primary = places["primary"] / "vol0.img"
    primary.write_bytes(bytes(8 << 20))
    volumes = (
        f"  - {{name: vol0, lun: 0, primary: {primary}, durability: process-crash}}\n"
        f"  - {{name: vol1, lun: 1, size: 8MiB, primary: {tmp_path}/vol1.img, durability: process-crash}}\n"
    )
    served = daemon.Daemon(tmp_path, volumes)
    served.state = places["preserved data"] / "state"
    with served:
        if frozen == "preserved data":
            served.run("snapshot", "create", "vol0", "s")
        with served.session() as there:
            there.settle(1)
            disk.freeze()
            try:
                stuck = Stuck(served)
                with served.session(initiator=f"{daemon.IQN}:new") as new:
                    new.settle(1)
                    for session in (there, new):
                        for lba in range(0, 64, 8):
                            assert session.command(1, cdb(WRITE, lba), out=bytes([lba + 1]) * BLOCK).status == 0
                            assert session.command(1, cdb(READ, lba), read=BLOCK).data == bytes([lba + 1]) * BLOCK
                assert served.json("status")["volumes"][1]["state"] == "online"
                assert stuck.status is None
            finally:
                disk.thaw()
            assert stuck.end() == 0
            there.settle(0)
            assert there.command(0, cdb(READ, 0), read=BLOCK).data == b"w" * BLOCK
            for lba in range(8, 1008, 8):  # it proves itself, and is written in place again
                assert there.command(0, cdb(WRITE, lba), out=b"x" * BLOCK).status == 0
    assert primary.read_bytes()[: 126 * BLOCK] == b"w" * BLOCK + b"x" * BLOCK * 125
    assert "a disk made iscsi-portal wait" in (tmp_path / "stderr").read_text()
