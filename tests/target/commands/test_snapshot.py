# SPDX-License-Identifier: Apache-2.0
"""`wolun snapshot` against a real daemon: its output in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import daemon
from tests.target.commands import commanding

pytestmark = pytest.mark.usefixtures("no_snapshots_left")


def test_create_prints_the_new_luns(served: daemon.Daemon) -> None:
    before = served.json("snapshot", "create", "vol0", "first")
    said = served.run("snapshot", "create", "vol0", "before-upgrade").stdout
    assert "took vol0@before-upgrade" in said
    luns = [int(number) for number in re.findall(r"LUN (\d+):", said)]
    shown = served.json("snapshot", "show", "vol0@before-upgrade")
    assert luns == [shown["view_lun"]] != [before["view_lun"]]
    assert served.url(luns[0]) in said
    with served.session() as session:
        for lun in luns:
            session.settle(lun)
            assert session.command(lun, bytes(6)).status == 0


def test_list_shows_space_state_and_luns(served: daemon.Daemon) -> None:
    assert served.run("snapshot", "list").stdout == "no snapshots\n"
    commanding.fill(served, 0, 9, 0, 4 * commanding.MIB)  # old data that takes space
    served.run("snapshot", "create", "vol0", "old")
    commanding.fill(served, 0, 1, 0, 4 * commanding.MIB)
    served.run("snapshot", "create", "vol0", "new")
    served.run("snapshot", "create", "big", "other")
    head, *rows = served.run("snapshot", "list").stdout.splitlines()
    assert re.split(r"\s{2,}", head) == ["NAME", "TAKEN", "USED", "PRESERVED", "STATE", "VIEW LUN", "WRITE-ONCE LUN"]
    cells = [re.split(r"\s{2,}", row) for row in rows]
    assert [row[0] for row in cells] == ["vol0@old", "vol0@new", "big@other"]
    assert [row[3] for row in cells] == ["25.0 %", "0 %", "0 %"]
    assert {row[4] for row in cells} == {"active"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+", row[1]) for row in cells)
    assert len({row[5] for row in cells}) == 3
    assert {row[6] for row in cells} == {"-"}
    assert [snapshot["name"] for snapshot in served.json("snapshot", "list", "big")] == ["other"]
    shown = served.json("snapshot", "show", "vol0@old")
    assert shown["preserved_bytes"] == 4 * commanding.MIB
    assert shown["used_bytes"] >= 4 * commanding.MIB


def test_show_map_draws_the_changes(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    commanding.fill(served, 0, 2, 4 * commanding.MIB, 8 * commanding.MIB)
    served.run("snapshot", "create", "vol0", "t")
    commanding.fill(served, 0, 3, 12 * commanding.MIB, 13 * commanding.MIB)
    changes = json.loads(served.run("snapshot", "show", "vol0@s", "--map", "--json").stdout)
    cells = changes["cells"]
    assert changes["changed_bytes"] == 5 * commanding.MIB
    assert sum(cells) / len(cells) == pytest.approx(5 / 16)
    assert cells[len(cells) // 4 : len(cells) // 2] == [1.0] * (len(cells) // 4)
    assert not any(cells[: len(cells) // 4])
    picture = served.run("snapshot", "show", "vol0@s", "--map").stdout
    assert "5 MiB of 16 MiB (31.2 %) changed since" in picture.splitlines()[0]
    drawn = "".join(re.findall(r"\|(.*)\|", picture))
    assert len(drawn) == len(cells)
    assert [mark == "█" for mark in drawn] == [cell == 1 for cell in cells]
    assert "\x1b" not in picture
    assert max(map(len, picture.splitlines())) <= 80


def test_the_map_works_without_utf_8(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    commanding.fill(served, 0, 4, 0, commanding.MIB)
    environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "60"}
    done = commanding.wolun("--state-dir", served.state, "snapshot", "show", "vol0@s", "--map", environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stdout.count("#") + done.stdout.count("@") > 4
    assert max(len(line) for line in done.stdout.splitlines() if "|" in line) == 60


def test_export_writes_the_snapshot_after_later_writes(served: daemon.Daemon, tmp_path: Path) -> None:
    commanding.fill(served, 0, 5, 0, 16 * commanding.MIB)
    served.run("snapshot", "create", "vol0", "s")
    commanding.fill(served, 0, 6, 3 * commanding.MIB, 9 * commanding.MIB)
    done = commanding.wolun("--state-dir", served.state, "snapshot", "export", "vol0@s", "out.img", directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "vol0@s is in out.img\n", "")
    assert (tmp_path / "out.img").read_bytes() == b"\5" * 16 * commanding.MIB
    again = served.run("snapshot", "export", "vol0@s", str(tmp_path / "out.img"), check=False)
    assert again.returncode == 1
    assert again.stderr == (
        f"wolun: {tmp_path}/out.img exists already\nChoose another name, or overwrite it with --force.\n"
    )
    job = json.loads(served.run("snapshot", "export", "vol0@s", str(tmp_path / "out.img"), "--force", "--json").stdout)
    assert (job["state"], job["done"], job["total"]) == ("done", 16 * commanding.MIB, 16 * commanding.MIB)


def test_an_exported_image_is_sparse(served: daemon.Daemon, tmp_path: Path) -> None:
    served.run("snapshot", "create", "big", "s")
    commanding.fill(served, 1, 7, 1 << 30, (1 << 30) + commanding.MIB)
    served.run("snapshot", "export", "big@s", str(tmp_path / "out.img"))
    out = (tmp_path / "out.img").stat()
    assert out.st_size == 4 << 30
    assert out.st_blocks * 512 < commanding.MIB


def test_delete_removes_the_luns(served: daemon.Daemon) -> None:
    taken = served.json("snapshot", "create", "vol0", "s")
    assert served.run("snapshot", "delete", "vol0@s").stdout == "vol0@s is deleted\n"
    assert served.json("snapshot", "list") == []
    with served.session() as session:
        answer = session.command(taken["view_lun"], bytes(6))
        assert (answer.status, answer.asc) == (2, (0x25, 0))
    assert served.json("snapshot", "create", "vol0", "t")["view_lun"] != taken["view_lun"]  # it rests


def test_an_existing_name_is_refused(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    done = served.run("snapshot", "create", "vol0", "s", check=False)
    assert done.returncode == 1
    assert "already" in done.stderr.splitlines()[0]
    assert len(served.json("snapshot", "list")) == 1


def test_on_a_terminal_the_map_uses_its_width_and_colours(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    commanding.fill(served, 0, 8, 0, commanding.MIB)
    terminal = commanding.Terminal("--state-dir", served.state, "snapshot", "show", "vol0@s", "--map")
    assert terminal.finish() == 0
    assert "\x1b[33m█" in terminal.output
    plain = re.sub(r"\x1b\[\d+m", "", terminal.output)
    assert max(len(line) for line in plain.splitlines() if "|" in line) == 100


def test_ctrl_c_cancels_an_export_and_removes_the_file(served: daemon.Daemon, tmp_path: Path) -> None:
    # The export is large enough to be unfinished when the signal comes.
    with (served.state / "volumes" / "big" / "primary.img").open("r+b") as primary:
        data = os.urandom(commanding.MIB)
        for _ in range(1024):
            primary.write(data)
    served.run("snapshot", "create", "big", "s")
    terminal = commanding.Terminal("--state-dir", served.state, "snapshot", "export", "big@s", tmp_path / "out.img")
    terminal.read_until("exporting big@s")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130
    assert "exporting big@s was cancelled" in terminal.output
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 10
    while served.json("status")["jobs"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.json("status")["jobs"] == []


def test_labels_are_set_shown_and_removed(served: daemon.Daemon) -> None:
    taken = served.json("snapshot", "create", "vol0", "a", "--label", "purpose=backup", "--label", "n=1=2")
    assert taken["labels"] == {"purpose": "backup", "n": "1=2"}
    served.run("snapshot", "create", "vol0", "b")
    head, first, second = served.run("snapshot", "list", "vol0").stdout.splitlines()
    assert head.split()[-1] == "LABELS"
    assert first.split()[-1] == "n=1=2,purpose=backup"
    assert second.split()[-1] == "-"
    assert served.run("snapshot", "label", "vol0@a", "n=", "owner=ada").stdout == "owner=ada,purpose=backup\n"
    assert served.json("snapshot", "show", "vol0@a")["labels"] == {"purpose": "backup", "owner": "ada"}
    assert "owner=ada,purpose=backup" in served.run("snapshot", "show", "vol0@a").stdout
    refused = served.run("snapshot", "label", "vol0@a", "a b=c", check=False)
    assert (refused.returncode, "no key for a label" in refused.stderr) == (1, True)
    assert served.run("snapshot", "label", "vol0@a", "owner", check=False).returncode == 2


def test_name_that_is_not_utf_8_is_refused_like_any_other(served: daemon.Daemon) -> None:
    for words in (
        ("snapshot", "show", b"vol0@\xff"),
        ("snapshot", "list", b"\xff"),
        ("snapshot", "create", "vol0", b"\xff"),
        ("snapshot", "create", b"\xff", "a"),
        ("reservations", "clear", "vol0", "--initiator", b"\xff"),
    ):
        done = subprocess.run([daemon.PROGRAM, "--state-dir", served.state, *words], capture_output=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr.startswith(b"wolun: ")
        assert b"unexpected" not in done.stderr
