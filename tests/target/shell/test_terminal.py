# SPDX-License-Identifier: Apache-2.0
"""The shell at a real terminal, against a real daemon with a real initiator logged in.

One of these sessions is the transcript in target/shell/README.md.  After a deliberate change of the output, rewrite it with
`WOLUN_WRITE_README=1 make test ARGS=tests/target/shell/test_terminal.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests import daemon, libiscsi, peers

README = Path(__file__).parents[3] / "target/shell/README.md"
TRANSCRIPT = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
VOLUMES = "  # the one from the quickstart\n  - {name: vol0, lun: 0, size: 1GiB}\n"
ALICE = "iqn.2026-11.org.example:alice"
SECRET = "alice in wonderland"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][A-Z0-9]?|[\r\x07]")
PROMPT = r"/[^\s>]*> "
TPG = f"/iscsi/{daemon.IQN}/tpg1"


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, served: daemon.Daemon, home: Path, **environment: str) -> None:
        self.transcript = ""
        self._process = pexpect.spawn(
            str(daemon.PROGRAM),
            ["--state-dir", str(served.state), "shell"],
            env={**os.environ, "WOLUN_SHELL_DIR": str(home), "TERM": "xterm", **environment},
            dimensions=(50, 100),
            encoding="utf-8",
            timeout=30,
        )
        self.raw = ""
        self._until(PROMPT)

    def _until(self, pattern: str) -> str:
        self._process.expect(pattern)
        text = str(self._process.before) + str(self._process.after)
        self.raw += text
        self.transcript += ESCAPES.sub("", text)
        return ESCAPES.sub("", text)

    def run(self, line: str) -> str:
        """Type a line, and return the output before the next prompt."""
        self._process.sendline(line)
        return self.end().partition("\n")[2]

    def begin(self, line: str, until: str) -> str:
        """Type a line that takes long, and return the output up to a pattern."""
        self._process.sendline(line)
        return self._until(until)

    def end(self) -> str:
        """Return the output before the next prompt."""
        return self._until(PROMPT).rpartition("\n")[0]

    def press(self, key: str) -> None:
        """Press Control and a key."""
        self._process.sendcontrol(key)

    def asked(self, line: str, question: str, answer: str) -> str:
        """Type a line, and answer its question, without an echo."""
        self._process.sendline(line)
        self._until(question)
        self._process.sendline(answer)
        return self._until(PROMPT).rpartition("\n")[0]

    def complete(self, typed: str, expected: str) -> None:
        """Type the beginning of a line and TAB, and wait until readline has completed it to `expected`."""
        self._process.send(typed + "\t")
        self._until(re.escape(expected))
        self._process.sendcontrol("u")
        self._process.sendline("")
        self._until(PROMPT)

    def listed(self, typed: str, *expected: str) -> None:
        """Type the beginning of a line and TAB twice, and wait for all of `expected`."""
        self._process.send(typed + "\t\t")
        for completion in expected:
            self._until(re.escape(completion))
        self._until(PROMPT + re.escape(typed))  # the line as it was, below the list
        self._process.sendcontrol("u")
        self._process.sendline("")
        self._until(PROMPT)

    def leave(self) -> int:
        """Type `exit` and return the exit status."""
        self._process.sendline("exit")
        self._process.expect(pexpect.EOF)
        self._process.close()
        return int(self._process.exitstatus or 0)


def portable(text: str, served: daemon.Daemon) -> str:
    """Return the transcript with the paths and names of the quickstart."""
    text = text.replace(served.portal, "127.0.0.1:3260").replace(daemon.IQN, "iqn.2026-11.io.wolun:quickstart")
    text = text.replace("...est/tpg1", "...art/tpg1")  # the prompt, cut short
    text = text.replace(str(served.directory), "/etc/wolun").replace("/etc/wolun/state", "/var/lib/wolun")
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def normal(text: str) -> str:
    """Return the transcript without the parts that differ from run to run."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( [A-Z]{2,5}| [+-]\d\d)?|\d{8}T\d{6}\.\d{6}Z", "TIME", text)
    text = re.sub(r"[\d.]+ (us|ms|s)\b", "SECONDS", text)
    text = re.sub(r"[\d.]+ [KMGT]?i?B (free|used|read|written)\b", r"SIZE \1", text)
    return re.sub(r" \.{2,} | +(?=\[)", " .. ", text)  # as long as the line leaves room


