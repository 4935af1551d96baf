# SPDX-License-Identifier: Apache-2.0
"""The commands that a write costs the devices: as many as on a single host."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from lun_backends.copy_on_write import CopyOnWrite
from lun_backends.initiator.disk import Disk
from tests.lun_backends.memory_side import block
from tests.lun_backends.shared.rig import CHUNK, Array, nodes


def commands(array: Array, lun: uuid.UUID, work: Callable[[], object]) -> tuple[int, int, int]:
    """Return how many commands `work` costs (primary, write-once LUN, log)."""
    units = (array.unit, array.units[lun], array.log_unit)
    before = [unit.counters.commands for unit in units]
    work()
    primary, side, log = (unit.counters.commands - count for unit, count in zip(units, before, strict=True))
    return primary, side, log


def on_one_host(array: Array) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the commands of a first and of a second write with the same devices and copy-on-write alone."""
    initiator = array.served.initiator("iqn.2026-11.io.wolun:alone")
    lun = next(reversed(array.luns))
    side = Disk(initiator.unit(array.address(lun)), write_once=True)
    device = CopyOnWrite(Disk(initiator.unit(array.served.address(0))), CHUNK)
    device.arm(side)
    first = commands(array, lun, lambda: device.writev(0, block(1)))
    return first, commands(array, lun, lambda: device.writev(512, block(2)))


@pytest.mark.parametrize("exclusive", [True, False], ids=["8h", "7h"])
def test_a_write_costs_what_it_costs_on_one_host(array: Array, *, exclusive: bool) -> None:
    alone = on_one_host(array)
    with nodes(array, "one", "two", exclusive=exclusive) as opened:
        node = opened[0]
        lun = opened[1].create_snapshot("first").lun
        node.device.writev(100 * CHUNK, block(1))  # this node has joined now
        array.quiet(opened)
        # Each several times, because the nodes look at the log every second.
        first = min(commands(array, lun, lambda at=at: node.device.writev(at * CHUNK, block(3))) for at in range(4))  # type: ignore[misc]
        again = min(commands(array, lun, lambda: node.device.writev(512, block(4))) for _ in range(4))
        assert first == (2, 1, 0 if exclusive else 1)  # read, put, write; with 7h a look at the log
        assert again == (1, 0, 0)
        assert alone == ((2, 1, 0), (1, 0, 0))
