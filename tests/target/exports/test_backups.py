# SPDX-License-Identifier: Apache-2.0
"""Verify, diff and incremental export, against a real daemon and QEMU's tools."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends import block_device
from lun_backends.backups.pieces import ExportPiece
from lun_backends.stores import thin
from target.exports import jobs
from tests import daemon
from tests.memory_device import MemoryDevice

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
    for each in served.json("snapshot", "list"):
        served.run("snapshot", "delete", f"{each['volume']}@{each['name']}")


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


def test_verify_counts_what_is_good_and_names_what_is_damaged(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "a")
    write(served, 0, 0, MIB, 1)
    served.run("snapshot", "create", "vol0", "b")
    write(served, 0, 2 * MIB, MIB, 2)
    found = served.json("snapshot", "verify", "vol0@a")
    assert found == {
        "volume": "vol0", "name": "a", "sound": True, "good_bytes": 2 * MIB, "unverifiable_bytes": 0, "damaged_bytes": 0,
        "damage": [], "headers": [],
    }  # fmt: skip
    assert "vol0@a is intact: 2 MiB good" in served.run("snapshot", "verify", "vol0@a").stdout
    rot(served, "b", 3 * CHUNK + 99)  # the third chunk of the second MiB
    rot(served, "b", 4 * CHUNK + 100)
    rot(served, "a", CHUNK + 99)
    done = served.run("snapshot", "verify", "vol0@a", "--json", check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["sound"]
    assert (found["good_bytes"], found["damaged_bytes"]) == (2 * MIB - 3 * CHUNK, 3 * CHUNK)
    assert [(each["kept_in"], each["lba"], each["blocks"]) for each in found["damage"]] == [
        ("a", 0, 128),
        ("b", 2 * MIB // 512 + 256, 128),
        ("b", 2 * MIB // 512 + 384, 128),
    ]
    done = served.run("snapshot", "verify", "vol0@b", check=False)
    assert done.returncode == 1
    assert "vol0@b is DAMAGED" in done.stdout
    assert f"{2 * MIB // 512 + 256:>4}     128  b        CRC32C is 0x" in done.stdout


def test_diff_between_two_and_to_now(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "a")
    write(served, 0, 3 * MIB, 512, 7)
    served.run("snapshot", "create", "vol0", "b")
    write(served, 0, 3 * MIB + CHUNK, CHUNK, 7)
    write(served, 0, 3 * MIB + CHUNK, CHUNK, 0)
    found = served.json("snapshot", "diff", "vol0@a", "vol0@b")
    assert found == {
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
def test_a_chain_of_exports_reads_right(served: daemon.Daemon, tmp_path: Path, name: str, lun: int, first: str) -> None:
    write(served, lun, 0, 4 * MIB, 1)
    served.run("snapshot", "create", name, "a")
    write(served, lun, MIB + 512, 4096, 2)
    write(served, lun, 2 * MIB, 3 * CHUNK, 0)  # becomes zeroes
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
        full = tmp_path / f"{newer}.full"
        served.run("snapshot", "export", f"{name}@{newer}", str(full))
        qemu_img("compare", "-f", "qcow2", "-F", "raw", image, full)
    assert (tmp_path / "c.qcow2").stat().st_size <= 6 * CHUNK
    assert {path.name for path in tmp_path.iterdir()} == {a.name, "b.qcow2", "c.qcow2", "b.full", "c.full"}


def test_an_incremental_export_is_refused_where_it_would_be_wrong(served: daemon.Daemon, tmp_path: Path) -> None:
    served.run("snapshot", "create", "vol0", "a")
    served.run("snapshot", "create", "vol0", "b")
    out = str(tmp_path / "b.qcow2")

    def refusal(*words: str, status: int = 1) -> str:
        done = served.run("snapshot", "export", *words, check=False)
        assert done.returncode == status
        assert not Path(out).exists()
        return done.stderr

    assert f"{tmp_path / 'a.qcow2'}, the image of vol0@a that it would stand on, is not there" in refusal(
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


def test_pieces_are_whole_grains_and_none_comes_twice() -> None:
    device: block_device.BlockDevice = MemoryDevice(10 * 4096 + 512)
    ranges = [(512, 512), (3072, 1024), (4096, 512), (5 * 4096 - 512, 1024), (10 * 4096, 512)]
    found: list[ExportPiece] = list(jobs.pieces(device, ranges, 4096))
    assert [(piece.offset, piece.length) for piece in found] == [
        (0, 4096), (4096, 4096), (4 * 4096, 8192), (10 * 4096, 512),
    ]  # fmt: skip


def test_labels_are_given_shown_and_taken_away(served: daemon.Daemon) -> None:
    taken = served.json("snapshot", "create", "vol0", "a", "--label", "purpose=backup", "--label", "n=1=2")
    assert taken["labels"] == {"purpose": "backup", "n": "1=2"}
    served.run("snapshot", "create", "vol0", "b")
    head, first, second = served.run("snapshot", "list", "vol0").stdout.splitlines()
    assert head.split()[-1] == "LABELS"
    assert first.split()[-1] == "n=1=2,purpose=backup"
    assert second.split()[-1].isdigit()
    assert served.run("snapshot", "label", "vol0@a", "n=", "owner=ada").stdout == "owner=ada,purpose=backup\n"
    assert served.json("snapshot", "show", "vol0@a")["labels"] == {"purpose": "backup", "owner": "ada"}
    assert "owner=ada,purpose=backup" in served.run("snapshot", "show", "vol0@a").stdout
    refused = served.run("snapshot", "label", "vol0@a", "a b=c", check=False)
    assert (refused.returncode, "no key for a label" in refused.stderr) == (1, True)
    assert served.run("snapshot", "label", "vol0@a", "owner", check=False).returncode == 2
