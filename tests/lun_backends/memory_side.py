# SPDX-License-Identifier: Apache-2.0
"""A write-once device in memory with `put_many`, for tests of the code that copies into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lun_backends import block_device
from lun_backends.block_device import Buffers
from tests.memory_device import MemoryDevice

CHUNK = 4096
SIZE = 16 * CHUNK + 512  # the last chunk is one block


def block(fill: int, length: int = 512) -> list[memoryview]:
    """Return a scatter list of `length` bytes, all of them `fill`."""
    return [memoryview(bytes([fill]) * length)]


def read(device: block_device.BlockDevice, offset: int, length: int) -> bytes:
    """Read a range of a device."""
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


class MemorySide(MemoryDevice):
    """`MemoryDevice(write_once=True)`; `commits` lists the offsets of every `put_many`, `on_commit` is called before each."""

    def __init__(self, size: int, block_size: int = 512) -> None:
        super().__init__(size, block_size=block_size, write_once=True)
        self.commits: list[list[int]] = []
        self.on_commit: Callable[[], None] | None = None

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> list[block_device.BlockWritten | None]:
        results: list[block_device.BlockWritten | None] = []
        stored: list[tuple[int, bytes]] = []
        for offset, buffers in requests:
            data = b"".join(buffers)
            taken = self._find(offset, len(data), 1)
            results.append(None if taken is None else block_device.BlockWritten(taken))
            if taken is None:
                stored.append((offset, data))
        if self.on_commit is not None:
            self.on_commit()
        for offset, data in stored:
            self.writev(offset, [memoryview(data)])
        self.commits.append([offset for offset, _ in stored])
        return results
