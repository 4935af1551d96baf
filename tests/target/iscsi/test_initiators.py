# SPDX-License-Identifier: Apache-2.0
"""Initiators of other projects (libiscsi's tools, QEMU) against a portal with a file behind it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from lun_backends import flat
from lun_backends.files import backing_file
from target.portal.portal import Portal
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.scsi_target import ScsiTarget
from tests import libiscsi, peers
from tests.target.iscsi.initiator import MIB, TARGET

pytestmark = pytest.mark.interop

SIZE = 64 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    backing_file.create(path, SIZE)
    return path


@pytest.fixture
def portal(image: Path) -> Iterator[Portal]:
    device = flat.Flat(image)
    target = ScsiTarget(TARGET)
    target.add_lun(
        0, LogicalUnit(device, uuid=UUID(int=1), kind=UnitKind.PRIMARY, name="vol0", commands=table.for_unit)
    )
    portal = Portal("127.0.0.1", 0, {TARGET: target})
    portal.start()
    yield portal
    portal.close(0)
    device.close()


def url(portal: Portal, *path: str) -> str:
    return "/".join([f"iscsi://127.0.0.1:{portal.address[1]}", *path])


def run(program: str, *arguments: str) -> str:
    done = subprocess.run([peers.require(program), *arguments], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_libiscsis_tools_list_and_read_the_lun(portal: Portal) -> None:
    listed = run("iscsi-ls", "-s", url(portal))
    assert TARGET in listed
    assert "DIRECT_ACCESS" in listed
    assert "Vendor:WOLUN" in run("iscsi-inq", url(portal, TARGET, "0"))
    assert f"Total size:{SIZE}" in run("iscsi-readcapacity16", url(portal, TARGET, "0"))


def qemu_name(portal: Portal, header_digest: str) -> str:
    lun = {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": f"127.0.0.1:{portal.address[1]}",
        "target": TARGET,
        "lun": 0,
    }
    return "json:" + json.dumps({"driver": "raw", "file": lun | {"header-digest": header_digest}})


@pytest.mark.parametrize("header_digest", ["none", "crc32c"])
def test_qemu_writes_and_reads(portal: Portal, image: Path, tmp_path: Path, header_digest: str) -> None:
    lun = qemu_name(portal, header_digest)
    source = tmp_path / "source"
    source.write_bytes(b"".join(bytes([1 + n % 251]) * 4096 for n in range(SIZE // 4096)))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), lun)
    assert image.read_bytes() == source.read_bytes()
    commands = ("write -P 7 1M 3M", "write -P 9 12345344 512", "read -P 7 1M 3M", "read -P 9 12345344 512", "flush")
    words = [word for command in commands for word in ("-c", command)]
    assert "failed" not in run("qemu-io", *words, lun)
    copy = tmp_path / "copy"
    run("qemu-img", "convert", "-O", "raw", lun, str(copy))
    assert copy.read_bytes() == image.read_bytes()
    assert image.read_bytes()[MIB : 4 * MIB] == b"\7" * (3 * MIB)


@pytest.mark.parametrize(
    "suite",
    [
        "SCSI.Read10",
        "SCSI.Read16",
        "SCSI.Write10",
        "SCSI.Inquiry",
        "SCSI.TestUnitReady",
        "iSCSI.iSCSITMF",
        "iSCSI.iSCSIResiduals.Read10Invalid",
        "iSCSI.iSCSIResiduals.Read10Residuals",
        "iSCSI.iSCSIResiduals.Read16Residuals",
        "iSCSI.iSCSIdatasn",
    ],
)
def test_libiscsis_suite_passes(portal: Portal, suite: str) -> None:
    output = run("iscsi-test-cu", "--dataloss", "--test", suite, url(portal, TARGET, "0"))
    counted = re.search(r"asserts\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", output)
    assert counted is not None, output
    total, _, passed, failed = map(int, counted.groups())
    assert (passed, failed) == (total, 0), output
    assert total > 0


def test_a_session_ends_before_its_logout_is_answered(portal: Portal) -> None:
    for _ in range(50):
        with libiscsi.Session(f"127.0.0.1:{portal.address[1]}", TARGET):
            assert len(portal.sessions()) == 1
        assert not portal.sessions()
