# SPDX-License-Identifier: Apache-2.0
"""Images in qcow2 format as QEMU reads them: clean, and with the content that was written."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from target.exports import qcow2

MIB = 1 << 20


def qemu_img(*words: str | Path) -> str:
    return subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=True, timeout=120).stdout


def shown(image: Path) -> bytes:
    """Return the content that a guest would read through the chain."""
    raw = image.with_suffix(".shown")
    qemu_img("convert", "-O", "raw", image, raw)
    return raw.read_bytes()


def assert_clean(image: Path) -> None:
    report = json.loads(qemu_img("check", "--output=json", image))
    assert report["check-errors"] == 0
    assert "leaks" not in report
    assert "corruptions" not in report
    assert report["image-end-offset"] == image.stat().st_size


def write(path: Path, size: int, cluster: int, parts: dict[int, bytes], backing: qcow2.Backing | None = None) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        writer = qcow2.Writer(fd, size, cluster, backing)
        for offset, data in sorted(parts.items()):
            writer.write(offset, memoryview(data))
        writer.finish()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("size", "cluster"), [(512, 4096), (5 * MIB + 512, 4096), (15 * MIB, 4096), (9 * MIB + 512, 65536), (MIB, 8192)]
)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_image_shows_its_content_on_top_of_a_raw_image(tmp_path: Path, size: int, cluster: int, density: float) -> None:
    dice = random.Random(size + cluster)
    below = dice.randbytes(size // 3).ljust(size, b"\0")
    (tmp_path / "a.img").write_bytes(below)
    expected = bytearray(below)
    parts = {}
    for offset in range(0, size, cluster):
        if dice.random() < density:
            length = min(cluster, size - offset)
            parts[offset] = bytes(length) if dice.random() < 0.3 else dice.randbytes(length)
            expected[offset : offset + length] = parts[offset]
    image = tmp_path / "b.qcow2"
    write(image, size, cluster, parts, qcow2.Backing("a.img", "raw"))
    assert_clean(image)
    same = shown(image) == expected  # pytest would take minutes to show how they differ
    assert same
    info = json.loads(qemu_img("info", "--output=json", image))
    assert (info["virtual-size"], info["cluster-size"]) == (size, cluster)
    assert (info["backing-filename"], info["backing-filename-format"]) == ("a.img", "raw")
    assert qcow2.virtual_size(image) == (size, "qcow2")
    assert qcow2.virtual_size(tmp_path / "a.img") == (size, "raw")


def test_zeroes_take_no_room_without_a_backing_file(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    data = b"x" * (3 * 65536) + bytes(MIB - 3 * 65536)
    write(image, 10 << 30, 65536, {0: data, 9 << 30: data})
    assert_clean(image)
    assert image.stat().st_size == (1 + 1 + 3 + 1 + 3 + 1 + 1 + 1) * 65536
    info = json.loads(qemu_img("info", "--output=json", image))
    assert "backing-filename" not in info
    mapped = json.loads(qemu_img("map", "--output=json", image))
    assert [(extent["start"], extent["length"]) for extent in mapped if extent["data"]] == [
        (0, 3 * 65536),
        (9 << 30, 3 * 65536),
    ]


def test_unfinished_image_is_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    with path.open("wb") as file:
        qcow2.Writer(file.fileno(), MIB, 4096).write(0, memoryview(b"x" * 8192))
    with pytest.raises(subprocess.CalledProcessError):
        qemu_img("info", "-f", "qcow2", path)


def test_image_of_64_tib_is_small(tmp_path: Path) -> None:
    assert qcow2.cluster_size(64 << 40, 4096) == 65536
    image = tmp_path / "a.qcow2"
    write(image, 64 << 40, 65536, {(64 << 40) - 65536: b"x" * 65536}, qcow2.Backing("./a:b.img", "raw"))
    assert image.stat().st_size < 2 * MIB
    info = json.loads(qemu_img("info", "-U", "--output=json", image))
    assert info["backing-filename"] == "./a:b.img"


def test_cluster_size_follows_the_chunk_size() -> None:
    assert qcow2.cluster_size(MIB, 4096) == 4096
    assert qcow2.cluster_size(MIB, 16384) == 16384
    assert qcow2.cluster_size(MIB, MIB) == 65536
    assert qcow2.cluster_size(1 << 40, 4096) == 32768


def test_backing_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file, pytest.raises(ValueError, match="longer than 1023"):
        qcow2.Writer(file.fileno(), MIB, 4096, qcow2.Backing("x" * 1024, "raw"))


@pytest.mark.parametrize("cluster", qcow2.CLUSTER_SIZES)
def test_compressed_clusters_lie_side_by_side(tmp_path: Path, cluster: int) -> None:
    """Data of all kinds: it compresses to any length, or not at all, and is mixed with tables."""
    chance = random.Random(cluster)
    size, path = cluster * (cluster // 8 + 300) + 512, tmp_path / "image.qcow2"
    plain = tmp_path / "plain.img"
    with path.open("w+b") as file, plain.open("w+b") as expected:
        expected.truncate(size)
        writer = qcow2.Writer(file.fileno(), size, cluster, compress=True)
        for offset in (*range(0, 300 * cluster, cluster), *range(size - 100 * cluster - 512, size, cluster)):
            length = min(cluster, size - offset)
            random_part = chance.randrange(length + 1) if chance.random() < 0.6 else chance.choice((0, length))
            data = (chance.randbytes(random_part) + bytes([chance.randrange(256)]) * length)[:length]
            writer.write(offset, memoryview(data))
            expected.seek(offset)
            expected.write(data)
        writer.finish()
    check = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True, timeout=60)
    assert (check.returncode, "No errors were found" in check.stdout) == (0, True), check.stdout + check.stderr
    assert "compressed clusters" in check.stdout
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, plain)
    assert path.stat().st_size < 0.8 * 400 * cluster
