# SPDX-License-Identifier: Apache-2.0
"""The stand-in for a lost snapshot: it never returns data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lun_backends import block_device
from lun_backends.lost_device import LostDevice

VIEW = [memoryview(bytearray(512))]
CALLS: list[Callable[[LostDevice], object]] = [
    lambda device: device.readv(0, VIEW),
    lambda device: device.read_now(0, 512, VIEW),
    lambda device: device.writev(0, VIEW),
    lambda device: device.write_now(0, 512, VIEW),
    lambda device: device.write_zeroes(0, 512, discard=False),
    lambda device: device.put_many([(0, VIEW)]),
    lambda device: device.extents(0, 512),
]


@pytest.mark.parametrize("call", CALLS)
def test_every_read_and_write_is_refused_with_the_reason(call: Callable[[LostDevice], object]) -> None:
    with pytest.raises(block_device.SnapshotInvalid, match="its files are gone"):
        call(LostDevice(1 << 20, 512, "its files are gone", recorded=True))


def test_it_takes_no_space_and_may_be_flushed_and_closed() -> None:
    device = LostDevice(1 << 20, 4096, "x", recorded=False)
    assert (device.size, device.block_size, device.recorded, device.write_once) == (1 << 20, 4096, False, True)
    assert (device.used_bytes(), device.written_bytes()) == (0, 0)
    device.flush()
    device.close()
    device.close()
