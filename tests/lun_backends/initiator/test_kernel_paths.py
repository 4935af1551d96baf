# SPDX-License-Identifier: Apache-2.0
"""The paths of a disk of the kernel, in a sysfs that this test writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lun_backends.files import backing_file
from lun_backends.initiator.kernel_paths import KernelPaths
from lun_backends.initiator.unit import Answer, Unit


class Opened(Unit):
    closed = False

    def reset_logical_unit(self, timeout: float = 30.0) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True

    def _send(self, *_words: object) -> Answer:
        raise NotImplementedError


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    for slave in ("sda", "sdc"):
        (tmp_path / "sys/class/block/dm-3/slaves" / slave).mkdir(parents=True)
    (tmp_path / "sys/class/block/dm-3/dm").mkdir()
    (tmp_path / "sys/class/block/dm-3/dm/uuid").write_text("mpath-360014050000\n")
    (tmp_path / "dev/mapper").mkdir(parents=True)
    (tmp_path / "dev/dm-3").touch()
    (tmp_path / "dev/mapper/mpatha").symlink_to("../dm-3")
    return tmp_path


def paths_of(kernel: Path, node: str) -> KernelPaths:
    def open_disk(path: Path) -> Unit:
        if path.name == "sdbad":
            raise backing_file.CannotOpen(path, "no such device", "check it")
        return Opened(path.name)

    return KernelPaths(kernel / node, sysfs=kernel / "sys", devices=kernel / "dev", open_disk=open_disk)


def names(paths: KernelPaths) -> list[str]:
    return [unit.address for unit in paths.units()]


def test_paths_come_and_go(kernel: Path) -> None:
    paths = paths_of(kernel, "dev/mapper/mpatha")
    assert names(paths) == ["sda", "sdc"]
    first, second = paths.units()
    (kernel / "sys/class/block/dm-3/slaves/sda").rmdir()
    (kernel / "sys/class/block/dm-3/slaves/sde").mkdir()
    (kernel / "sys/class/block/dm-3/slaves/sdbad").mkdir()
    assert names(paths) == ["sdc", "sde"]
    assert paths.units()[0] is second
    assert isinstance(first, Opened)
    assert first.closed
    paths.close()
    assert isinstance(second, Opened)
    assert second.closed


def test_a_disk_without_multipath_is_its_own_path(kernel: Path) -> None:
    (kernel / "sys/class/block/dm-3/dm/uuid").write_text("LVM-abc\n")
    assert names(paths_of(kernel, "dev/mapper/mpatha")) == ["mpatha"]
    assert names(paths_of(kernel, "dev/sdb")) == ["sdb"]
