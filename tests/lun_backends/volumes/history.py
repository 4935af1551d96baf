# SPDX-License-Identifier: Apache-2.0
"""A volume with a history of three snapshots, for the tests of rollback and resize."""

from __future__ import annotations

import random
from pathlib import Path

from lun_backends import block_device
from lun_backends.files import storage_io
from lun_backends.volumes import volume

CHUNK = 4096
BLOCK = 512
SIZE = 40 * CHUNK + 3 * BLOCK


def read(device: block_device.BlockDevice, offset: int = 0, length: int | None = None) -> bytes:
    data = bytearray(device.size if length is None else length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


def fill(device: block_device.BlockDevice, seed: int, offset: int, length: int) -> None:
    device.writev(offset, [memoryview(random.Random(seed).randbytes(length))])


class History:
    """A volume with snapshots a, b and c, and the content of each."""

    def __init__(self, path: Path, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        self.volume = volume.Volume.create(path / "state", "v", path / "disk", size=SIZE, chunk_size=CHUNK, io=io)
        self.moments: dict[str, bytes] = {}
        fill(self.volume.device, 1, 0, SIZE - 4 * CHUNK)
        for turn, name in enumerate("abc"):
            self.moments[name] = read(self.volume.device)
            self.volume.create_snapshot(name)
            fill(self.volume.device, turn + 2, (4 * turn + 1) * CHUNK - BLOCK, 7 * CHUNK)
        self.volume.device.write_zeroes(30 * CHUNK, 2 * CHUNK, discard=True)
        fill(self.volume.device, 9, SIZE - BLOCK, BLOCK)

    def check(self, now: bytes | None = None) -> None:
        """Check that all snapshots are as they were, and the volume, too."""
        for name, moment in self.moments.items():
            assert read(self.volume.snapshot(name).view) == moment, name
        if now is not None:
            assert read(self.volume.device) == now

    def reopen(self, io: storage_io.StorageIO = storage_io.SYSTEM) -> None:
        self.volume.close()
        self.volume = volume.Volume.open(self.volume.directory, io=io)
