# SPDX-License-Identifier: Apache-2.0
"""A unit counts as read for a while after its counter grew."""

from __future__ import annotations

import uuid

from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.service import readers
from tests.memory_device import MemoryDevice


def test_unit_is_read_while_its_counter_grows_and_a_minute_after() -> None:
    now = 0.0
    looked = readers.Readers(lambda: now)
    unit = LogicalUnit(
        MemoryDevice(), uuid=uuid.uuid4(), kind=UnitKind.SNAPSHOT_VIEW, name="vol0@s", commands=table.for_unit
    )
    assert not looked.reads(unit)
    unit.counters.bytes_read += 512
    assert looked.reads(unit)
    now = readers.RECENT_SECONDS - 1
    assert looked.reads(unit)
    unit.counters.bytes_read += 512
    looked.look([unit])
    now += readers.RECENT_SECONDS - 1
    assert looked.reads(unit)
    now += 1
    assert not looked.reads(unit)
