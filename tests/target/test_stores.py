# SPDX-License-Identifier: Apache-2.0
"""A daemon whose volume keeps its snapshots in each kind of store: all that can be done with a snapshot, and a kill."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from target import audit
from tests import ceph, daemon, peers
from tests.lun_backends.stores import disk
from tests.target.shell import shelling

SIZE = 4 << 20
CHUNK = 256 << 10
PIECE = 4096


def volume(kind: str, directory: Path) -> str:
    """Return a volume with a store of that kind."""
    place = ""
    if kind == "objects":
        credentials = directory / "s3.env"
        credentials.write_text(f"AWS_ACCESS_KEY_ID={ceph.KEY}\nAWS_SECRET_ACCESS_KEY={ceph.SECRET}\n")
        url = f"s3://bucket/{directory.name}"
        place = f"objects: {{url: '{url}', endpoint: '{ceph.gateway()}', region: r, credentials: {credentials}}}"
    elif kind == "rados":
        conf = ceph.cluster().conf
        place = f"rados: {{pool: {ceph.Cluster.POOL}, namespace: {directory.name}, conf: {conf}, timeout: 20}}"
    rest = f", {place}" if place else ""
    most = "64KiB" if kind in ("sparse", "log") else "3MiB"  # their grains are of 4 KiB
    limits = f"limit: {most}, copy_timeout: 30, on_error: fail-writes"
    return f"  - {{name: vol0, lun: 0, size: 4MiB, chunk_size: 256KiB, store: {kind}, {limits}{rest}}}\n"


def write(served: daemon.Daemon, content: bytearray, offset: int, fill: int) -> int:
    """Write a piece, and return the status."""
    with served.session() as session:
        session.settle(0)
        cdb = b"\x2a\0" + (offset // 512).to_bytes(4) + b"\0" + (PIECE // 512).to_bytes(2) + b"\0"
        status = session.command(0, cdb, out=bytes([fill]) * PIECE).status
    if status == 0:
        content[offset : offset + PIECE] = bytes([fill]) * PIECE
    return status


def shown(served: daemon.Daemon, lun: int) -> bytes:
    """Return the content of a LUN."""
    content = bytearray()
    with served.session() as session:
        session.settle(lun)
        for lba in range(0, SIZE // 512, 128):
            cdb = b"\x28\0" + lba.to_bytes(4) + b"\0\0\x80\0"
            answer = session.command(lun, cdb, read=128 * 512)
            assert answer.status == 0
            content += answer.data
    return bytes(content)


@pytest.mark.parametrize("kind", ["log", "sparse", "objects", "rados"])
def test_every_operation_works_on_every_store(kind: str, tmp_path: Path) -> None:
    place = tmp_path
    if kind == "sparse":
        place = disk.with_journal(tmp_path) / "daemon"
        place.mkdir(exist_ok=True)
    served = daemon.Daemon(place, volume(kind, place))
    with served:
        now = bytearray(SIZE)
        write(served, now, 0, 1)
        served.run("snapshot", "create", "vol0", "a")
        at_a = bytes(now)
        for offset in (0, CHUNK + PIECE, 5 * CHUNK):
            write(served, now, offset, 2)
        served.run("snapshot", "create", "vol0", "b")
        at_b = bytes(now)
        for offset in (PIECE, 5 * CHUNK, 9 * CHUNK):
            write(served, now, offset, 3)
        served.kill()
    with served:
        listed = {each["name"]: each for each in served.json("snapshot", "list")}
        assert shown(served, listed["a"]["view_lun"]) == at_a
        assert shown(served, listed["b"]["view_lun"]) == at_b
        assert shown(served, 0) == now
        assert served.json("status")["volumes"][0]["store"] == kind
        changed: set[int] = set()
        for extent in served.json("snapshot", "diff", "vol0@a", "vol0@b")["extents"]:
            end = extent["offset"] + extent["length"]
            changed.update(range(extent["offset"] // CHUNK, -(-end // CHUNK)))
        assert changed == {0, 1, 5}
        verified = served.json("snapshot", "verify", "vol0@a")
        assert verified["damaged_bytes"] == 0
        assert (verified["good_bytes"] > 0) is (kind != "sparse")
        served.run("snapshot", "export", "vol0@b", str(place / "b.vhd"))
        assert (place / "b.vhd").read_bytes()[:SIZE] == at_b
        served.run("snapshot", "export", "vol0@a", str(place / "a.qcow2"))
        served.run("snapshot", "export", "vol0@b", str(place / "b.qcow2"), "--since", "vol0@a")
        peers.require("qemu-img")
        compared: list[str | Path] = ["qemu-img", "compare", "-F", "vpc", place / "b.qcow2", place / "b.vhd"]
        subprocess.run(compared, check=True, stdout=subprocess.DEVNULL)
        served.run("snapshot", "delete", "vol0@b")
        assert shown(served, listed["a"]["view_lun"]) == at_a
        served.run("snapshot", "restore", "vol0@a", "--force")
        assert shown(served, 0) == at_a
        now = bytearray(at_a)
        statuses = [write(served, now, offset, 4) for offset in range(0, SIZE, CHUNK // 2)]
        # The limit is reached, and the policy refuses writes; but a log keeps zeroes without space.
        assert (2 in statuses) is (kind != "log")
        assert shown(served, listed["a"]["view_lun"]) == at_a
        assert ("vol0" in json.dumps(served.json("status")["alerts"])) is (kind != "log")
        served.run("snapshot", "delete", "vol0@a")
        assert [write(served, now, offset, 5) for offset in range(0, SIZE, CHUNK)] == [0] * (SIZE // CHUNK)


def test_conversion_of_a_served_volume(tmp_path: Path) -> None:
    """`wolun volume store` changes later snapshots, converts existing ones, and `saveconfig` and a restart keep that."""
    served = daemon.Daemon(tmp_path, volume("map", tmp_path))
    with served:
        now = bytearray(SIZE)
        content = {}
        for fill, name in enumerate(("a", "b", "c"), start=1):
            content[name] = bytes(now)
            served.run("snapshot", "create", "vol0", name)
            write(served, now, fill * CHUNK, fill)
        later = served.json("volume", "store", "vol0", "log", "--later")
        assert later == {"volume": "vol0", "store": "log", "snapshots": []}
        listed = {each["name"]: each["store"] for each in served.json("snapshot", "list")}
        assert listed == {"a": "map", "b": "map", "c": "map"}
        converted = served.json("volume", "store", "vol0", "log")
        outcomes = {each["snapshot"]: each["store"] for each in converted["snapshots"]}
        assert outcomes == {"a": "log", "b": "log", "c": "map"}
        assert "newest" in converted["snapshots"][2]["reason"]
        assert served.json("volume", "show", "vol0")["store"] == "log"
        assert served.json("status")["volumes"][0]["stores"] == {"log": 2, "map": 1}
        assert "log; snapshots with another one: 1 of map" in served.run("volume", "show", "vol0").stdout
        assert served.json("snapshot", "show", "vol0@a")["store"] == "log"
        shelling.good(served, "saveconfig")
        saved = served.configuration.read_text()
        served.kill()
    assert "store: log" in saved
    served.volumes = served.volumes.replace("store: map", "store: log")
    with served:
        assert served.json("volume", "show", "vol0")["store"] == "log"
        listed_now = {each["name"]: each for each in served.json("snapshot", "list")}
        assert {name: each["store"] for name, each in listed_now.items()} == outcomes
        for name, each in listed_now.items():
            assert shown(served, each["view_lun"]) == content[name]
            served.run("snapshot", "verify", f"vol0@{name}")
        served.run("snapshot", "create", "vol0", "d")
        assert served.json("snapshot", "show", "vol0@d")["store"] == "log"
        shelling.good(served, "/volumes", "store", "vol0", "map")
        assert {each["name"]: each["store"] for each in served.json("snapshot", "list")}["a"] == "map"
        log = (served.state / audit.FILE).read_text()
        assert "POST /v1/volumes/vol0/store" in log
