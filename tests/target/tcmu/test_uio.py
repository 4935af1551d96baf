# SPDX-License-Identifier: Apache-2.0
"""The devices of /sys/class/uio, on a tree of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.tcmu import uio


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(uio, "CLASS", tmp_path / "uio")
    return tmp_path / "uio"


def add(tree: Path, minor: int, name: str, size: str = "0x4100000") -> None:
    region = tree / f"uio{minor}" / "maps" / "map0"
    region.mkdir(parents=True)
    (tree / f"uio{minor}" / "name").write_text(name + "\n")
    (region / "size").write_text(size + "\n")


def test_device_has_the_parts_of_its_name(tree: Path) -> None:
    add(tree, 3, "tcm-user/7/wolun-0123abcd.copyonwrite.vol0/copyonwrite/vol0")
    (device,) = uio.devices()
    assert device == uio.UioDevice(
        Path("/dev/uio3"), 7, "wolun-0123abcd.copyonwrite.vol0", "copyonwrite/vol0", 0x4100000
    )
    assert device.handler == "copyonwrite"
    assert uio.by_minor(3) == device
    assert uio.by_minor(4) is None


def test_slashes_in_the_configuration_stay(tree: Path) -> None:
    add(tree, 0, "tcm-user/0/d/writeonce/vol0@a/b")
    (device,) = uio.devices()
    assert (device.config, device.handler) == ("writeonce/vol0@a/b", "writeonce")


@pytest.mark.parametrize("name", ["", "igb", "tcm-user/0/d", "other-user/0/d/h/c"])
def test_device_of_another_kind_is_left_out(tree: Path, name: str) -> None:
    add(tree, 0, name)
    add(tree, 1, "tcm-user/0/d/h/c")
    assert [device.node for device in uio.devices()] == [Path("/dev/uio1")]


def test_device_that_is_just_being_removed_is_left_out(tree: Path) -> None:
    add(tree, 0, "tcm-user/0/d/h/c")
    (tree / "uio0" / "maps" / "map0" / "size").unlink()
    assert list(uio.devices()) == []


def test_known_devices_are_not_read(tree: Path) -> None:
    for minor in (0, 1):
        add(tree, minor, f"tcm-user/{minor}/d{minor}/h/c")
    assert [device.name for device in uio.devices(besides={"/dev/uio0": object()})] == ["d1"]


def test_machine_without_uio_has_no_devices(tree: Path) -> None:
    assert list(uio.devices()) == []
