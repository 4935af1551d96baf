# SPDX-License-Identifier: Apache-2.0
"""Images of other hypervisors' formats, as QEMU reads them, and the formats that names stand for."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from pathlib import Path, PurePath

import pytest

from target import messages
from target.exports import foreign
from target.service import jobs, problems
from tests import peers

MIB = 1 << 20


def image(kind: str, path: Path, size: int, content: dict[int, bytes], *, cancelled: bool = False) -> None:
    """Write an image with some content at byte offsets."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        writer = (
            foreign.Vhd(fd, size) if kind == "vhd" else foreign.Converted(fd, size, path, kind, lambda: cancelled, undo)
        )
        for offset, data in content.items():
            writer.write(offset, memoryview(data))
        writer.finish()


@pytest.mark.parametrize("kind", ["vhd", "vhdx", "vmdk"])
@pytest.mark.parametrize("size", [MIB, 129 * MIB + 512 * 3, 9 << 30])
def test_qemu_reads_what_was_written(tmp_path: Path, kind: str, size: int) -> None:
    peers.require("qemu-img")
    path, plain = tmp_path / f"x.{kind}", tmp_path / "x.raw"
    content = {0: b"\1" * 4096, 700 * 1024: b"\2" * 65536, size - 512: b"\3" * 512}
    image(kind, path, size, content)
    driver = {"vhd": "vpc"}.get(kind, kind)
    info = json.loads(subprocess.check_output(["qemu-img", "info", "-f", driver, "--output=json", path]))
    assert info["format"] == driver
    assert info["virtual-size"] == size
    subprocess.run(["qemu-img", "convert", "-f", driver, "-O", "raw", path, plain], check=True)
    with plain.open("rb") as file:
        for offset, data in content.items():
            file.seek(offset)
            assert file.read(len(data)) == data
        file.seek(4096)
        assert file.read(4096) == bytes(4096)
    assert path.stat().st_blocks * 512 < 24 * MIB


def test_a_footer_is_that_of_the_specification() -> None:
    made = foreign.footer(127 * MIB, uuid.UUID(int=5), 946684800 + 77)
    assert (len(made), made[:8], made[24:28], made[60:64]) == (512, b"conectix", bytes([0, 0, 0, 77]), b"\0\0\0\2")
    assert int.from_bytes(made[64:68]) == ~(sum(made) - sum(made[64:68])) & 0xFFFFFFFF
    assert foreign.geometry(127 * MIB) == (1019, 15, 17)
    assert foreign.geometry(foreign.VHD_MAXIMUM) == (65535, 16, 255)


def test_what_cannot_be_written_is_refused_before_anything_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(problems.Problem, match="at most 2040 GiB"):
        foreign.check(tmp_path / "x.vhd", "vhd", foreign.VHD_MAXIMUM + 512)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(problems.Problem, match="qemu-img, which is not installed"):
        foreign.check(tmp_path / "x.vhdx", "vhdx", MIB)
    foreign.check(tmp_path / "x.vhd", "vhd", MIB)


def test_a_conversion_that_fails_or_is_cancelled_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "qemu-img"
    fake.write_text("#!/bin/sh\necho it is full >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(problems.Problem, match="cannot convert to vmdk: it is full"):
        image("vmdk", tmp_path / "x.vmdk", MIB, {})
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(jobs.Cancelled):
        image("vmdk", tmp_path / "y.vmdk", MIB, {}, cancelled=True)


def test_a_name_says_its_format_or_none() -> None:
    names = {"a.QCOW2": "qcow2", "a.vhd": "vhd", "a.vhdx": "vhdx", "a.vmdk": "vmdk", "a.img": "raw", "a": None}
    assert {name: messages.image_format(PurePath(name)) for name in names} == names
    assert messages.image_format(PurePath("a.vdi")) is None
