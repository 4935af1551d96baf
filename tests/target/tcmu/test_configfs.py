# SPDX-License-Identifier: Apache-2.0
"""The kernel's target objects as far as a tree of files can stand in for configfs; tests/kernel has the real one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from target.tcmu import aptpl, configfs, uio
from target.tcmu.configfs import ConfigfsError, Configuration, KernelTarget

IQN = "iqn.2026-11.io.wolun:t"
CONFIGURATION = Configuration(IQN, portals=(("0.0.0.0", 3260),))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory that stands in for /sys/kernel/config/target."""
    (tmp_path / "core").mkdir()
    monkeypatch.setattr(configfs, "TARGET_CORE", tmp_path / "core")
    return tmp_path


def device(tree: Path, hba: int, name: str) -> Path:
    path = tree / "core" / f"user_{hba}" / name
    path.mkdir(parents=True)
    return path


def lun(group: Path, number: int, linked: Path | None) -> None:
    path = group / "lun" / f"lun_{number}"
    (path / "statistics").mkdir(parents=True)
    if linked is not None:
        (path / "0123456789").symlink_to(linked)


def kernel_target(monkeypatch: pytest.MonkeyPatch, *groups: Path) -> KernelTarget:
    """Return a target on these groups, which are there already."""
    made: list[Any] = [SimpleNamespace(path=str(group)) for group in groups]
    monkeypatch.setattr(KernelTarget, "_make_groups", lambda _: iter(made))
    return KernelTarget(CONFIGURATION)


class TestNames:
    """The names of our objects."""

    def test_names_of_one_target_are_the_same_after_a_restart(self) -> None:
        again = Configuration(IQN, loopback=True)
        assert again.owner == CONFIGURATION.owner
        assert again.device_name("copyonwrite/vol0") == f"wolun-{CONFIGURATION.owner}.copyonwrite.vol0"
        assert again.loopback_wwn == f"naa.5001405{CONFIGURATION.owner}0"
        assert len(again.loopback_wwn.removeprefix("naa.")) == 16

    def test_names_of_another_target_differ(self) -> None:
        other = Configuration(IQN + "2")
        assert not other.device_name("copyonwrite/vol0").startswith(CONFIGURATION.device_prefix)

    def test_device_of_a_daemon_is_known_by_its_name(self) -> None:
        assert configfs.is_made_by_a_daemon(CONFIGURATION.device_name("copyonwrite/vol0"))
        assert configfs.is_made_by_a_daemon(Configuration(IQN + "2").device_name("snapview/vol0@a"))
        for name in ("vol0", "wolun-vol0", "wolun-0123456.x", "my-wolun-01234567.x"):
            assert not configfs.is_made_by_a_daemon(name)


