# SPDX-License-Identifier: Apache-2.0
"""A damaged snapshot, read by an initiator (libiscsi) and taken out of wolun by commands and the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.stores import thin
from tests import daemon, libiscsi

pytestmark = pytest.mark.interop

CHUNK = 64 << 10
PER_CHUNK = CHUNK // 512
DAMAGED = PER_CHUNK + PER_CHUNK // 2  # the first of eight damaged blocks
MEDIUM_ERROR, UNRECOVERED_READ_ERROR = 0x03, (0x11, 0x00)


def read10(lba: int, blocks: int) -> bytes:
    return b"\x28\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write10(lba: int, blocks: int) -> bytes:
    return b"\x2a\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[daemon.Daemon]:
    """Serve vol0 with snapshot a; the middle of the snapshot's chunk 1 is damaged."""
    with daemon.Daemon(tmp_path, "  - {name: vol0, lun: 0, size: 1MiB, map_write_once: read-write}\n") as running:
        with running.session() as session:
            session.settle(0)
            assert session.command(0, write10(0, 4 * PER_CHUNK), out=b"y" * (4 * CHUNK)).status == 0
        taken = running.json("snapshot", "create", "vol0", "a")
        with running.session() as session:
            session.settle(0)
            assert session.command(0, write10(0, 4 * PER_CHUNK), out=b"x" * (4 * CHUNK)).status == 0
        chunks = thin.files(running.state / "volumes" / "vol0" / "snapshots" / taken["uuid"])[1]
        with chunks.open("r+b") as file:
            content = file.read()
            file.seek(2 * CHUNK + CHUNK // 2)
            assert content[2 * CHUNK :].strip(b"y") == b""  # all chunks are alike; slot 2 is that of chunk 1
            file.write(b"rot")
        yield running


@pytest.fixture
def luns(served: daemon.Daemon) -> tuple[int, int]:
    shown = served.json("snapshot", "show", "vol0@a")
    return shown["view_lun"], shown["write_once_lun"]


@pytest.fixture
def session(served: daemon.Daemon, luns: tuple[int, int]) -> Iterator[libiscsi.Session]:
    with served.session() as logged_in:
        for lun in (0, *luns):
            logged_in.settle(lun)
        yield logged_in


def test_initiator_gets_medium_error_for_damaged_blocks_and_data_for_all_others(
    session: libiscsi.Session, luns: tuple[int, int]
) -> None:
    for lun in luns:
        for lba, blocks, at in (
            (DAMAGED, 1, DAMAGED),
            (0, 3 * PER_CHUNK, DAMAGED),
            (DAMAGED + 5, 8, DAMAGED + 5),
            (DAMAGED - 5, 8, DAMAGED),
        ):
            answer = session.command(lun, read10(lba, blocks), read=blocks * 512)
            assert (answer.status, answer.key, answer.asc) == (2, MEDIUM_ERROR, UNRECOVERED_READ_ERROR)
            assert answer.information == at
        for lba, blocks in ((0, PER_CHUNK), (PER_CHUNK, 64), (DAMAGED + 8, PER_CHUNK)):
            assert session.command(lun, read10(lba, blocks), read=blocks * 512).data == b"y" * (blocks * 512)


def test_verification_of_reads_is_turned_off_while_the_volume_is_used(
    served: daemon.Daemon, session: libiscsi.Session, luns: tuple[int, int]
) -> None:
    said = served.run("shell", "/volumes/vol0 set attribute verify_reads=false").stdout
    assert "verify_reads of vol0 is false" in said
    assert not served.json("status")["volumes"][0]["verify_reads"]
    for lun in luns:
        answer = session.command(lun, read10(PER_CHUNK, PER_CHUNK), read=CHUNK)
        assert answer.status == 0
        assert answer.data[CHUNK // 2 :][:4] == b"roty"
    served.run("shell", "/volumes/vol0 set attribute verify_reads=true")
    assert session.command(luns[0], read10(DAMAGED, 1), read=512).key == MEDIUM_ERROR


def test_commands_name_damaged_blocks_and_continue_with_damaged(served: daemon.Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.img"
    named = f"blocks {DAMAGED} to {DAMAGED + 7}"
    for words in (
        ("snapshot", "export", "vol0@a", str(file)),
        ("snapshot", "diff", "vol0@a", "--exact"),
        ("snapshot", "restore", "vol0@a"),
    ):
        refused = served.run(*words, check=False)
        assert refused.returncode == 1
        assert named in refused.stderr
        assert "--damaged" in refused.stderr
    assert not file.exists()
    assert (
        json.loads(served.run("--json", "snapshot", "export", "vol0@a", str(file), check=False).stderr)["error"]
        == "damaged"
    )
    assert served.run("snapshot", "diff", "vol0@a", "--damaged", check=False).returncode == 2
    for accepted in (
        ("snapshot", "export", "vol0@a", str(file), "--damaged"),
        ("snapshot", "diff", "vol0@a", "--exact", "--damaged"),
        ("snapshot", "restore", "vol0@a", "--damaged"),
        ("snapshot", "delete", "vol0@a", "--damaged"),
    ):
        done = served.run(*accepted)
        assert ("4 KiB of vol0@a are damaged: " + named in done.stderr) is (accepted[1] != "delete")
    assert file.read_bytes()[CHUNK + CHUNK // 2 :][:4] == b"roty"


def test_shell_names_damaged_blocks_and_continues_with_damaged(served: daemon.Daemon, tmp_path: Path) -> None:
    snapshot = "/volumes/vol0/snapshots/a"
    named = f"blocks {DAMAGED} to {DAMAGED + 7}"
    for line in (f"{snapshot} export {tmp_path / 'a.img'}", f"{snapshot} diff exact=true", f"{snapshot} restore"):
        refused = served.run("shell", line, check=False)
        assert refused.returncode == 1
        assert named in refused.stderr
        assert named in served.run("shell", f"{line} damaged=true").stdout
    served.run("shell", "/volumes/vol0/snapshots delete a damaged=true")
