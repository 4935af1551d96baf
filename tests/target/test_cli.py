# SPDX-License-Identifier: Apache-2.0
"""The commands, against a real daemon: what they print, in a pipe and on a terminal, and how they refuse."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import target
from target import messages, show
from tests import daemon, libiscsi

MIB = 1 << 20
VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n  - {name: big, lun: 1, size: 4GiB, durability: process-crash}\n"

# What a command must not import, lest it be slow: the daemon's side.
HEAVY = {
    "asyncio",
    "fastapi",
    "prometheus_client",
    "pydantic",
    "rich",
    "uvicorn",
    "yaml",
    "lun_backends",
    "target.daemon",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), VOLUMES) as running:
        yield running


@pytest.fixture(autouse=True)
def no_snapshots_left(served: daemon.Daemon) -> Iterator[None]:
    yield
    for each in served.json("snapshot", "list"):
        served.run("snapshot", "delete", f"{each['volume']}@{each['name']}")


def wolun(
    *words: str | Path, environment: Mapping[str, str] | None = None, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [daemon.PROGRAM, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
        cwd=directory,
    )


def fill(served: daemon.Daemon, lun: int, byte: int, start: int, end: int) -> None:
    """Write one byte's value everywhere from `start` to `end`."""
    with served.session() as session:
        session.settle(lun)
        for offset in range(start, end, 64 << 10):
            cdb = b"\x2a\x00" + (offset // 512).to_bytes(4, "big") + b"\x00" + (128).to_bytes(2, "big") + b"\x00"
            assert session.command(lun, cdb, out=bytes([byte]) * (64 << 10)).status == 0


def test_create_prints_the_luns_that_appeared_and_they_are_there(served: daemon.Daemon) -> None:
    before = served.json("snapshot", "create", "vol0", "first")
    said = served.run("snapshot", "create", "vol0", "before-upgrade").stdout
    assert "took vol0@before-upgrade" in said
    luns = [int(number) for number in re.findall(r"LUN (\d+):", said)]
    shown = served.json("snapshot", "show", "vol0@before-upgrade")
    assert luns == [shown["view_lun"], shown["write_once_lun"]]
    assert not {before["view_lun"], before["write_once_lun"]} & set(luns)
    assert served.url(luns[0]) in said
    with served.session() as session:
        for lun in luns:
            session.settle(lun)
            assert session.command(lun, bytes(6)).status == 0


def test_json_is_taken_before_and_after_the_verb(served: daemon.Daemon) -> None:
    taken = json.loads(served.run("snapshot", "create", "vol0", "a", "--json").stdout)
    assert (taken["volume"], taken["name"]) == ("vol0", "a")
    assert isinstance(taken["view_lun"], int)
    assert isinstance(taken["write_once_lun"], int)
    assert 0 < taken["writes_held_seconds"] < 60
    for words in (("--json", "status"), ("status", "--json"), ("snapshot", "list", "--json"), ("version", "--json")):
        json.loads(served.run(*words).stdout)


def test_list_names_every_snapshot_with_its_space_state_and_luns(served: daemon.Daemon) -> None:
    assert served.run("snapshot", "list").stdout == "no snapshots\n"
    served.run("snapshot", "create", "vol0", "old")
    fill(served, 0, 1, 0, 4 * MIB)
    served.run("snapshot", "create", "vol0", "new")
    served.run("snapshot", "create", "big", "other")
    head, *rows = served.run("snapshot", "list").stdout.splitlines()
    assert re.split(r"\s{2,}", head) == ["NAME", "TAKEN", "USED", "PRESERVED", "STATE", "VIEW LUN", "WRITE-ONCE LUN"]
    cells = [re.split(r"\s{2,}", row) for row in rows]
    assert [row[0] for row in cells] == ["vol0@old", "vol0@new", "big@other"]
    assert [row[3] for row in cells] == ["25.0 %", "0 %", "0 %"]
    assert {row[4] for row in cells} == {"active"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[1]) for row in cells)
    assert len({number for row in cells for number in row[5:7]}) == 6
    assert [each["name"] for each in served.json("snapshot", "list", "big")] == ["other"]
    shown = served.json("snapshot", "show", "vol0@old")
    assert shown["preserved_bytes"] == 4 * MIB
    assert shown["used_bytes"] >= 4 * MIB


