# SPDX-License-Identifier: Apache-2.0
"""SG_IO without its kernel: the structure that goes to ioctl(2), and the answers of its fields.

A real kernel with real disks is in tests/kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.files import backing_file
from lun_backends.initiator import memory, sg_io, unit

READ = b"\x88\0" + (3).to_bytes(8) + (2).to_bytes(4) + b"\0\0"
WRITE = b"\x8a\0" + (3).to_bytes(8) + (2).to_bytes(4) + b"\0\0"


class Kernel:
    """The ioctls of a disk, as block/scsi_ioctl.c and drivers/scsi/scsi_ioctl.c do them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        self.data = bytearray(b"\x11" * 4096)
        self.status = self.host_status = self.driver_status = 0
        self.sense = b""
        self.short = 0  # bytes that the device sends less
        self.error = 0
        self.resets: list[int] = []
        self.during: Callable[[], None] | None = None
        monkeypatch.setattr("fcntl.ioctl", self.ioctl)

    def ioctl(self, fd: int, request: int, argument: sg_io._Header | bytearray) -> int:
        os.fstat(fd)
        if self.during is not None:
            self.during()
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if isinstance(argument, bytearray):
            assert request == 0x2284
            self.resets.append(struct.unpack("i", argument)[0])
            return 0
        assert request == 0x2285
        header = argument
        assert chr(header.interface_id) == "S"
        self.sent.append(ctypes.string_at(header.cmdp, header.cmd_len))
        pieces = [memory.IoVector(header.dxferp, header.dxfer_len)]
        if header.iovec_count:
            pieces = list((memory.IoVector * header.iovec_count).from_address(header.dxferp))
        elif not header.dxfer_len:
            pieces = []
        assert sum(piece.length for piece in pieces) == header.dxfer_len
        position = 0
        for piece in pieces:
            if header.dxfer_direction == -3:
                ctypes.memmove(piece.base, bytes(self.data[position : position + piece.length]), piece.length)
            else:
                assert header.dxfer_direction == -2
                self.data[position : position + piece.length] = ctypes.string_at(piece.base, piece.length)
            position += piece.length
        ctypes.memmove(header.sbp, self.sense, len(self.sense))
        header.sb_len_wr = len(self.sense)
        header.status, header.host_status, header.driver_status = self.status, self.host_status, self.driver_status
        header.resid = self.short
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def disk(kernel: Kernel, tmp_path: Path) -> Iterator[sg_io.SgIo]:
    (tmp_path / "sdx").write_bytes(b"")
    made = sg_io.SgIo(tmp_path / "sdx")
    yield made
    kernel.during = None
    made.close()


def test_structure_has_the_size_of_the_kernel() -> None:
    assert ctypes.sizeof(sg_io._Header) == 88
    assert (sg_io._Header.status.offset, sg_io._Header.resid.offset) == (64, 72)


def test_data_goes_both_ways_in_scatter_lists(disk: sg_io.SgIo, kernel: Kernel) -> None:
    first, second = bytearray(512), bytearray(512)
    assert disk.execute_into(READ, [memoryview(first), memoryview(second)]) == 1024
    assert first + second == kernel.data[:1024]
    disk.execute(WRITE, [memoryview(b"\x22" * 512), memoryview(bytearray(b"\x33" * 512))])
    assert kernel.data[:1024] == b"\x22" * 512 + b"\x33" * 512
    disk.execute(WRITE, b"\x44" * 1024)
    assert kernel.data[:1024] == b"\x44" * 1024
    disk.execute(bytes(6))
    assert kernel.sent == [READ, WRITE, WRITE, bytes(6)]


def test_short_answer_has_its_own_length(disk: sg_io.SgIo, kernel: Kernel) -> None:
    kernel.short = 200
    assert len(disk.execute(READ, in_length=1024)) == 824


def test_sense_data_is_decoded(disk: sg_io.SgIo, kernel: Kernel) -> None:
    kernel.status, kernel.driver_status = unit.CHECK_CONDITION, 0x08
    kernel.sense = bytes.fromhex("f00008 00000007 0a 00000000 0000 00 000000")
    with pytest.raises(unit.CheckCondition) as blank:
        disk.execute(READ, in_length=1024)
    assert blank.value.sense == unit.Sense(unit.BLANK_CHECK, 0, 7)


def test_conflict_is_a_conflict_although_the_kernel_adds_a_host_status(disk: sg_io.SgIo, kernel: Kernel) -> None:
    kernel.status, kernel.host_status = unit.RESERVATION_CONFLICT, 0x11  # DID_NEXUS_FAILURE
    with pytest.raises(block_device.ReservationConflict):
        disk.execute(WRITE, bytes(1024))


@pytest.mark.parametrize(("host", "driver"), [(0x01, 0), (0x03, 0), (0x0E, 0), (0, 0x06)])
def test_lost_path_is_no_answer(disk: sg_io.SgIo, kernel: Kernel, host: int, driver: int) -> None:
    kernel.host_status, kernel.driver_status = host, driver
    with pytest.raises(block_device.NoAnswer, match="host status"):
        disk.execute(WRITE, bytes(1024))


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EPERM, unit.CannotSend, "CAP_SYS_RAWIO"),
        (errno.ENOTTY, unit.CannotSend, "name a SCSI disk"),
        (errno.EINVAL, unit.CannotSend, "name a SCSI disk"),
        (errno.ENODEV, block_device.NoAnswer, "No such device"),
        (errno.EIO, block_device.NoAnswer, "/output error"),
    ],
)
def test_errnos(disk: sg_io.SgIo, kernel: Kernel, code: int, kind: type[Exception], words: str) -> None:
    kernel.error = code
    with pytest.raises(kind, match=words):
        disk.execute(bytes(6))
    with pytest.raises(kind):
        disk.reset_logical_unit()


def test_reset_is_that_of_the_unit_alone(disk: sg_io.SgIo, kernel: Kernel) -> None:
    disk.reset_logical_unit()
    assert kernel.resets == [0x101]  # SG_SCSI_RESET_DEVICE, without escalation


def test_close_waits_for_a_command_that_runs(disk: sg_io.SgIo, kernel: Kernel) -> None:
    reached, answer = threading.Event(), threading.Event()

    def slow() -> None:
        reached.set()
        assert answer.wait(20)

    kernel.during = slow
    command = threading.Thread(target=disk.execute, args=(bytes(6),))
    command.start()
    assert reached.wait(20)
    closing = threading.Thread(target=disk.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    answer.set()
    closing.join(20)
    command.join(20)
    assert not closing.is_alive()
    with pytest.raises(block_device.DeviceClosed):
        disk.execute(bytes(6))


def test_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(backing_file.CannotOpen, match="check the device"):
        sg_io.SgIo(tmp_path / "none")
