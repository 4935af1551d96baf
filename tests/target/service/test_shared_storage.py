# SPDX-License-Identifier: Apache-2.0
"""Write-once LUNs of nodes that share storage; shared volumes need block devices, see tests/kernel/test_shared_storage.py."""

from __future__ import annotations

import pytest

from lun_backends import block_device
from target.scsi.logical_unit import UnitKind
from target.service.service import Service
from tests.target.service.conftest import Serve

LUN = "write_once:\n  - {volume: vol9, snapshot: s, lun: 5, size: 1MiB}\n"


def data(service: Service) -> bytes:
    content = bytearray(512)
    service.inventory.scsi.luns[5].device.readv(0, [memoryview(content)])
    return bytes(content)


def test_write_once_lun_keeps_its_content_and_identity(serve: Serve) -> None:
    service = serve(extra=LUN)
    unit = service.inventory.scsi.luns[5]
    assert (unit.name, unit.kind) == ("vol9@s/write-once", UnitKind.WRITE_ONCE)
    identity = unit.uuid
    unit.device.writev(0, [memoryview(bytes([7]) * 512)])
    again = serve(extra=LUN)
    assert again.inventory.scsi.luns[5].uuid == identity
    assert data(again) == bytes([7]) * 512
    with pytest.raises(block_device.BlockWritten):
        again.inventory.scsi.luns[5].device.writev(0, [memoryview(bytes(512))])


def test_snapshots_do_not_get_its_number(serve: Serve) -> None:
    service = serve(extra=LUN.replace("lun: 5", "lun: 2"))
    taken = service.snapshots.create_snapshot("vol0", "a")
    assert (taken.view_lun, taken.write_once_lun) == (3, None)


def test_shared_volume_without_its_devices_is_an_alert(serve: Serve) -> None:
    shared = "shared:\n  - {name: far, lun: 6, primary: /nonexistent/a, write_once: /nonexistent/b, snapshot: s}\n"
    service = serve(extra=shared)
    assert 6 not in service.inventory.scsi.luns
    assert [(alert.code, alert.subject) for alert in service.status.alerts()] == [("volume-failed", "far")]
    assert set(service.inventory.open_volumes) == {"vol0", "vol1"}
