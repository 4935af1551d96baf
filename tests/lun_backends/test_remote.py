# SPDX-License-Identifier: Apache-2.0
"""The remote write-once LUN without its kernel: an errno becomes the error that GET LBA STATUS explains.

The device node, SG_IO and the errnos of a real kernel are in tests/kernel/test_shared_storage.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, remote
from lun_backends.block_device import ExtentKind
from lun_backends.files import backing_file
from tests.lun_backends.memory_side import SIZE, block, read
from tests.lun_backends.remote_lun import Disk, Remote, answer

BLOCKS = SIZE // 512


@pytest.fixture
def disk() -> Disk:
    return Disk(SIZE, write_once=True)


@pytest.fixture
def lun(disk: Disk) -> Iterator[Remote]:
    device = Remote(disk)
    yield device
    device.close()


def test_blank_and_written_follow_get_lba_status(lun: Remote, disk: Disk) -> None:
    disk.fill(b"\x11" * 1024, 1024)
    assert read(lun, 1024, 1024) == b"\x11" * 1024
    with pytest.raises(block_device.BlankBlock) as blank:
        read(lun, 1024, 2048)
    assert blank.value.lba == 4
    with pytest.raises(block_device.BlockWritten) as written:
        lun.writev(0, block(9, 4096))
    assert written.value.lba == 2
    lun.writev(0, block(9, 1024))
    assert read(lun, 0, 2048) == b"\x09" * 1024 + b"\x11" * 1024


def test_a_broken_device_never_looks_blank_or_written(lun: Remote, disk: Disk) -> None:
    disk.fill(b"\x11" * 512, 0)
    disk.broken = True
    with pytest.raises(block_device.MediumError, match="for a reason of its own"):
        read(lun, 0, 512)
    with pytest.raises(block_device.MediumError, match="for a reason of its own") as caught:
        lun.writev(512, block(9))
    assert caught.value.writing


def test_a_block_written_between_refusal_and_question_is_read_again(lun: Remote, disk: Disk) -> None:
    def write(method: str, _offset: int, _length: int) -> None:
        if method == "extents":
            disk.before = None
            disk.fill(b"\x33" * 512, 512)

    disk.before = write
    assert read(lun, 512, 512) == b"\x33" * 512


def test_put_many_goes_on_after_a_written_block(lun: Remote, disk: Disk) -> None:
    disk.fill(b"\x11" * 512, 512)
    results = lun.put_many([(0, block(1)), (512, block(2)), (1024, block(3))])
    assert [None if result is None else result.lba for result in results] == [None, 1, None]
    assert read(lun, 0, 1536) == b"\x01" * 512 + b"\x11" * 512 + b"\x03" * 512


def test_extents_over_several_answers_are_merged(lun: Remote, disk: Disk) -> None:
    for lba in (1, 2, 5, 9):
        disk.fill(b"\x11" * 512, lba * 512)
    data = [
        (extent.offset // 512, extent.length // 512)
        for extent in lun.extents(0, SIZE)
        if extent.kind is ExtentKind.DATA
    ]
    assert data == [(1, 2), (5, 1), (9, 1)]
    assert sum(extent.length for extent in lun.extents(0, SIZE)) == SIZE
    with pytest.raises(block_device.OutOfRange):
        list(lun.extents(SIZE, 512))


@pytest.mark.parametrize("wrong", [b"", bytes(8), answer((5, 3, 1)), answer((0, 2, 1))])
def test_an_answer_about_other_blocks_is_an_error(lun: Remote, wrong: bytes) -> None:
    lun.way.answers = [wrong]
    with pytest.raises(block_device.MediumError, match="GET LBA STATUS"):
        list(lun.extents(2 * 512, 512))


def test_a_descriptor_may_begin_before_the_block(lun: Remote) -> None:
    lun.way.answers = [answer((0, BLOCKS, 1))]
    assert [(extent.offset, extent.length) for extent in lun.extents(1024, 512)] == [(1024, 512)]


def test_nothing_is_done_without_waiting_for_the_network(lun: Remote, disk: Disk) -> None:
    assert not lun.write_now(0, 512, block(1))
    disk.fill(b"\x11" * 512, 0)
    assert not lun.read_now(0, 512, block(0))
    assert not disk.calls


def test_discarding_is_refused_and_zeroes_are_written(lun: Remote) -> None:
    with pytest.raises(block_device.NotSupported):
        lun.write_zeroes(0, 512, discard=True)
    lun.write_zeroes(512, 3 * 512, discard=False)
    assert read(lun, 512, 3 * 512) == bytes(3 * 512)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EREMOTEIO, remote._TargetFailure),
        (errno.ENODATA, block_device.MediumError),
        (errno.ENOSPC, block_device.SpaceExhausted),
        (errno.EBADE, block_device.ReservationConflict),
        (errno.EIO, block_device.MediumError),
    ],
)
def test_errnos_become_the_errors_of_the_table(tmp_path: Path, code: int, kind: type[Exception]) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    device = remote._Device(tmp_path / "disk")
    assert type(device._error(OSError(code, os.strerror(code)), 512, writing=True)) is kind
    device.close()


def test_a_file_is_no_remote_lun(tmp_path: Path) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    with pytest.raises(backing_file.CannotOpen):
        remote.RemoteWriteOnce(tmp_path / "disk")
