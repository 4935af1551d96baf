# SPDX-License-Identifier: Apache-2.0
"""A remote write-once LUN without its kernel: the real `RemoteWriteOnce` on a disk in memory."""

from __future__ import annotations

import struct

from lun_backends import block_device, remote
from lun_backends.block_device import ExtentKind
from lun_backends.initiator import unit
from tests.memory_device import MemoryDevice


class Disk(MemoryDevice):
    """The block device as Linux shows it: every refusal of the LUN is EREMOTEIO."""

    broken = False

    def readv(self, offset: int, buffers: block_device.Buffers) -> None:
        try:
            self._fail()
            super().readv(offset, buffers)
        except block_device.BlankBlock:
            raise remote._TargetFailure from None

    def writev(self, offset: int, buffers: block_device.Buffers, *, fua: bool = False) -> None:
        try:
            self._fail()
            super().writev(offset, buffers, fua=fua)
        except block_device.BlockWritten:
            raise remote._TargetFailure from None

    def _fail(self) -> None:
        if self.broken:
            raise remote._TargetFailure


class Unit(unit.Unit):
    """The way to the LUN for the question about its blocks."""

    def __init__(self, disk: Disk) -> None:
        super().__init__("/dev/none")
        self._disk = disk
        self.answers: list[bytes] = []

    def reset_logical_unit(self, timeout: float = 0.0) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _send(
        self, cdb: bytes, data_out: block_device.Buffers, data_in: block_device.Buffers, timeout: float
    ) -> unit.Answer:
        assert cdb[:2] == b"\x9e\x12"
        lba = int.from_bytes(cdb[2:10])
        runs: list[tuple[int, int, int]] = []
        for extent in MemoryDevice.extents(self._disk, lba * 512, self._disk.size - lba * 512):
            runs.append((extent.offset // 512, extent.length // 512, int(extent.kind is ExtentKind.BLANK)))
        # A device may answer for less than it was asked.
        data = self.answers.pop(0) if self.answers else answer(*runs[:2])
        (into,) = data_in
        into[: len(data)] = data
        return unit.Answer(unit.GOOD, len(data))


class Remote(remote.RemoteWriteOnce):
    """The remote write-once LUN on that disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._device = disk  # type: ignore[assignment]  # in place of the device node, which takes a kernel
        self._unit = self.way = Unit(disk)
        self.size, self.block_size, self._shift = disk.size, 512, 9


def answer(*runs: tuple[int, int, int]) -> bytes:
    descriptors = b"".join(struct.pack(">QIB3x", *run) for run in runs)
    return struct.pack(">I4x", len(descriptors) + 4) + descriptors
