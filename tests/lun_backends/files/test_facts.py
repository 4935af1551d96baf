# SPDX-License-Identifier: Apache-2.0
"""Facts about files come from the file system, those about disks from sysfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lun_backends.files import backing_file, facts, storage_io


def test_file_is_described_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    fd = os.open(path, os.O_RDWR)
    before = facts.observe(fd)
    assert (before.is_disk, before.size, before.inode, before.mark) == (False, 8192, path.stat().st_ino, "")
    assert facts.set_mark(fd, "some mark", storage_io.SYSTEM)
    assert facts.observe(fd).mark == "some mark"
    os.close(fd)


def test_inode_numbers_that_do_not_last_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    fd = os.open(path, os.O_RDWR)
    monkeypatch.setattr(backing_file, "file_system", lambda _: "vfat")
    assert facts.inode(fd) == 0
    os.close(fd)


def test_partition_has_the_names_of_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "devices" / "sda"
    part = disk / "sda1"
    part.mkdir(parents=True)
    (disk / "device").mkdir()
    (disk / "device" / "wwid").write_text("naa.5000c500a1b2c3d4\n")
    (disk / "diskseq").write_text("9\n")
    (part / "partition").write_text("1\n")
    (part / "start").write_text("2048\n")
    (part / "stat").write_text(" ".join(map(str, range(17))))
    (tmp_path / "8:1").symlink_to(part)
    monkeypatch.setattr(facts, "SYSFS", tmp_path)
    seen = facts._disk(os.makedev(8, 1), 4096)
    assert seen.ids == {"partition": "1 at sector 2048", "device/wwid": "naa.5000c500a1b2c3d4"}
    assert (seen.sequence, seen.written) == ("9", 6 + 13)


def test_disk_that_sysfs_does_not_know_has_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "SYSFS", tmp_path)
    seen = facts._disk(os.makedev(8, 1), 4096)
    assert (seen.ids, seen.sequence, seen.written) == ({}, "", None)
