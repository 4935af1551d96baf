# SPDX-License-Identifier: Apache-2.0
"""Snapshots sent from one daemon and received by another, by the commands and through real pipes.

`tests/target/administration/test_replicas.py` has the cases; here are the command line and the initiators.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lun_backends.backups import frames
from tests import daemon, libiscsi

MIB = 1 << 20
VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n"
WRITE_10 = b"\x2a\0\0\0\0\0\0\0\x80\0"
READ_10 = b"\x28\0\0\0\0\0\0\0\x80\0"
LENGTH = 64 << 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("source"), VOLUMES) as running:
        for name, content in (("a", b"a"), ("b", b"b")):
            with running.session() as session:
                session.settle(0)
                for lba in (0, 16384):
                    cdb = b"\x2a\x00" + lba.to_bytes(4, "big") + b"\x00\x00\x80\x00"
                    assert session.command(0, cdb, out=content * LENGTH).status == 0
            running.run("snapshot", "create", "vol0", name)
        yield running


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("backup"), VOLUMES) as running:
        yield running


def words(served: daemon.Daemon, *arguments: str | Path) -> list[str | Path]:
    return [daemon.PROGRAM, "--state-dir", served.state, *arguments]


def piped(
    source: daemon.Daemon, sender: tuple[str, ...], backup: daemon.Daemon, receiver: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    """Run `wolun send ... | wolun volume receive ...`; return what became of the receiver."""
    sending = subprocess.Popen(words(source, "send", *sender), stdout=subprocess.PIPE)
    assert sending.stdout is not None
    done = subprocess.run(
        words(backup, "volume", "receive", *receiver), stdin=sending.stdout, capture_output=True, text=True, timeout=120
    )
    sending.stdout.close()
    assert sending.wait(60) == 0
    return done


def told(session: libiscsi.Session) -> list[bytes]:
    """Return the unit attentions of LUN 7 until a command is carried out, ASC and ASCQ of each."""
    attentions = []
    while (answer := session.command(7, READ_10, read=LENGTH)).status:
        attentions.append(answer.sense[12:14])
    return attentions


def test_replica_follows_and_takes_no_writes_until_it_is_promoted(source: daemon.Daemon, backup: daemon.Daemon) -> None:
    full = piped(source, ("vol0@a",), backup, ("copy", "--lun", "7"))
    assert (full.stdout, full.stderr) == ("received copy@a\n", "")
    changes = subprocess.run(
        words(source, "snapshot", "send", "vol0@b", "--since", "vol0@a", "--compress", "--limit", "50MiB/s"),
        capture_output=True,
        timeout=120,
        check=True,
    ).stdout
    with backup.session() as session:
        session.settle(7)
        assert session.command(7, READ_10, read=LENGTH).data == b"a" * LENGTH
        refused = session.command(7, WRITE_10, out=b"z" * LENGTH)
        assert (refused.status, refused.sense[2] & 15) == (2, 7)  # DATA PROTECT
        cut = subprocess.run(
            words(backup, "volume", "receive", "copy"),
            input=changes[:-60],
            capture_output=True,
            text=False,
            timeout=120,
        )
        token = cut.stderr.decode().split("--resume ")[1].split("`")[0]
        assert backup.json("volume", "show", "copy")["replica"]["resume"] == token
        assert token in backup.run("volume", "show", "copy").stdout
        assert piped(source, ("--resume", token), backup, ("copy", "--json")).returncode == 0
        assert b"\x28\x00" in told(session)  # the medium may have changed
        assert session.command(7, READ_10, read=LENGTH).data == b"b" * LENGTH
        backup.run("volume", "promote", "copy")
        assert b"\x2a\x01" in told(session)  # mode parameters changed
        assert session.command(7, WRITE_10, out=b"z" * LENGTH).status == 0
    again = piped(source, ("vol0@a",), backup, ("copy",))
    assert again.stdout == "copy@a is vol0@a already\n"
    wrong = subprocess.run(
        words(backup, "--json", "volume", "receive", "vol0"), input=changes, capture_output=True, timeout=120
    )
    assert json.loads(wrong.stderr)["error"] == "wrong-base"


def test_sender_that_asks_gets_an_answer(source: daemon.Daemon, backup: daemon.Daemon) -> None:
    """A stream that begins with HELLO is answered by a line of JSON before it goes on."""
    process = subprocess.Popen(
        words(backup, "volume", "receive", "asked"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    frames.Writer(process.stdin.write).hello()
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    assert (answer["exists"], answer["snapshots"]) == (False, [])
    assert b"it ends before its end" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


def test_wrong_command_lines(source: daemon.Daemon) -> None:
    for arguments, reason in (
        ((), "name either a snapshot"),
        (("vol0@a", "--since", "vol1@a"), "different volumes"),
        (("vol0@a", "--resume", "wolun1-x"), "name either a snapshot"),
        (("vol0@a", "--limit", "fast"), "is not a size"),
    ):
        done = source.run("send", *arguments, check=False)
        assert (done.returncode, reason in done.stderr) == (2, True), done.stderr
    noise = subprocess.run(
        words(source, "volume", "receive", "x"), input=b"noise" * 99, capture_output=True, timeout=60
    )
    assert b"it is no stream of `wolun send`" in noise.stderr