def test_the_session_in_the_readme_is_real(served: daemon.Daemon, tmp_path: Path) -> None:
    shell = Terminal(served, tmp_path / "home", NO_COLOR="1")
    assert "vol0" in shell.run("ls /volumes")
    assert "created volume db" in shell.run("/volumes create db 10GiB")

    shell.run(f"cd {TPG}/acls")
    question = r"Go on\? \[y/N\] "
    assert "nothing was changed" in shell.asked(f"create {ALICE}", question, "no")
    assert "may log in" in shell.asked(f"create {ALICE}", question, "y")
    shell.run(f"cd {ALICE}")
    assert "sees db as LUN 0" in shell.run("create mapped_lun=0 unit=db")
    assert "authenticates as alice" in shell.asked("set auth userid=alice", "secret of alice: ", SECRET)
    with pytest.raises(libiscsi.LibiscsiError):
        served.session(initiator=ALICE)
    shell.run("cd /")
    with served.session(initiator=ALICE, chap=("alice", SECRET)) as session:
        session.settle(0)
        assert session.command(0, bytes.fromhex("2a000000000000000100"), out=b"alice" + bytes(507)).status == 0
        assert "LUN" in shell.run("/volumes/db/snapshots create nightly")
        assert session.command(0, bytes.fromhex("2a000000000000000100"), out=b"later" + bytes(507)).status == 0
        tree = shell.run("ls")
        assert f"o- {ALICE}" in tree
        assert "from 127.0.0.1" in tree
        refused = shell.run("/volumes delete db")
        assert f"volume db is in use by {ALICE} from 127.0.0.1" in refused
        refused = shell.run(f"{TPG}/acls delete {ALICE}")
        assert f"is in use by {ALICE} from 127.0.0.1" in refused
    assert "+  - name: db" in shell.run("diff")
    assert "saved to" in shell.run("saveconfig")
    assert "matches the running configuration" in shell.run("diff")
    assert shell.leave() == 0

    assert "# the one from the quickstart" in (served.directory / "wolun.yaml").read_text()
    for file in (tmp_path / "home").iterdir():
        assert SECRET.encode() not in file.read_bytes()
    assert SECRET not in shell.transcript
    compare_with_readme(portable(f"$ wolun shell\n{shell.transcript}exit\n", served))


def compare_with_readme(transcript: str) -> None:
    """Check that the README shows this transcript, or write it there."""
    text = README.read_text()
    if os.environ.get("WOLUN_WRITE_README"):
        README.write_text(TRANSCRIPT.sub(lambda _: transcript, text, count=1))
        return
    found = TRANSCRIPT.search(text)
    assert found is not None
    assert normal(transcript) == normal(found[0])


def test_tab_completes_real_names(served: daemon.Daemon, tmp_path: Path) -> None:
    served.run("snapshot", "create", "vol0", "monday")
    served.run("snapshot", "create", "vol0", "tuesday")
    shell = Terminal(served, tmp_path / "home")
    with served.session(initiator=ALICE):
        shell.complete("/vol", "/volumes/")
        shell.complete("/volumes/v", "/volumes/vol0/")
        shell.complete("/volumes/ cre", "/volumes/ create ")
        shell.complete("/volumes delete v", "/volumes delete vol0 ")
        shell.complete("/volumes create x 1GiB durability=pr", "durability=process-crash")
        shell.complete("/volumes/vol0 set attribute on_error=d", "on_error=drop-snapshot ")
        shell.complete(f"{TPG}/luns delete lun=", "delete lun=0 ")
        shell.complete(f"{TPG} set access any", "set access anybody=")
        shell.complete(f"{TPG} set access fo", "set access force=")
        shell.complete("/volumes/vol0 set attribute lun=1 force=t", "force=true ")
        shell.listed("/volumes/vol0/snapshots delete ", "monday", "tuesday")
        shell.complete("/volumes/vol0/snapshots show t", "tuesday ")
        shell.complete("/volumes/vol0/snapshots/m", "/volumes/vol0/snapshots/monday ")
        shell.complete(f"{TPG}/acls create iqn", f"create {ALICE} ")  # the initiator that is logged in
        shell.complete("/alerts explain low", "low-space ")
        shell.complete("restoreconfig confirm", "restoreconfig confirm")  # without completions, the line stays as it is
        shell.complete("help save", "help saveconfig")
        shell.complete("/iscsi/", f"/iscsi/{daemon.IQN}/")
    assert shell.leave() == 0


