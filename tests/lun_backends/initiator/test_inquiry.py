# SPDX-License-Identifier: Apache-2.0
"""INQUIRY and REPORT LUNS over iSCSI, against wolun's portal."""

from __future__ import annotations

from uuid import UUID

from lun_backends.initiator import inquiry, part
from target.scsi import transfer
from target.scsi.commands import inquiry as served_inquiry
from target.scsi.logical_unit import UnitKind
from tests.lun_backends.initiator.serving import TARGET, Served
from tests.memory_device import MemoryDevice


def test_pages_of_a_unit(served: Served) -> None:
    unit = served.add(0, MemoryDevice())
    unit.part = part.Part(
        unit.uuid, "vol0", part.Role.PRIMARY, unit.uuid, 512, 4096, write_once=False, power_loss=False
    )
    store = MemoryDevice(write_once=True)
    store.grain = 65536
    served.add(1, store, UnitKind.WRITE_ONCE)
    initiator = served.initiator()
    primary, side = initiator.unit(served.address(0)), initiator.unit(served.address(1))
    assert inquiry.standard(primary) == inquiry.Standard(True, 0, "WOLUN", "VOLUME", "0001")
    assert part.PAGE in inquiry.supported_pages(primary)
    assert inquiry.serial_number(primary) == unit.uuid.hex
    names = inquiry.designators(primary)
    assert inquiry.Designator(0, 3, 1, served_inquiry.naa(unit.uuid)) in names
    assert any(name.association == 2 and name.name.rstrip(b"\0").decode() == TARGET for name in names)
    assert inquiry.block_limits(primary) == inquiry.BlockLimits(
        transfer.MAX_TRANSFER_BYTES // 512, transfer.MAX_UNMAP_BYTES // 512, transfer.MAX_WRITE_SAME_BYTES // 512, 8
    )
    assert inquiry.block_limits(side).granularity == 128
    assert inquiry.provisioning(primary) == inquiry.Provisioning(True, True)
    assert inquiry.part_of(primary) == unit.part
    assert inquiry.part_of(side) is None
    assert inquiry.page(side, 0xC0) is None
    assert inquiry.provisioning(side) == inquiry.Provisioning(False, False)


def test_luns_of_a_target(served: Served) -> None:
    for number in (0, 7, 300):
        served.add(number, MemoryDevice())
    unit = served.unit(0)
    assert inquiry.luns(unit) == (0, 7, 300)
    assert not inquiry.standard(served.unit(5)).connected


def test_lun_0_tells_the_luns_even_if_it_is_not_there(served: Served) -> None:
    served.add(3, MemoryDevice())
    assert inquiry.luns(served.unit(0)) == (3,)


def test_units_know_nothing_of_their_uuid_but_the_name(served: Served) -> None:
    unit = served.add(0, MemoryDevice())
    assert UUID(inquiry.serial_number(served.unit(0))) == unit.uuid
