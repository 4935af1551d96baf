# SPDX-License-Identifier: Apache-2.0
"""A small volume with random content, for the tests of this room."""

from __future__ import annotations

from lun_backends import block_device
from lun_backends.volumes import volume

CHUNK = 4096
SIZE = 64 * CHUNK + 512


def block(fill: int, length: int = 512) -> list[memoryview]:
    return [memoryview(bytes([fill]) * length)]


def read(device: block_device.BlockDevice, offset: int = 0, length: int = SIZE) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


def reopen(old: volume.Volume) -> volume.Volume:
    old.close()
    return volume.Volume.open(old.directory)