def test_show_map_pictures_what_has_changed(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    fill(served, 0, 2, 4 * MIB, 8 * MIB)
    served.run("snapshot", "create", "vol0", "t")
    fill(served, 0, 3, 12 * MIB, 13 * MIB)
    changes = json.loads(served.run("snapshot", "show", "vol0@s", "--map", "--json").stdout)
    cells = changes["cells"]
    assert changes["changed_bytes"] == 5 * MIB
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


def test_the_map_does_without_utf_8(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    fill(served, 0, 4, 0, MIB)
    environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "60"}
    done = wolun("--state-dir", served.state, "snapshot", "show", "vol0@s", "--map", environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stdout.count("#") + done.stdout.count("@") > 4
    assert max(len(line) for line in done.stdout.splitlines() if "|" in line) == 60


def test_export_writes_the_moment_while_writes_go_on(served: daemon.Daemon, tmp_path: Path) -> None:
    fill(served, 0, 5, 0, 16 * MIB)
    served.run("snapshot", "create", "vol0", "s")
    fill(served, 0, 6, 3 * MIB, 9 * MIB)
    done = wolun("--state-dir", served.state, "snapshot", "export", "vol0@s", "out.img", directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "vol0@s is in out.img\n", "")
    assert (tmp_path / "out.img").read_bytes() == b"\5" * 16 * MIB
    again = served.run("snapshot", "export", "vol0@s", str(tmp_path / "out.img"), check=False)
    assert again.returncode == 1
    assert again.stderr == (
        f"wolun: {tmp_path}/out.img exists already\nChoose another name, or overwrite it with --force.\n"
    )
    job = json.loads(served.run("snapshot", "export", "vol0@s", str(tmp_path / "out.img"), "--force", "--json").stdout)
    assert (job["state"], job["done"], job["total"]) == ("done", 16 * MIB, 16 * MIB)


def test_an_export_of_little_data_takes_little_space(served: daemon.Daemon, tmp_path: Path) -> None:
    served.run("snapshot", "create", "big", "s")
    fill(served, 1, 7, 1 << 30, (1 << 30) + MIB)
    served.run("snapshot", "export", "big@s", str(tmp_path / "out.img"))
    out = (tmp_path / "out.img").stat()
    assert out.st_size == 4 << 30
    assert out.st_blocks * 512 < MIB


def test_delete_takes_the_luns_away(served: daemon.Daemon) -> None:
    taken = served.json("snapshot", "create", "vol0", "s")
    assert served.run("snapshot", "delete", "vol0@s").stdout == "vol0@s is deleted\n"
    assert served.json("snapshot", "list") == []
    with served.session() as session:
        answer = session.command(taken["view_lun"], bytes(6))
        assert (answer.status, answer.asc) == (2, (0x25, 0))
    assert served.json("snapshot", "create", "vol0", "t")["view_lun"] == taken["view_lun"]


def test_status_shows_volumes_sessions_and_throughput(served: daemon.Daemon) -> None:
    with libiscsi.Session(served.portal, daemon.IQN, initiator="iqn.2026-11.io.wolun:somebody") as session:
        session.settle(0)
        for _ in range(50):
            session.command(0, b"\x28\x00\x00\x00\x00\x00\x00\x00\x80\x00", read=64 << 10)
        status = served.json("status")
        text = served.run("status").stdout
    assert status["volumes"][0]["read_bytes_per_second"] > 0
    assert [each["initiator"] for each in status["sessions"]] == ["iqn.2026-11.io.wolun:somebody"]
    assert status["sessions"][0]["bytes_read"] >= 50 * 64 << 10
    assert status["trouble"] == []
    for expected in ("vol0", "big", "online", "16 MiB", "iqn.2026-11.io.wolun:somebody", "no trouble"):
        assert expected in text
    assert "no initiator is logged in" in served.run("status").stdout


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        ("snapshot create vol1 s", "there is no volume vol1", "Did you mean vol0?"),
        ("snapshot create vol0 a/b", "vol0@a/b was not taken: 'a/b' is no name for a snapshot", "A name is 1 to 64 "),
        ("snapshot show vol0@s", "vol0 has no snapshot s", "Take one with `wolun snapshot create vol0 s`."),
        ("snapshot delete vol0@s", "vol0 has no snapshot s", "Take one with `wolun snapshot create vol0 s`."),
        ("snapshot export vol0@s x", "vol0 has no snapshot s", "Take one with `wolun snapshot create vol0 s`."),
        ("snapshot list nothing", "there is no volume nothing", "The volumes are: vol0, big."),
    ],
)
def test_a_refusal_is_a_sentence_and_a_remedy(served: daemon.Daemon, words: str, message: str, remedy: str) -> None:
    done = served.run(*words.split(), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first == f"wolun: {message}"
    assert second.startswith(remedy)
    refusal = json.loads(served.run("--json", *words.split(), check=False).stderr)
    assert refusal["message"] == message
    assert set(refusal) == {"error", "message", "remedy"}


def test_a_name_that_is_taken_is_refused(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    done = served.run("snapshot", "create", "vol0", "s", check=False)
    assert done.returncode == 1
    assert "already" in done.stderr.splitlines()[0]
    assert len(served.json("snapshot", "list")) == 1


@pytest.mark.parametrize(
    "words", ["snapshot show vol0", "snapshot show vol0@", "snapshot show @s", "nonsense", "snapshot"]
)
def test_a_wrong_command_line_is_a_usage_error(served: daemon.Daemon, words: str) -> None:
    assert served.run(*words.split(), check=False).returncode == 2


def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path) -> None:
    for state in (tmp_path, tmp_path / "missing"):
        done = wolun("snapshot", "list", environment={"WOLUN_STATE_DIR": str(state)})
        assert done.returncode == 1
        assert done.stderr.startswith(f"wolun: no daemon serves {state}\nStart one with `wolun serve`")


def test_the_state_directory_comes_from_the_environment_too(served: daemon.Daemon) -> None:
    done = wolun("status", "--json", environment={"WOLUN_STATE_DIR": str(served.state)})
    assert json.loads(done.stdout)["state_dir"] == str(served.state)


@pytest.mark.parametrize("verb", ["status", "snapshot list", "version", "snapshot show vol0@s --map"])
def test_commands_import_nothing_heavy(served: daemon.Daemon, verb: str) -> None:
    served.run("snapshot", "create", "vol0", "s")
    code = (
        "import sys\nfrom target import cli\n"
        f"try: cli.main(['--state-dir', {str(served.state)!r}, *{verb.split()!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    imported = set(done.stderr.split())
    assert ("target.control.client" in imported) == (verb != "version")  # which has nobody to talk to
    assert not imported & HEAVY


def test_version_is_that_of_the_package() -> None:
    setup = (Path(__file__).resolve().parents[2] / "setup.cfg").read_text()
    assert f"\nversion = {target.VERSION}\n" in setup
    assert wolun("version").stdout == f"wolun {target.VERSION}\n"


def test_config_check_and_schema(tmp_path: Path) -> None:
    good = Path(__file__).resolve().parents[2] / "config" / "quickstart.yaml"
    assert wolun("config", "check", good).stdout == f"{good}: good\n"
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("block_size", "blok_size"))
    done = wolun("config", "check", bad)
    assert done.returncode == 1
    assert re.match(
        rf"{re.escape(str(bad))}:\d+: volumes\[0\]\.blok_size: unknown key; did you mean block_size\?", done.stderr
    )
    (problem,) = json.loads(wolun("config", "check", bad, "--json").stdout)["problems"]
    assert problem["path"] == "volumes[0].blok_size"
    assert wolun("config", "check", tmp_path / "none").returncode == 1
    assert json.loads(wolun("config", "schema").stdout) == json.loads(good.with_name("schema.json").read_text())


class Terminal:
    """A command on a terminal of its own, 100 columns wide."""

    def __init__(self, *words: str | Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8"}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [daemon.PROGRAM, *words], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.output = ""

    def read_until(self, pattern: str) -> None:
        """Read until the output fits `pattern`, or ends."""
        while not re.search(pattern, self.output):
            try:
                self.output += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                return

    def finish(self) -> int:
        """Read what is left; the exit status."""
        self.read_until(r"(?!)")
        os.close(self.master)
        return self.process.wait(30)


def test_on_a_terminal_the_map_has_its_width_and_colours(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    fill(served, 0, 8, 0, MIB)
    terminal = Terminal("--state-dir", served.state, "snapshot", "show", "vol0@s", "--map")
    assert terminal.finish() == 0
    assert "\x1b[33m█" in terminal.output
    plain = re.sub(r"\x1b\[\d+m", "", terminal.output)
    assert max(len(line) for line in plain.splitlines() if "|" in line) == 100


def test_ctrl_c_cancels_an_export_and_leaves_no_file(served: daemon.Daemon, tmp_path: Path) -> None:
    # So much that it is still being written when the signal comes.
    with (served.state / "volumes" / "big" / "primary.img").open("r+b") as primary:
        data = os.urandom(MIB)
        for _ in range(1024):
            primary.write(data)
    served.run("snapshot", "create", "big", "s")
    terminal = Terminal("--state-dir", served.state, "snapshot", "export", "big@s", tmp_path / "out.img")
    terminal.read_until("exporting big@s")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130
    assert "exporting big@s was cancelled" in terminal.output
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 10
    while served.json("status")["jobs"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.json("status")["jobs"] == []


def test_full_and_empty_cells_of_the_map_mean_exactly_that() -> None:
    snapshot = messages.Snapshot("v", "s", "", "2026-11-22T00:00:00.000Z", "active", "", 1 << 30, 0, 0, 0.0, 1, 2)
    picture = show.change_map(messages.Changes(snapshot, 65536, 1, (0.0, 0.0001, 0.5, 0.9999, 1.0)))
    (drawn,) = re.findall(r"\|(.*)\|", picture)
    assert (drawn[0], drawn[4]) == (" ", show.map_marks()[-1])
    assert list(drawn) == sorted(set(drawn), key=show.map_marks().index)
