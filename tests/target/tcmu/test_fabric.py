# SPDX-License-Identifier: Apache-2.0
"""The decisions of the `lio` fabric about devices, without a kernel that makes any; tests/kernel has the real one."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.scsi_target import ScsiTarget
from target.tcmu import configfs, netlink, uio
from target.tcmu.fabric import LioFabric, config_of
from tests.memory_device import MemoryDevice

IQN = "iqn.2026-11.io.wolun:t"
OURS = configfs.Configuration(IQN).device_name("copyonwrite/vol0")


def unit(name: str, kind: UnitKind = UnitKind.PRIMARY) -> LogicalUnit:
    return LogicalUnit(MemoryDevice(), uuid=uuid.uuid4(), kind=kind, name=name, commands=table.for_unit)


@pytest.fixture
def fabric() -> Iterator[LioFabric]:
    target = ScsiTarget(IQN)
    target.add_lun(0, unit("vol0"))
    target.add_lun(1, unit("vol0@a", UnitKind.SNAPSHOT_VIEW))
    made = LioFabric(target, configfs.Configuration(IQN))
    yield made
    made.close()
    made._server.close()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(uio, "CLASS", tmp_path / "uio")
    return tmp_path / "uio"


def announce(fabric: LioFabric, tree: Path, name: str, config: str, command: int = netlink.ADDED) -> int | None:
    """Announce a device with that name and configuration; return the answer."""
    region = tree / "uio5" / "maps" / "map0"
    region.mkdir(parents=True)
    (tree / "uio5" / "name").write_text(f"tcm-user/0/{name}/{config}\n")
    (region / "size").write_text("0x1000\n")
    return fabric._announced(netlink.Event(command, 5, 1, None))


@pytest.mark.parametrize(
    ("kind", "name", "config"),
    [
        (UnitKind.PRIMARY, "vol0", "copyonwrite/vol0"),
        (UnitKind.WRITE_ONCE, "vol0@a/write-once", "writeonce/vol0@a"),
        (UnitKind.SNAPSHOT_VIEW, "vol0@a", "snapview/vol0@a"),
    ],
)
def test_configuration_names_handler_and_unit(kind: UnitKind, name: str, config: str) -> None:
    assert config_of(unit(name, kind)) == config


def test_configuration_of_a_unit_that_is_not_served_is_refused_with_the_others(fabric: LioFabric) -> None:
    assert fabric._check("copyonwrite/vol0", True) == ""
    assert fabric._check("copyonwrite/vol1", True) == (
        "this daemon does not serve copyonwrite/vol1; it serves copyonwrite/vol0, snapview/vol0@a"
    )


@pytest.mark.parametrize(
    ("name", "config", "command", "answer"),
    [
        ("vol0", "glfs/vol0", netlink.ADDED, None),
        ("vol0", "glfs/vol0", netlink.RECONFIG, None),
        (OURS, "copyonwrite/vol0", netlink.ADDED, None),
        ("wolun-01234567.x", "copyonwrite/vol0", netlink.ADDED, None),
        ("vol1", "copyonwrite/vol1", netlink.ADDED, -errno.ENOENT),
        ("vol0", "copyonwrite/vol0", netlink.RECONFIG, -errno.EOPNOTSUPP),
        ("vol0", "copyonwrite/vol0", netlink.REMOVED, None),
    ],
)
def test_only_devices_of_our_handlers_that_no_daemon_made_are_answered(
    fabric: LioFabric, tree: Path, name: str, config: str, command: int, answer: int | None
) -> None:
    assert announce(fabric, tree, name, config, command) == answer


def test_device_that_cannot_be_opened_is_refused_and_logged(
    fabric: LioFabric, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    status = announce(fabric, tree, "vol0", "copyonwrite/vol0")
    assert status is not None
    assert status < 0
    assert "cannot serve /dev/uio5 for vol0: " in caplog.text


def test_region_that_is_no_ring_is_refused_and_its_descriptor_closed(
    fabric: LioFabric, tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    descriptor = os.memfd_create("region")
    os.ftruncate(descriptor, 4096)
    monkeypatch.setattr(uio.UioDevice, "open", lambda _: descriptor)
    assert announce(fabric, tree, "vol0", "copyonwrite/vol0") == -errno.EIO
    assert "cannot serve /dev/uio5 for vol0: the kernel's ring has version 0" in caplog.text
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_changes_before_the_start_touch_nothing(fabric: LioFabric) -> None:
    fabric.listen("0.0.0.0", 3260)
    fabric.unlisten("0.0.0.0", 3260)
    fabric.admit((), anyone=True)
    assert fabric.sessions() == []
