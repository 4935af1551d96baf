# SPDX-License-Identifier: Apache-2.0
"""`wolun snapshot clone` and `wolun clone` against a real daemon: the LUN, restarts, kills, refusals, and all that shows a clone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, libiscsi
from tests.target.commands import commanding

MIB = commanding.MIB


def write(session: libiscsi.Session, lun: int, lba: int, fill: int, blocks: int = 8) -> None:
    cdb = b"\x2a\x00" + lba.to_bytes(4, "big") + b"\x00" + blocks.to_bytes(2, "big") + b"\x00"
    assert session.command(lun, cdb, out=bytes([fill]) * (512 * blocks)).status == 0


def read(session: libiscsi.Session, lun: int, lba: int, blocks: int = 8) -> bytes:
    cdb = b"\x28\x00" + lba.to_bytes(4, "big") + b"\x00" + blocks.to_bytes(2, "big") + b"\x00"
    answer = session.command(lun, cdb, read=512 * blocks)
    assert answer.status == 0
    return bytes(answer.data)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(
        tmp_path, "  - {name: vol0, lun: 0, size: 16MiB}\n  - {name: vol1, lun: 1, size: 1MiB}\n"
    ) as running:
        yield running


def test_a_clone_is_written_to_and_survives_restarts_and_kills(served: daemon.Daemon) -> None:
    with served.session() as session:
        session.settle(0)
        write(session, 0, 0, 1, 16)
    served.run("snapshot", "create", "vol0", "a")
    with served.session() as session:
        session.settle(0)
        write(session, 0, 0, 2, 16)
    made = served.json("snapshot", "clone", "vol0@a", "test", "--limit", "1MiB")
    lun = made["lun"]
    assert (made["volume"], made["snapshot"], made["size"], made["limit"]) == ("vol0", "a", 16 * MIB, MIB)
    with served.session() as session:
        session.settle(lun)
        assert read(session, lun, 0) == b"\x01" * 4096
        write(session, lun, 1, 3, 1)
        assert read(session, lun, 0) == b"\x01" * 512 + b"\x03" * 512 + b"\x01" * 3072
        assert session.command(lun, b"\x35" + bytes(9)).status == 0  # SYNCHRONIZE CACHE
        write(session, lun, 64, 4)
        unmap = (
            (22).to_bytes(2, "big")
            + (16).to_bytes(2, "big")
            + bytes(4)
            + (8).to_bytes(8, "big")
            + (8).to_bytes(4, "big")
            + bytes(4)
        )
        assert session.command(lun, b"\x42" + bytes(6) + (24).to_bytes(2, "big") + b"\x00", out=unmap).status == 0
        assert read(session, lun, 8) == bytes(4096)
        full = session.command(lun, b"\x2a\x00" + (4096).to_bytes(4, "big") + b"\x00\x08\x00\x00", out=bytes(MIB))
        assert full.status == 2
    served.kill()
    served.start()
    (again,) = served.json("clone", "list")
    assert {**again, "url": ""} == {**made, "used_bytes": 8192, "url": ""}
    served.run("snapshot", "restore", "vol0@a", "--yes")
    served.stop()
    served.start()
    with served.session() as session:
        session.settle(lun)
        assert read(session, lun, 0) == b"\x01" * 512 + b"\x03" * 512 + b"\x01" * 3072
        assert read(session, lun, 64) == b"\x04" * 4096
        assert read(session, lun, 8) == bytes(4096)
        view = served.json("snapshot", "show", "vol0@a")["view_lun"]
        session.settle(view)
        assert read(session, view, 0, 16) == b"\x01" * 8192


def test_what_shows_a_clone_and_what_it_holds(served: daemon.Daemon) -> None:
    assert served.run("clone", "list").stdout == "no clones\n"
    served.run("snapshot", "create", "vol0", "a")
    said = served.run("snapshot", "clone", "vol0@a", "test").stdout
    assert "test is a writable clone of vol0@a: LUN " in said
    assert "CLONES" in served.run("snapshot", "list").stdout
    assert served.json("snapshot", "list")[0]["clones"] == ["test"]
    assert "vol0@a" in served.run("clone", "show", "test").stdout
    assert served.json("status")["clones"][0]["name"] == "test"
    assert "test" in served.run("status").stdout
    refused = commanding.wolun("--state-dir", served.state, "snapshot", "delete", "vol0@a")
    assert refused.returncode == 1
    assert "'a' has the clone test" in refused.stderr
    assert "wolun clone delete test" in refused.stderr
    for words, code in (
        (("snapshot", "clone", "vol0@a", "test"), "clone-exists"),
        (("snapshot", "clone", "vol0@a", "vol1"), "refused"),
        (("snapshot", "clone", "vol0@b", "other"), "no-such-snapshot"),
        (("clone", "delete", "other", "--yes"), "no-such-clone"),
    ):
        failed = commanding.wolun("--state-dir", served.state, "--json", *words)
        assert failed.returncode == 1
        assert json.loads(failed.stderr)["error"] == code
    shell = served.run("shell", "ls /clones").stdout
    assert "of vol0@a" in shell
    served.run("shell", "/clones create vol0@a second limit=1MiB")
    assert [clone["name"] for clone in served.json("clone", "list")] == ["test", "second"]
    served.run("shell", "/clones delete second")
    with served.session() as session:
        lun = served.json("clone", "show", "test")["lun"]
        session.settle(lun)
        busy = commanding.wolun("--state-dir", served.state, "clone", "delete", "test", "--yes")
        assert busy.returncode == 1
        assert "in use" in busy.stderr
    assert served.json("clone", "delete", "test") == {"name": "test", "data_removed": True}
    served.run("snapshot", "delete", "vol0@a")
    assert not list((served.state / "volumes" / "vol0" / "clones").iterdir())


def test_an_initiator_sees_a_clone_under_a_number_of_its_own(tmp_path: Path) -> None:
    access = (
        "  networks: [127.0.0.0/8]\n  initiators:\n"
        "    - {name: iqn.2026-11.io.wolun:test, luns: [{lun: 9, unit: test}]}\n"
    )
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 1MiB}\n", access=access) as served:
        served.run("snapshot", "create", "vol0", "a")
        served.run("snapshot", "clone", "vol0@a", "test")
        with served.session() as session:
            session.settle(9)
            write(session, 9, 0, 5)
            assert read(session, 9, 0) == b"\x05" * 4096
