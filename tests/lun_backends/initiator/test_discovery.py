# SPDX-License-Identifier: Apache-2.0
"""Discovery of a volume's LUNs, against wolun's portal; the kernel's tree of disks is made by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from lun_backends import block_device
from lun_backends.initiator import discovery, libiscsi
from lun_backends.initiator.discovery import Discovery, KernelDisks, Portals
from lun_backends.initiator.part import Part, Role
from lun_backends.initiator.unit import Unit
from target.scsi.logical_unit import UnitKind
from tests.lun_backends.initiator.serving import TARGET, Served
from tests.memory_device import MemoryDevice

VOLUME, OTHER = UUID(int=0xA), UUID(int=0xB)


def put(served: Served, number: int, role: Role, *, volume: UUID = VOLUME, name: str = "archive") -> UUID:
    """Serve a unit with that part, and return its identity."""
    write_once = role in (Role.LOG, Role.POOL)
    kind = UnitKind.WRITE_ONCE if write_once else UnitKind.PRIMARY
    unit = served.add(number, MemoryDevice(write_once=write_once), kind)
    unit.part = Part(volume, name, role, unit.uuid, 512, 4096, write_once=write_once, power_loss=write_once)
    return unit.uuid


def portals(served: Served, *extra: tuple[str, str]) -> Portals:
    host, port = served.portal.address
    return Portals(served.initiator(), [(f"{host}:{port}", TARGET), *extra])


@pytest.fixture
def second() -> Iterator[Served]:
    made = Served("iqn.2026-11.io.wolun:second")
    yield made
    made.close()


def test_log_pool_and_primary_are_found_by_identity_and_by_name(served: Served) -> None:
    put(served, 0, Role.PRIMARY)
    log = put(served, 3, Role.LOG)
    pool = {put(served, number, Role.POOL): number for number in (4, 5, 300)}
    put(served, 7, Role.LOG, volume=OTHER, name="other")
    put(served, 8, Role.POOL, volume=OTHER, name="other")
    served.add(9, MemoryDevice())  # a unit that belongs to no volume
    found = Discovery([portals(served)])
    assert found.volumes() == {VOLUME: "archive", OTHER: "other"}
    for volume in (VOLUME, "archive"):
        luns = found.find(volume)
        assert (luns.volume, luns.name, luns.log.part.lun) == (VOLUME, "archive", log)
        assert {lun: where.number for lun, where in luns.pool.items()} == pool
        assert luns.log.address == served.address(3)
        assert luns.primary is not None
        assert luns.primary.number == 0
    with found.open(luns.pool[next(iter(pool))]) as opened:
        opened.execute(bytes(6))


def test_lun_that_becomes_visible_late_is_found(served: Served) -> None:
    put(served, 3, Role.LOG)
    found = Discovery([portals(served)])
    assert not found.find(VOLUME).pool
    late = put(served, 4, Role.POOL)
    found.rescan()
    assert set(found.find(VOLUME).pool) == {late}
    served.target.remove_lun(4)
    assert not found.find(VOLUME).pool


def test_volume_that_is_not_there(served: Served) -> None:
    put(served, 4, Role.POOL)
    with pytest.raises(discovery.VolumeNotFound, match="log in to the storage host"):
        Discovery([portals(served)]).find("archive")


def test_name_of_two_volumes_is_ambiguous(served: Served, second: Served) -> None:
    put(served, 3, Role.LOG)
    put(second, 30, Role.LOG, volume=OTHER)
    sources = [portals(served), Portals(second.initiator(), [(second.place, second.name)])]
    with pytest.raises(discovery.NameAmbiguous, match="name one by its identity"):
        Discovery(sources).find("archive")
    assert Discovery(sources).find(OTHER).log.number == 30


def test_two_luns_with_one_identity_are_refused(served: Served, second: Served) -> None:
    put(served, 3, Role.LOG)
    put(served, 4, Role.POOL)
    put(second, 4, Role.POOL)  # a clone: the identity comes from the number here
    sources = [portals(served), Portals(second.initiator(), [(second.place, second.name)])]
    with pytest.raises(discovery.IdentityClaimedTwice, match="one of them is a copy"):
        Discovery(sources).find(VOLUME)


def test_a_node_does_not_take_its_own_lun_for_the_primary(served: Served, second: Served) -> None:
    primary = put(served, 4, Role.PRIMARY)
    put(served, 3, Role.LOG)
    assert put(second, 4, Role.NODE) == primary  # this host's kernel shows what this host serves, too
    sources = [portals(served), Portals(second.initiator(), [(second.place, second.name)])]
    assert Discovery(sources).find(VOLUME).primary == Discovery(sources[:1]).find(VOLUME).primary


def test_second_log_of_a_volume_is_refused(served: Served) -> None:
    put(served, 3, Role.LOG)
    put(served, 4, Role.LOG)
    with pytest.raises(discovery.IdentityClaimedTwice, match="be the log of volume"):
        Discovery([portals(served)]).find(VOLUME)


def test_two_paths_to_one_target_are_one_lun(served: Served) -> None:
    put(served, 3, Role.LOG)
    host, port = served.portal.address
    sources = [portals(served), Portals(served.initiator(port=2), [(f"{host}:{port}", TARGET)])]
    assert Discovery(sources).find(VOLUME).log.number == 3


def test_portal_that_is_down_is_passed_over(served: Served) -> None:
    put(served, 3, Role.LOG)
    down = ("127.0.0.1:1", TARGET)
    assert Discovery([portals(served, down)]).find(VOLUME).log.number == 3
    with pytest.raises(block_device.NoAnswer):
        Discovery([Portals(served.initiator(), [down])]).find(VOLUME)


class Kernel:
    """A tree like /sys of disks that are LUNs of the portal."""

    def __init__(self, root: Path, served: Served) -> None:
        self.root, self._served = root, served
        self._numbers: dict[str, int] = {}
        self.disks = KernelDisks(sysfs=root, devices=root / "dev", open_disk=self._open)

    def disk(
        self,
        name: str,
        number: int,
        *,
        host: int = 2,
        vendor: str = "WOLUN",
        multipath: str = "",
        driver: str = "iscsi_tcp",
    ) -> None:
        device = self.root / f"devices/host{host}/{host}:0:0:{number}"
        device.mkdir(parents=True, exist_ok=True)
        (device / "vendor").write_text(f"{vendor:8}\n")
        (device / "delete").write_text("")
        block = self.root / "block" / name
        (block / "holders").mkdir(parents=True)
        (block / "device").symlink_to(device)
        scan = self.root / f"class/scsi_host/host{host}/scan"
        scan.parent.mkdir(parents=True, exist_ok=True)
        scan.write_text("")
        (scan.parent / "proc_name").write_text(f"{driver}\n")
        if driver != "tcm_loopback":  # a command to such a disk could wait for the daemon itself
            self._numbers[name] = number
        if multipath:
            dm = self.root / "block/dm-0/dm"
            dm.mkdir(parents=True, exist_ok=True)
            (dm / "uuid").write_text("mpath-36002574c\n")
            (dm / "name").write_text(f"{multipath}\n")
            (block / "holders/dm-0").symlink_to(dm.parent)

    def scanned(self, host: int) -> bool:
        return bool((self.root / f"class/scsi_host/host{host}/scan").read_text())

    def _open(self, path: Path) -> Unit:
        return self._served.unit(self._numbers[path.name])


def test_disks_of_the_kernel(served: Served, tmp_path: Path) -> None:
    log, pool = put(served, 3, Role.LOG), put(served, 300, Role.POOL)
    kernel = Kernel(tmp_path, served)
    kernel.disk("sda", 3, host=7, vendor="ATA")
    found = Discovery([kernel.disks])
    found.rescan()
    assert kernel.scanned(7)  # as long as no disk of wolun tells which host to ask
    kernel.disk("sdb", 3)
    kernel.disk("sdaa", 300)
    kernel.disk("sdab", 300, host=3)
    kernel.disk("sdac", 44)  # the kernel keeps disks whose LUN is gone
    kernel.disk("sdad", 3, host=9, driver="tcm_loopback")
    luns = found.find("archive")
    assert (luns.log.part.lun, luns.log.address) == (log, str(tmp_path / "dev/sdb"))
    assert luns.pool[pool].address == str(tmp_path / "dev/sdaa")
    assert luns.pool[pool].target == TARGET
    assert not kernel.scanned(2)
    found.rescan()
    assert kernel.scanned(2)
    assert not kernel.scanned(9)
    found.forget(pool)
    deleted = [path.parent.name for path in tmp_path.glob("devices/*/*/delete") if path.read_text()]
    assert sorted(deleted) == ["2:0:0:300", "3:0:0:300"]


def test_disk_of_multipath_stands_for_its_paths(served: Served, tmp_path: Path) -> None:
    put(served, 3, Role.LOG)
    kernel = Kernel(tmp_path, served)
    for name, host in (("sdb", 2), ("sdc", 3)):
        kernel.disk(name, 3, host=host, multipath="archive-log")
    assert Discovery([kernel.disks]).find(VOLUME).log.address == str(tmp_path / "dev/mapper/archive-log")


def test_wrong_address_is_refused(served: Served) -> None:
    with pytest.raises(libiscsi.AddressWrong):
        portals(served).open("iscsi://nowhere")