class TestDevices:
    """The devices of the machine."""

    def test_devices_of_another_owner_or_handler_are_not_ours(self, tree: Path) -> None:
        device(tree, 0, "wolun-01234567.copyonwrite.vol0")
        device(tree, 12, "wolun-01234567.snapview.vol0@a")
        device(tree, 3, "wolun-89abcdef.copyonwrite.vol0")
        (tree / "core" / "iblock_4" / "wolun-01234567.disk").mkdir(parents=True)
        assert sorted(configfs.our_devices("wolun-01234567.")) == [
            (0, "wolun-01234567.copyonwrite.vol0"),
            (12, "wolun-01234567.snapview.vol0@a"),
        ]

    def test_free_index_is_one_that_no_device_has(self, tree: Path) -> None:
        assert configfs._free_index() == 0
        for name in ("user_0", "iblock_1", "rd_mcp_3", "alua"):
            (tree / "core" / name).mkdir()
        assert configfs._free_index() == 2
        (tree / "core" / "fileio_2").mkdir()
        assert configfs._free_index() == 4

    def test_order_about_a_device_is_written_to_the_kernel(self, tree: Path) -> None:
        path = device(tree, 7, "vol") / "action"
        path.mkdir()
        ours = uio.UioDevice(Path("/dev/uio0"), 7, "vol", "copyonwrite/vol0", 4096)
        configfs.action(ours, "block_dev", 1)
        assert (path / "block_dev").read_text() == "1\n"
        gone = uio.UioDevice(Path("/dev/uio1"), 8, "vol", "copyonwrite/vol0", 4096)
        with pytest.raises(ConfigfsError, match=r"cannot set reset_ring of vol: .*No such file"):
            configfs.action(gone, "reset_ring", 1)

    def test_kept_reservations_are_read_and_damage_is_told_apart(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(configfs, "RESERVATIONS", tree)
        assert configfs.reservations("serial") == ()
        (tree / "aptpl_serial").write_text("PR_REG_START: 0\n")
        with pytest.raises(aptpl.Damaged):
            configfs.reservations("serial")
        (tree / "aptpl_other").mkdir()
        with pytest.raises(ConfigfsError, match=r"cannot read the reservations of other: .*Is a directory"):
            configfs.reservations("other")


class TestLuns:
    """The LUNs that a predecessor may have left."""

    def test_lun_has_the_device_that_it_links_to(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        group = tree / "iscsi" / IQN / "tpgt_1"
        lun(group, 0, device(tree, 0, "a"))
        lun(group, 12, device(tree, 1, "b"))
        lun(group, 3, None)
        assert kernel_target(monkeypatch, group).luns() == {0: "a", 12: "b", 3: ""}
        assert configfs.exported() == {"a", "b", ""}

    def test_lun_that_only_one_of_two_targets_has_is_left_out(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        iscsi, loopback = tree / "iscsi" / IQN / "tpgt_1", tree / "loopback" / "naa.5" / "tpgt_1"
        first, second = device(tree, 0, "a"), device(tree, 1, "b")
        lun(iscsi, 0, first)
        lun(loopback, 0, first)
        lun(iscsi, 1, first)
        lun(loopback, 1, second)
        lun(iscsi, 2, second)
        assert kernel_target(monkeypatch, iscsi, loopback).luns() == {0: "a"}

    def test_target_without_groups_has_no_luns(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert kernel_target(monkeypatch).luns() == {}


class TestSessions:
    """The initiators that are logged in, as the kernel writes them."""

    INFO = """InitiatorName: iqn.2026-11.org.example:ann
InitiatorAlias: ann
LIO Session ID: 1   ISID: 0x00 02 3d 00 00 01  TSIH: 1  SessionType: Normal
Session State: TARG_SESS_STATE_LOGGED_IN
---------------------[iSCSI Session Values]-----------------------
  CmdSN/WR  :  CmdSN/WC  :  ExpCmdSN  :  MaxCmdSN  :     ITT    :     TTT
 0x00000001   0x00000080   0x00000001   0x00000080   0x00000000   0x00000000
----------------------[iSCSI Connections]-------------------------
CID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN
   Address {address} TCP  StatSN: 0x00000001
"""

    def test_initiator_has_its_address_and_those_without_an_entry_have_none(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group = tree / "iscsi" / IQN / "tpgt_1"
        for name, text in (
            ("iqn.2026-11.org.example:ann", self.INFO.format(address="10.0.0.2")),
            ("iqn.2026-11.org.example:bob", "No active iSCSI Session for Initiator Endpoint: bob\n"),
            ("iqn.2026-11.org.example:carl", self.INFO.format(address="[fe80::1]")),
        ):
            (group / "acls" / name).mkdir(parents=True)
            (group / "acls" / name / "info").write_text(text)
        (group / "dynamic_sessions").write_text("iqn.x:dan\n\0iqn.x:eve\n\0")
        assert kernel_target(monkeypatch, group).sessions() == [
            ("iqn.2026-11.org.example:ann", "10.0.0.2"),
            ("iqn.2026-11.org.example:carl", "[fe80::1]"),
            ("iqn.x:dan", ""),
            ("iqn.x:eve", ""),
        ]

    def test_kernel_without_dynamic_sessions_has_none(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert kernel_target(monkeypatch, tree / "nowhere").sessions() == []


class TestModules:
    """The kernel modules."""

    def test_refusal_of_modprobe_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def modprobe(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(command, 1, "", f"modprobe: FATAL: Module {command[1]} not found.\n")

        monkeypatch.setattr(subprocess, "run", modprobe)
        with pytest.raises(ConfigfsError, match="cannot load the kernel module no_such_module: modprobe: FATAL"):
            configfs.load_modules(("no_such_module",))

    def test_missing_modprobe_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigfsError, match="install kmod"):
            configfs.load_modules(("no_such_module",))
