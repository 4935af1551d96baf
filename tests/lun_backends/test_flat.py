# SPDX-License-Identifier: Apache-2.0
"""The primary on real files: content, holes, limits, errors, calls that must not wait, O_DIRECT, and close during a write."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lun_backends import block_device, flat, in_place
from lun_backends.block_device import ExtentKind
from lun_backends.files import backing_file, storage_io

SIZE = 1 << 20


def buffers(data: bytes, *lengths: int) -> list[memoryview]:
    views, at = [], 0
    for length in lengths or (len(data),):
        views.append(memoryview(bytearray(data[at : at + length])))
        at += length
    return views


@pytest.fixture(params=["buffered", "direct"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[flat.Flat]:
    path = tmp_path / "disk"
    backing_file.create(path, SIZE)
    try:
        opened = flat.Flat(path, direct=request.param == "direct")
    except backing_file.CannotOpen as error:
        pytest.skip(str(error))  # the file system of the temporary directory may have no O_DIRECT (tmpfs before 6.5)
    yield opened
    opened.close()


def read(device: flat.Flat, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.readv(offset, [memoryview(data)])
    return bytes(data)


@pytest.mark.parametrize("size", [2 * SIZE, 1 << 63, 1 << 90])
def test_growth_to_a_size_that_no_file_can_have_is_refused(tmp_path: Path, size: int) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))  # as a file system with such a limit answers
    refused = pytest.raises(backing_file.CannotOpen, match=f"no file can have {size} bytes there; give a smaller size")
    try:
        with contextlib.closing(flat.Flat(tmp_path / "disk")) as device, refused:
            device.make_room(size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(file.name, file.stat().st_size) for file in tmp_path.iterdir()] == [("disk", SIZE)]


def test_writes_are_read_back_however_their_buffers_are_cut(device: flat.Flat) -> None:
    rng = random.Random(1)
    model = bytearray(SIZE)
    for _ in range(60):
        length = rng.randrange(1, 40) * 512
        offset = rng.randrange((SIZE - length) // 512 + 1) * 512
        data = rng.randbytes(length)
        cut = rng.randrange(length + 1)  # the buffers are whole blocks only together
        device.writev(offset, buffers(data, cut, length - cut), fua=rng.random() < 0.2)
        model[offset : offset + length] = data
    target = bytearray(SIZE)
    device.readv(0, [memoryview(target)[:777], memoryview(target)[777:]])
    assert target == model
    assert device.path.read_bytes() == model


def test_more_buffers_than_a_system_call_accepts_are_moved_in_several(device: flat.Flat) -> None:
    data = random.Random(2).randbytes(512 * 3000)[: SIZE // 2]
    pieces = [memoryview(data)[at : at + 256] for at in range(0, len(data), 256)]
    device.writev(0, pieces)
    target = bytearray(len(data))
    device.readv(0, [memoryview(target)[at : at + 256] for at in range(0, len(data), 256)])
    assert target == data


def test_ranges_beyond_the_end_are_refused(device: flat.Flat) -> None:
    for offset, length, lba in (
        (SIZE, 512, SIZE // 512),
        (SIZE - 512, 1024, SIZE // 512),
        (SIZE * 2, 512, SIZE // 256),
    ):
        with pytest.raises(block_device.OutOfRange) as caught:
            device.readv(offset, buffers(bytes(length)))
        assert caught.value.lba == lba
        with pytest.raises(block_device.OutOfRange):
            device.writev(offset, buffers(bytes(length)))
        with pytest.raises(block_device.OutOfRange):
            device.write_now(offset, length, buffers(bytes(length)))
        with pytest.raises(block_device.OutOfRange):
            device.write_zeroes(offset, length, discard=True)
        with pytest.raises(block_device.OutOfRange):
            list(device.extents(offset, length))
    assert device.path.stat().st_size == SIZE


def test_zeroes_are_read_back_and_leave_holes(device: flat.Flat) -> None:
    device.writev(0, buffers(b"\x11" * 65536))
    device.write_zeroes(4096, 8192, discard=True)
    device.write_zeroes(32768, 4096, discard=False)
    device.write_zeroes(512, 512, discard=True, fua=True)
    assert read(device, 0, 65536) == (
        b"\x11" * 512 + bytes(512) + b"\x11" * 3072 + bytes(8192) + b"\x11" * 20480 + bytes(4096) + b"\x11" * 28672
    )
    extents = list(device.extents(0, SIZE))
    assert extents[0].offset == 0
    assert sum(extent.length for extent in extents) == SIZE
    assert all(a.offset + a.length == b.offset for a, b in itertools.pairwise(extents))
    holes = {(extent.offset, extent.length) for extent in extents if extent.kind is ExtentKind.HOLE}
    assert holes >= {(4096, 8192), (65536, SIZE - 65536)}
    assert [extent.kind for extent in device.extents(512, 512)] == [ExtentKind.DATA]


def test_zeroes_are_written_where_the_file_system_cannot_make_them(
    device: flat.Flat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_deallocate", lambda *_: False)
    device.writev(0, buffers(b"\x11" * 65536))
    device.write_zeroes(512, 20480, discard=True)
    assert read(device, 0, 65536) == b"\x11" * 512 + bytes(20480) + b"\x11" * (65536 - 20992)


def test_a_full_file_system_is_space_exhausted(device: flat.Flat, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, limit[1]))
    try:
        with pytest.raises(block_device.SpaceExhausted) as caught:
            device.writev(SIZE // 2, buffers(bytes(4096)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.lba == SIZE // 2 // 512


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EIO, block_device.MediumError),
        (errno.ENODATA, block_device.MediumError),
        (errno.ENOSPC, block_device.SpaceExhausted),
        (errno.EDQUOT, block_device.SpaceExhausted),
        (errno.EROFS, block_device.WriteProtected),
        (errno.EBADE, block_device.ReservationConflict),
    ],
)
def test_errors_are_typed(tmp_path: Path, code: int, expected: type[Exception]) -> None:
    class Failing(storage_io.StorageIO):
        def pwritev(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
            raise OSError(code, os.strerror(code))

    backing_file.create(tmp_path / "disk", SIZE)
    device = flat.Flat(tmp_path / "disk", io=Failing())
    with pytest.raises(expected):
        device.writev(0, buffers(bytes(4096)))
    with pytest.raises(expected):
        device.write_now(0, 4096, buffers(bytes(4096)))
    device.close()


def test_a_file_cut_short_while_open_is_a_medium_error(tmp_path: Path) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    device = flat.Flat(tmp_path / "disk")
    os.truncate(tmp_path / "disk", 4096)
    with pytest.raises(block_device.MediumError, match="ends before"):
        read(device, 0, 8192)
    device.close()


def test_the_page_cache_is_read_and_written_without_waiting(tmp_path: Path) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    device = flat.Flat(tmp_path / "disk")
    assert device.write_now(0, 8192, buffers(b"\x22" * 8192))
    target = bytearray(8192)
    assert device.read_now(0, 8192, [memoryview(target)])
    assert target == b"\x22" * 8192
    assert device.write_now(512, 512, buffers(b"\x33" * 512))  # its page is cached, so no page must be read first
    assert read(device, 0, 1536) == b"\x22" * 512 + b"\x33" * 512 + b"\x22" * 512
    assert device.write_now(4096, 4096, buffers(b"\x44" * 4096))  # whole pages need no reading
    assert read(device, 4096, 4096) == b"\x44" * 4096
    device.close()


@pytest.mark.parametrize("writing", [False, True])
def test_calls_that_need_the_disk_are_not_done_without_waiting(tmp_path: Path, writing: bool) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    device = flat.Flat(tmp_path / "disk")
    assert device.write_now(0, 8192, buffers(b"\x22" * 8192))
    device.flush()
    with open(tmp_path / "disk", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if device._nowait_flags:  # not on a file system in memory, which never waits for a disk
        # One try only: the kernel refuses it and begins to read the page, and a second try would find it.
        if writing:
            assert not device.write_now(512, 512, buffers(bytes(512)))
        else:
            assert not device.read_now(0, 8192, [memoryview(bytearray(8192))])
    device.close()


def test_after_slow_writes_workers_write_until_they_find_the_device_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    device = flat.Flat(tmp_path / "disk")
    device._waits = True  # also where the temporary directory is in memory
    now, step = [100.0], [0.003]

    def clock() -> float:
        now[0] += step[0]  # the time that passes between two looks
        return now[0]

    def write() -> bool:
        return device.write_now(0, 4096, buffers(bytes(4096)))

    monkeypatch.setattr(flat, "monotonic", clock)
    assert write()
    step[0] = 0.0
    for _ in range(32):  # enough for the slow one to be forgotten
        assert write()
    step[0] = 0.003
    assert write()
    assert write()
    assert not write()
    device.writev(0, buffers(bytes(4096)))  # slow as well
    now[0] += 60.0
    step[0] = 0.0
    for _ in range(64):
        assert not write()
        device.writev(0, buffers(bytes(4096)))
    assert write()
    device.close()


def test_loop_that_cannot_be_relieved_makes_no_write_that_may_wait(tmp_path: Path) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    device = flat.Flat(tmp_path / "disk")
    device._waits = True  # also where the temporary directory is in memory
    loop = in_place.begin()
    try:
        assert not device.write_now(0, 4096, buffers(bytes(4096)))
        loop.open = True
        assert device.write_now(0, 4096, buffers(bytes(4096)))
        assert not loop.calls
        assert not loop.relieved
        device.distrust()
        assert not device.write_now(0, 4096, buffers(bytes(4096)))
    finally:
        in_place.end(threading.get_ident())
    device.close()


def test_direct_always_goes_to_workers(tmp_path: Path) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    try:
        device = flat.Flat(tmp_path / "disk", direct=True)
    except backing_file.CannotOpen as error:
        pytest.skip(str(error))  # see `device`
    for operation in (device.read_now, device.write_now):
        assert not operation(0, 4096, buffers(bytes(4096)))
    device.close()


def test_read_only_device_refuses_writes(tmp_path: Path) -> None:
    backing_file.create(tmp_path / "disk", SIZE)
    device = flat.Flat(tmp_path / "disk", read_only=True)
    with pytest.raises(block_device.WriteProtected):
        device.writev(0, buffers(bytes(512)))
    with pytest.raises(block_device.WriteProtected):
        device.write_now(0, 512, buffers(bytes(512)))
    with pytest.raises(block_device.WriteProtected):
        device.write_zeroes(0, 512, discard=False)
    device.close()


def test_a_path_that_cannot_serve_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(backing_file.CannotOpen, match="does not exist"):
        flat.Flat(tmp_path / "none")
    with pytest.raises(backing_file.CannotOpen, match="neither"):
        flat.Flat(tmp_path)
    (tmp_path / "tiny").write_bytes(b"x" * 511)
    with pytest.raises(backing_file.CannotOpen, match="smaller than one block"):
        flat.Flat(tmp_path / "tiny")
    with pytest.raises(backing_file.CannotOpen, match="511 bytes"):
        flat.Flat(tmp_path / "tiny", size=512)
    backing_file.create(tmp_path / "disk", SIZE)
    first = flat.Flat(tmp_path / "disk")
    with pytest.raises(backing_file.CannotOpen, match="another process"):
        flat.Flat(tmp_path / "disk")
    first.close()
    flat.Flat(tmp_path / "disk").close()


def test_an_end_that_is_no_whole_block_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 10000)
    device = flat.Flat(tmp_path / "disk", block_size=4096)
    assert device.size == 8192
    device.close()
    assert (tmp_path / "disk").stat().st_size == 10000


def test_a_write_during_close_never_reaches_another_file(device: flat.Flat, tmp_path: Path) -> None:
    """The kernel reuses descriptors at once: a write in flight must not reach the file that is opened next."""
    outcome: list[BaseException] = []

    def write() -> None:
        try:
            while True:
                device.writev(0, buffers(b"\x66" * 4096))
        except block_device.BlockDeviceError as error:
            outcome.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    device.close()
    files = []
    for number in range(8):
        files.append(os.open(tmp_path / f"other{number}", os.O_RDWR | os.O_CREAT))
    for thread in threads:
        thread.join()
    for fd in files:
        assert os.fstat(fd).st_size == 0
        os.close(fd)
    assert all(isinstance(error, block_device.DeviceClosed) for error in outcome)
    assert len(outcome) == 3
    device.close()
    for call in (lambda: read(device, 0, 512), device.flush, lambda: list(device.extents(0, 512))):
        with pytest.raises(block_device.DeviceClosed):
            call()
