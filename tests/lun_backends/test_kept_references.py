# SPDX-License-Identifier: Apache-2.0
"""No call keeps a reference to its caller's buffers after its end, whether it succeeded or failed.

The buffers may be part of a TCMU ring, whose memory goes back to the kernel when the last command is answered.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lun_backends import block_device, copy_on_write, remote, write_once
from lun_backends.block_device import Buffers
from tests.lun_backends import store_factory
from tests.lun_backends.memory_side import MemorySide
from tests.lun_backends.store_factory import CHUNK
from tests.memory_device import MemoryDevice


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def assert_nothing_is_kept(call: Callable[[Buffers], None]) -> None:
    """Run `call` with buffers of a region, then close the region: that fails while a reference to a buffer exists."""
    region = mmap.mmap(-1, 2 * CHUNK)
    with memoryview(region) as whole, contextlib.suppress(block_device.BlockDeviceError):
        call([whole[:CHUNK], whole[CHUNK:]])
    region.close()  # BufferError: cannot close exported pointers exist


class RefusedByItsHost(remote.RemoteWriteOnce):
    """A remote write-once LUN, without its device, whose blocks are all written already."""

    def __init__(self, size: int) -> None:
        self.size = size

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        try:
            raise OSError(121, "Remote I/O error")
        except OSError:
            raise block_device.BlockWritten(offset // 512)  # noqa: B904 - as it comes out of the real one

    def extents(self, offset: int, length: int) -> Iterator[block_device.Extent]:
        yield block_device.Extent(offset, length, block_device.ExtentKind.DATA)


@pytest.fixture
def primary() -> MemoryDevice:
    return MemoryDevice(64 * CHUNK)


@pytest.fixture
def faulty() -> store_factory.FaultyIO:
    return store_factory.FaultyIO()


@pytest.fixture
def lun(tmp_path: Path, faulty: store_factory.FaultyIO) -> Iterator[write_once.WriteOnce]:
    device = store_factory.create(tmp_path, io=faulty)
    yield device
    device.close()


def test_a_write_to_chunks_that_this_host_preserved_keeps_no_buffer(
    primary: MemoryDevice, lun: write_once.WriteOnce
) -> None:
    lun.writev(0, [memoryview(bytes(2 * CHUNK))])
    cow = copy_on_write.CopyOnWrite(primary, CHUNK)
    cow.arm(lun)
    assert_nothing_is_kept(lambda buffers: cow.writev(0, buffers))
    assert cow.counters.futile_copies == 2


def test_a_write_to_chunks_that_another_node_preserved_keeps_no_buffer(primary: MemoryDevice) -> None:
    cow = copy_on_write.CopyOnWrite(primary, CHUNK)
    cow.arm(RefusedByItsHost(primary.size))
    assert_nothing_is_kept(lambda buffers: cow.writev(0, buffers))
    assert cow.counters.futile_copies == 2


@pytest.mark.parametrize("call", ["reserve", "pwritev", "fdatasync", "sync_map"])
def test_a_refused_write_keeps_no_buffer(
    primary: MemoryDevice, lun: write_once.WriteOnce, faulty: store_factory.FaultyIO, call: str
) -> None:
    primary.writev(0, [memoryview(b"\1" * 2 * CHUNK)])  # zeroes would need no chunk file
    cow = copy_on_write.CopyOnWrite(primary, CHUNK)
    cow.arm(lun)
    faulty.fail(call)
    assert_nothing_is_kept(lambda buffers: cow.writev(0, buffers))
    assert cow.counters.failures == 1
    assert_nothing_is_kept(lambda buffers: lun.writev(8 * CHUNK, buffers))


def test_a_write_whose_timed_copy_fails_keeps_no_buffer(primary: MemoryDevice) -> None:
    side = MemorySide(primary.size)
    side.inject("writev", block_device.SpaceExhausted(0))
    cow = copy_on_write.CopyOnWrite(primary, CHUNK, copy_timeout=60)
    cow.arm(side)
    assert_nothing_is_kept(lambda buffers: cow.writev(0, buffers))
    assert cow.counters.failures == 1