def test_cd_follows_paths_and_remembered_bookmarks(served: daemon.Daemon, tmp_path: Path) -> None:
    shell = Terminal(served, tmp_path / "home")
    shell.run("cd /volumes/vol0/snapshots")
    assert shell.run("pwd").strip() == "/volumes/vol0/snapshots"
    shell.run("bookmarks add snaps")
    shell.run("cd ..")
    assert shell.run("pwd").strip() == "/volumes/vol0"
    shell.run("cd @snaps")
    assert shell.run("pwd").strip() == "/volumes/vol0/snapshots"
    shell.run("create here")
    assert "here" in shell.run("ls")
    assert shell.leave() == 0
    again = Terminal(served, tmp_path / "home")
    again.run("cd @snaps")
    assert again.run("pwd").strip() == "/volumes/vol0/snapshots"
    assert again.leave() == 0


@contextlib.contextmanager
def slow_writes(served: daemon.Daemon) -> Iterator[None]:
    """Make each write of the daemon take a second, so that an export of 64 MiB takes longer than any test."""
    assert served.process is not None
    slowed = subprocess.Popen(
        [
            *(peers.require("strace"), "--attach", str(served.process.pid), "--follow-forks", "--output=/dev/null"),
            *("--trace=pwrite64", "--inject=pwrite64:delay_enter=1s"),
        ],
        stderr=subprocess.PIPE,
    )
    assert slowed.stderr is not None
    try:
        assert b"attached" in slowed.stderr.readline()
        yield
    finally:
        slowed.terminate()
        slowed.communicate()


def test_a_job_is_watched_and_cancelled(served: daemon.Daemon, tmp_path: Path) -> None:
    with (served.state / "volumes" / "vol0" / "primary.img").open("r+b") as primary:
        primary.write(os.urandom(64 << 20))
    served.run("snapshot", "create", "vol0", "monday")
    exports = tmp_path / "exports"
    exports.mkdir()
    exporting, watching = (Terminal(served, tmp_path / name, NO_COLOR="1") for name in ("one", "other"))
    with slow_writes(served):
        export = f"/volumes/vol0/snapshots export monday {exports}/monday.img"
        exporting.begin(export, "exporting vol0@monday")
        seen: set[str] = set()
        while len(seen) < 3:  # the job makes progress
            listed = watching.run("ls /jobs")
            assert "[1 running]" in listed
            found = re.search(r"o- 1 \.+ \[export vol0@monday, (<?[\d.]+) ?%\]", listed)
            assert found is not None, listed
            seen.add(found[1])
        assert "job 1 (export vol0@monday)" in watching.run("/volumes delete vol0")
        watching.complete("/jobs cancel job=", "cancel job=1 ")
        assert "job 1: cancelled" in watching.run("/jobs cancel 1")
        assert "exporting vol0@monday was cancelled" in exporting.end()
        assert "[0 running]" in watching.run("ls /jobs")
        assert not list(exports.iterdir())

        exporting.begin(export, "exporting vol0@monday")  # and by the terminal that started it
        assert "[1 running]" in watching.run("ls /jobs")
        exporting.press("c")
        assert "exporting vol0@monday was cancelled" in exporting.end()
        assert "[0 running]" in watching.run("ls /jobs")
        assert not list(exports.iterdir())
    assert f"vol0@monday is in {exports}/monday.img" in exporting.run(export)
    assert sorted(file.name for file in exports.iterdir()) == ["monday.img", "monday.img.wolun"]
    assert exporting.leave() == watching.leave() == 0


def test_a_refused_command_does_not_end_the_shell(served: daemon.Daemon, tmp_path: Path) -> None:
    shell = Terminal(served, tmp_path / "home")
    for line in (
        "nonsense",
        "/volumes/none info",
        "cd /nowhere",
        "(((",
        "/volumes create",
        "/volumes create a b c d e f g h",
    ):
        assert "wolun: " in shell.run(line), line
    time.sleep(6)  # longer than the daemon keeps an idle connection
    assert "vol0" in shell.run("ls /volumes")
    served.stop()
    assert "no daemon serves" in shell.run("ls")
    assert shell.leave() == 0


def test_only_terminals_that_allow_it_get_colours(served: daemon.Daemon, tmp_path: Path) -> None:
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        shell = Terminal(served, tmp_path / f"home{len(environment)}{coloured}", **environment)
        shell.run("ls")
        assert shell.leave() == 0
        assert ("\x1b[3" in shell.raw or "\x1b[1m" in shell.raw) is coloured
    assert "\x1b" not in served.run("shell", "ls").stdout
