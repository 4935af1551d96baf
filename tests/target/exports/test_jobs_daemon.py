# SPDX-License-Identifier: Apache-2.0
"""The jobs of backups against a real daemon: verify, diff and incremental export, checked with QEMU's tools."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from lun_backends.stores import thin
from tests import daemon

MIB = 1 << 20
SIZE = 16 * MIB
CHUNK = 64 << 10
VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n  - {name: vol1, lun: 1, size: 16MiB, chunk_size: 4KiB}\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), VOLUMES) as running:
        yield running


@pytest.fixture(autouse=True)
def no_snapshots_left(served: daemon.Daemon) -> Iterator[None]:
    yield
    for snapshot in served.json("snapshot", "list"):
        served.run("snapshot", "delete", f"{snapshot['volume']}@{snapshot['name']}")


def write(served: daemon.Daemon, lun: int, offset: int, length: int, fill: int) -> None:
    with served.session() as session:
        session.settle(lun)
        for at in range(offset, offset + length, 64 << 10):
            piece = min(64 << 10, offset + length - at)
            cdb = b"\x2a\x00" + (at // 512).to_bytes(4, "big") + b"\x00" + (piece // 512).to_bytes(2, "big") + b"\x00"
            assert session.command(lun, cdb, out=bytes([fill]) * piece).status == 0


def qemu_img(*words: str | Path) -> str:
    return subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=True, timeout=120).stdout


def rot(served: daemon.Daemon, name: str, place: int) -> None:
    identity = served.json("snapshot", "show", f"vol0@{name}")["uuid"]
    path = thin.files(served.state / "volumes" / "vol0" / "snapshots" / identity)[1]
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"rot")


def test_verify_counts_good_bytes_and_names_damaged_blocks(served: daemon.Daemon) -> None:
    write(served, 0, 0, 3 * MIB, 9)
    served.run("snapshot", "create", "vol0", "a")
    write(served, 0, 0, MIB, 1)
    served.run("snapshot", "create", "vol0", "b")
    write(served, 0, 2 * MIB, MIB, 2)
    answer = served.json("snapshot", "verify", "vol0@a")
    expected = {
        "volume": "vol0", "name": "a", "sound": True, "good_bytes": 2 * MIB, "unverifiable_bytes": 0, "damaged_bytes": 0,
        "damage": [], "headers": [],
    }  # fmt: skip
    assert {key: answer[key] for key in expected} == expected
    assert "vol0@a is intact: 2 MiB good" in served.run("snapshot", "verify", "vol0@a").stdout
    rot(served, "b", 3 * CHUNK + 99)  # the third chunk of the second MiB
    rot(served, "b", 4 * CHUNK + 100)
    rot(served, "a", CHUNK + 99)
    done = served.run("snapshot", "verify", "vol0@a", "--json", check=False)
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert not answer["sound"]
    assert (answer["good_bytes"], answer["damaged_bytes"]) == (2 * MIB - 3 * 4096, 3 * 4096)
    assert [(damage["kept_in"], damage["lba"], damage["blocks"]) for damage in answer["damage"]] == [
        ("a", 0, 8),
        ("b", 2 * MIB // 512 + 256, 8),
        ("b", 2 * MIB // 512 + 384, 8),
    ]
    done = served.run("snapshot", "verify", "vol0@b", check=False)
    assert done.returncode == 1
    assert "vol0@b is DAMAGED" in done.stdout
    assert f"{2 * MIB // 512 + 256:>4}       8  b        CRC32C is 0x" in done.stdout


def test_diff_between_two_snapshots_and_to_now(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "a")
    write(served, 0, 3 * MIB, 512, 7)
    served.run("snapshot", "create", "vol0", "b")
    write(served, 0, 3 * MIB + CHUNK, CHUNK, 7)
    write(served, 0, 3 * MIB + CHUNK, CHUNK, 0)
    answer = served.json("snapshot", "diff", "vol0@a", "vol0@b")
    assert answer == {
        "volume": "vol0", "since": "a", "to": "b", "exact": False, "size": SIZE, "changed_bytes": CHUNK,
        "extents": [{"offset": 3 * MIB, "length": CHUNK}],
    }  # fmt: skip
    assert served.json("snapshot", "diff", "vol0@a")["extents"] == [{"offset": 3 * MIB, "length": 2 * CHUNK}]
    exact = served.json("snapshot", "diff", "vol0@a", "--exact")
    assert exact["extents"][0] == {"offset": 3 * MIB, "length": 4096}
    text = served.run("snapshot", "diff", "vol0@a", "vol0@b").stdout
    assert text.splitlines()[0] == "64 KiB (0.4 %) may differ from vol0@a to vol0@b"
    assert text.splitlines()[-1].split() == [str(3 * MIB), str(CHUNK)]
    refused = served.run("snapshot", "diff", "vol0@b", "vol0@a", check=False)
    assert (refused.returncode, "'a' is older than 'b'" in refused.stderr) == (1, True)
    assert served.run("snapshot", "diff", "vol0@b", "vol1@a", check=False).returncode == 2


@pytest.mark.parametrize(("name", "lun"), [("vol0", 0), ("vol1", 1)])
@pytest.mark.parametrize("first", ["qcow2", "raw"])
def test_chain_of_exports_shows_the_right_content(
    served: daemon.Daemon, tmp_path: Path, name: str, lun: int, first: str
) -> None:
    write(served, lun, 0, 4 * MIB, 1)
    served.run("snapshot", "create", name, "a")
    write(served, lun, MIB + 512, 4096, 2)
    write(served, lun, 2 * MIB, 3 * CHUNK, 0)  # these chunks become zeroes
    write(served, lun, SIZE - 512, 512, 3)
    served.run("snapshot", "create", name, "b")
    write(served, lun, MIB, 512, 4)
    served.run("snapshot", "create", name, "c")
    write(served, lun, 0, 5 * MIB, 5)
    a = tmp_path / ("a.qcow2" if first == "qcow2" else "a.img")
    served.run("snapshot", "export", f"{name}@a", str(a))
    assert json.loads(qemu_img("info", "--output=json", a))["format"] == first
    for older, newer in itertools.pairwise("abc"):
        image = tmp_path / f"{newer}.qcow2"
        said = served.run("snapshot", "export", f"{name}@{newer}", str(image), "--since", f"{name}@{older}").stdout
        assert f"on top of {tmp_path / older}" in said
        qemu_img("check", image)
        info = json.loads(qemu_img("info", "--output=json", image))
        assert info["backing-filename"] == (a.name if older == "a" else f"{older}.qcow2")
        assert info["backing-filename-format"] == (first if older == "a" else "qcow2")
        full = tmp_path / f"{newer}.full.img"
        served.run("snapshot", "export", f"{name}@{newer}", str(full))
        qemu_img("compare", "-f", "qcow2", "-F", "raw", image, full)
    assert (tmp_path / "c.qcow2").stat().st_size <= 6 * CHUNK
    images = {a.name, "b.qcow2", "c.qcow2", "b.full.img", "c.full.img"}
    beside = {f"{image}.wolun" for image in images if not image.endswith(".qcow2")}
    assert {path.name for path in tmp_path.iterdir()} == images | beside


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_incremental_export_stands_only_on_the_image_of_its_older_snapshot(
    served: daemon.Daemon, tmp_path: Path, kind: str
) -> None:
    """A name is used again, another volume has a snapshot of that name, and an image comes from nowhere."""
    base, new = tmp_path / f"base.{kind}", str(tmp_path / "next.qcow2")
    write(served, 0, 0, CHUNK, 1)
    served.run("snapshot", "create", "vol0", "base")
    served.run("snapshot", "create", "vol1", "base")
    served.run("snapshot", "export", "vol0@base", str(base), "--format", kind)
    served.run("snapshot", "export", "vol1@base", str(tmp_path / "other"), "--format", kind)
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, tmp_path / "foreign", "16M"], check=True)
    served.run("snapshot", "delete", "vol0@base")
    write(served, 0, 0, CHUNK, 2)
    served.run("snapshot", "create", "vol0", "base")
    write(served, 0, MIB, CHUNK, 3)
    served.run("snapshot", "create", "vol0", "next")
    words = ("snapshot", "export", "vol0@next", new, "--since", "vol0@base")
    for image, why in (
        (base, "is an image of another snapshot: vol0@base"),
        (tmp_path / "other", "is an image of another snapshot: vol1@base"),
        (tmp_path / "foreign", "cannot be told to be an image of 'base': it carries no identity"),
    ):
        refused = served.run(*words, "--backing", str(image), check=False)
        assert refused.returncode == 1
        assert f"{image} {why}" in refused.stderr
        assert "--force" in refused.stderr
        assert not Path(new).exists()
    assert served.run(*words, check=False).returncode == 1  # the default is base
    served.run(*words, "--force")
    served.run("snapshot", "export", "vol0@base", str(base), "--format", kind, "--force")
    served.run(*words, "--force")
    full = tmp_path / "full.img"
    served.run("snapshot", "export", "vol0@next", str(full))
    qemu_img("compare", "-f", "qcow2", "-F", "raw", new, full)


def test_image_that_was_replaced_below_the_base_is_noticed(served: daemon.Daemon, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write(served, 0, number * MIB, CHUNK, number + 1)
        served.run("snapshot", "create", "vol0", name)
    a, b, c = (str(tmp_path / f"{name}.qcow2") for name in "abc")
    served.run("snapshot", "export", "vol0@a", a)
    served.run("snapshot", "export", "vol0@b", b, "--since", "vol0@a")
    served.run("snapshot", "export", "vol0@c", a, "--force")
    refused = served.run("snapshot", "export", "vol0@c", c, "--since", "vol0@b", check=False)
    assert f"{b} stands on {a}, which was replaced: it is an image of vol0@c" in refused.stderr
    served.run("snapshot", "export", "vol0@a", a, "--force")
    served.run("snapshot", "export", "vol0@c", c, "--since", "vol0@b")


def test_incremental_export_is_refused_if_it_would_be_wrong(served: daemon.Daemon, tmp_path: Path) -> None:
    served.run("snapshot", "create", "vol0", "a")
    served.run("snapshot", "create", "vol0", "b")
    out = str(tmp_path / "b.qcow2")

    def refusal(*words: str, status: int = 1) -> str:
        done = served.run("snapshot", "export", *words, check=False)
        assert done.returncode == status
        assert not Path(out).exists()
        return done.stderr

    assert f"there is no {tmp_path / 'a.qcow2'}, the image of vol0@a that it would stand on" in refusal(
        "vol0@b", out, "--since", "vol0@a"
    )
    (tmp_path / "small").write_bytes(bytes(512))
    backing = ("--backing", str(tmp_path / "small"))
    assert "it shows 512 bytes, not 16777216" in refusal("vol0@b", out, "--since", "vol0@a", *backing)
    assert "'b' is older" not in refusal("vol0@b", out, "--since", "vol0@z")
    assert "'a' is older than 'b'" in refusal("vol0@a", out, "--since", "vol0@b")
    assert "the format must be qcow2" in refusal("vol0@b", out, "--since", "vol0@a", "--format", "raw", status=2)
    assert "need --since" in refusal("vol0@b", out, *backing, status=2)
    assert "different volumes" in refusal("vol0@b", out, "--since", "vol1@a", status=2)
    far = ("--backing", str(tmp_path / "x" / "far:away.img"), "--backing-format", "raw")
    served.run("snapshot", "export", "vol0@b", out, "--since", "vol0@a", *far)
    info = json.loads(qemu_img("info", "--output=json", out))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("x/far:away.img", "raw")
    done = served.run("snapshot", "export", "vol0@b", out, "--since", "vol0@a", *far, check=False)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)
    served.run("snapshot", "export", "vol0@b", out, "--since", "vol0@a", *far, "--force")


def test_name_says_the_format(served: daemon.Daemon, tmp_path: Path) -> None:
    """A name that says none is refused; nothing is silently raw."""
    served.run("snapshot", "create", "vol0", "named")
    for words, reason in (
        (("out",), "it has no ending"),
        (("out.txt",), "it ends in .txt"),
        (("out.qcow2.zst",), "it ends in .zst"),
        (("out.vmdk", "--compress"), "a vmdk image is not compressed"),
        (("out.img", "--format", "stream"), "a stream goes to standard output"),
    ):
        refused = served.run("snapshot", "export", "vol0@named", str(tmp_path / words[0]), *words[1:], check=False)
        assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr
    served.run("snapshot", "export", "vol0@named", str(tmp_path / "out.img.zst"), "--limit", "500MiB/s")
    with (tmp_path / "out.img.zst").open("rb") as packed:
        assert len(zstandard.ZstdDecompressor().stream_reader(packed).read()) == SIZE
