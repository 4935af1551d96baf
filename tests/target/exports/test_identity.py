# SPDX-License-Identifier: Apache-2.0
"""The identity of images: it survives what leaves the content alone, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lun_backends.backups.pieces import ExportPiece
from target.exports import identity, image_file, qcow2
from tests import peers

SIZE = 1 << 20
SHOWN = identity.Identity("vol0", "volume's UUID", "monday", "snapshot's UUID", SIZE)


def write(path: Path, kind: str, shown: identity.Identity = SHOWN) -> Path:
    def writer(fd: int, size: int) -> image_file.Image:
        return qcow2.Writer(fd, size, 65536, None, shown.encoded)

    image_file.export(
        [ExportPiece(0, SIZE, memoryview(b"x" * SIZE))],
        SIZE,
        path,
        overwrite=True,
        progress=lambda _done, _total: None,
        cancelled=lambda: False,
        image=writer if kind == "qcow2" else None,
        identity=lambda: shown,
    )
    return path


def qemu(program: str, *words: str | Path) -> None:
    subprocess.run([peers.require(program), *words], check=True, capture_output=True, timeout=60)


def without_attribute(path: Path) -> Path:
    if identity.ATTRIBUTE in os.listxattr(path):
        os.removexattr(path, identity.ATTRIBUTE)
    return path


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_image_says_what_it_shows_wherever_it_moves(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "image", kind)
    assert dataclasses.replace(identity.of(path), modified=0) == SHOWN
    assert dataclasses.replace(identity.of(path.rename(tmp_path / "moved")), modified=0) == SHOWN
    assert (tmp_path / "image.wolun").exists() is (kind == "raw")


def test_file_beside_a_raw_image_replaces_the_attribute(tmp_path: Path) -> None:
    path = without_attribute(write(tmp_path / "image", "raw"))
    assert identity.of(path).snapshot == "monday"
    shutil.copy2(path, tmp_path / "copy")
    shutil.copy2(tmp_path / "image.wolun", tmp_path / "copy.wolun")
    without_attribute(tmp_path / "copy")
    assert identity.of(tmp_path / "copy").snapshot == "monday"
    (tmp_path / "image.wolun").unlink()
    with pytest.raises(identity.Unknown, match="carries no identity"):
        identity.of(path)


def test_newer_image_does_not_get_the_identity_of_an_older_one(tmp_path: Path) -> None:
    """The file beside it is the old one, as after a crash or a copy over the image."""
    path = write(tmp_path / "image", "raw")
    old = (tmp_path / "image.wolun").read_bytes()
    write(path, "raw", dataclasses.replace(SHOWN, snapshot="tuesday"))
    os.utime(path, ns=(0, identity.of(path).modified + 10**10))
    (tmp_path / "image.wolun").write_bytes(old)
    with pytest.raises(identity.Unknown, match="was changed or copied"):
        identity.of(without_attribute(path))


def test_changed_raw_image_is_unknown(tmp_path: Path) -> None:
    path = write(tmp_path / "image", "raw")
    modified = identity.of(path).modified
    with path.open("r+b") as file:
        file.write(b"y")
    os.utime(path, ns=(0, modified + 3 * 10**9))
    with pytest.raises(identity.Unknown, match="was changed or copied"):
        identity.of(path)
    os.utime(path, ns=(0, modified // 10**9 * 10**9))  # an archive keeps seconds only
    assert identity.of(path).snapshot == "monday"
    os.truncate(path, SIZE + 512)
    os.utime(path, ns=(0, modified))
    with pytest.raises(identity.Unknown, match="was changed or copied"):
        identity.of(path)


def test_qemu_keeps_the_identity_and_says_when_it_has_written(tmp_path: Path) -> None:
    path = write(tmp_path / "image.qcow2", "qcow2")
    qemu("qemu-img", "check", path)
    qemu("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x78 0 1M", path)
    assert identity.of(path) == SHOWN
    copy = shutil.copy(path, tmp_path / "copy.qcow2")
    assert identity.of(Path(copy)) == SHOWN
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 512", path)
    assert qcow2.note(path) == (SHOWN.encoded(), False)
    with pytest.raises(identity.Unknown, match="opened it for writing"):
        identity.of(path)


@pytest.mark.parametrize("kind", ["qemu", "raw", "garbage"])
def test_foreign_image_is_unknown(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    if kind == "qemu":
        qemu("qemu-img", "create", "-f", "qcow2", path, "1M")
    else:
        path.write_bytes(bytes(512))
    if kind == "garbage":
        path.with_name("image.wolun").write_bytes(b'{"volume": 7}')
    with pytest.raises(identity.Unknown):
        identity.of(path)


def test_foreign_file_beside_an_image_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "image.wolun").write_bytes(b"precious")
    (tmp_path / "elsewhere").write_bytes(SHOWN.encoded())
    (tmp_path / "linked.wolun").symlink_to("elsewhere")
    write(tmp_path / "image", "raw")
    write(tmp_path / "linked", "raw")
    assert (tmp_path / "image.wolun").read_bytes() == b"precious"
    assert (tmp_path / "elsewhere").read_bytes() == SHOWN.encoded()
    assert (tmp_path / "linked.wolun").is_symlink()
