# SPDX-License-Identifier: Apache-2.0
"""Nodes over real sessions to a real portal: snapshots, deletions and rollbacks of a volume that several nodes write to."""

from __future__ import annotations

import struct
from concurrent import futures

import pytest

from lun_backends.block_device import BlockDevice
from tests.lun_backends.shared.rig import Array, Writer, check_views, content, nodes, wait


def put(device: BlockDevice, offset: int, number: int, length: int = 512) -> None:
    """Write blocks that say their own offset and `number`."""
    data = b"".join(struct.pack(">QQ", offset + at, number) * 32 for at in range(0, length, 512))
    device.writev(offset, [memoryview(data)])


def test_every_node_sees_every_snapshot_as_it_was_at_its_fence(array: Array) -> None:
    with nodes(array, "one", "two", "three") as opened:
        for number in range(6):
            writer, taker = opened[number % 3], opened[(number + 1) % 3]
            put(writer.device, number * 512, number)
            taken = taker.create_snapshot(f"s{number}", {"number": str(number)})
            assert taken.held_seconds is not None
            put(writer.device, number * 512, number + 100)
            put(taker.device, 0, number + 200)
        assert check_views(array, *opened) == 18
        assert content(opened[0].device) == bytes(array.primary.data)


@pytest.mark.parametrize("exclusive", [True, False], ids=["8h", "7h"])
def test_snapshots_under_load_from_alternating_nodes_and_two_at_once(array: Array, *, exclusive: bool) -> None:
    with nodes(array, "one", "two", "three", exclusive=exclusive) as opened:
        writers = [Writer(node, share, 2, share) for share, node in enumerate(opened[:2])]
        for writer in writers:
            writer.start()
        with futures.ThreadPoolExecutor(3) as pool:
            for number in range(2):
                opened[number].create_snapshot(f"alone{number}")
                for taken in [
                    pool.submit(node.create_snapshot, f"both{number}-{at}") for at, node in enumerate(opened[:2])
                ]:
                    taken.result()
        for writer in writers:
            wait(lambda writer=writer: writer.count > 20)  # type: ignore[misc]
            writer.finish()
        assert check_views(array, *opened) == 18
