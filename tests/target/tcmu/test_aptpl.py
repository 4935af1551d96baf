# SPDX-License-Identifier: Apache-2.0
"""The kernel's files of persistent reservations; tests/kernel shows that the kernel reads them back."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.tcmu import aptpl

HOLDER = """PR_REG_START: 0
initiator_fabric=iSCSI
initiator_node=iqn.2026-11.org.example:a
initiator_sid=00023d000001
sa_res_key=72057594037927936
res_holder=1
res_type=08
res_scope=00
res_all_tg_pt=0
mapped_lun=3
target_fabric=iSCSI
target_node=iqn.2026-11.io.wolun:test
tpgt=1
port_rtpi=1
target_lun=2
PR_REG_END: 0
"""
OTHER = """PR_REG_START: 1
initiator_fabric=loopback
initiator_node=naa.6001405000000001
sa_res_key=7
res_holder=0
res_all_tg_pt=0
mapped_lun=2
target_fabric=loopback
target_node=naa.5001405000000000
tpgt=1
port_rtpi=2
target_lun=2
PR_REG_END: 1
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "aptpl_serial"
    path.write_text(text + "\0")  # the kernel ends the file with a zero
    return path


def test_registrations_have_initiator_and_fabric(tmp_path: Path) -> None:
    holder, other = aptpl.load(written(tmp_path, HOLDER + OTHER))
    assert (holder.initiator, holder.fabric) == ("iqn.2026-11.org.example:a", "iscsi")
    assert (other.initiator, other.fabric) == ("naa.6001405000000001", "loopback")


def test_types_are_rewritten_as_the_kernel_reads_them(tmp_path: Path) -> None:
    path = written(tmp_path, HOLDER + OTHER)
    aptpl.make_readable(path)
    readable = HOLDER.replace("res_type=08", "res_type=8").replace("res_scope=00", "res_scope=0")
    assert path.read_text() == readable + OTHER
    assert len(aptpl.load(path)) == 2
    aptpl.make_readable(tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_missing_and_empty_files_have_no_registrations(tmp_path: Path) -> None:
    assert aptpl.load(tmp_path / "aptpl_serial") == ()
    assert aptpl.load(written(tmp_path, "No Registrations or Reservations\n")) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        HOLDER[:-20],
        HOLDER + OTHER[:40],
        HOLDER.replace("sa_res_key=", "sa_key="),
        "\udcff\udcfe",
    ],
)
def test_part_of_a_file_is_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "aptpl_serial"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(aptpl.Damaged, match="aptpl_serial is damaged"):
        aptpl.load(path)
