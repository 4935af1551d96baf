# SPDX-License-Identifier: Apache-2.0
"""`wolun volume`: create, list, show and delete volumes; and the questions that commands ask on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pexpect
import pytest

from tests import daemon


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("life"), "  - {name: vol0, lun: 0, size: 1MiB}\n") as running:
        yield running


def refused(served: daemon.Daemon, *words: str) -> str:
    done = served.run(*words, check=False)
    assert done.returncode in (1, 2), done.stdout
    return done.stderr


def test_volume_is_created_shown_and_deleted(served: daemon.Daemon) -> None:
    said = served.run("volume", "create", "new", "2MiB", "--chunk-size", "4KiB").stdout
    assert said.startswith("new is created, as LUN 1; ")
    assert [volume["name"] for volume in served.json("volume", "list")] == ["vol0", "new"]
    assert "chunk size    4KiB" in served.run("volume", "show", "new").stdout
    served.run("snapshot", "create", "new", "s")
    assert served.json("volume", "delete", "new") == {"name": "new", "data_removed": False}
    said = refused(served, "volume", "create", "new")
    assert "2 MiB, 1 snapshot" in said
    assert "Serve that data with --adopt" in said
    served.run("volume", "create", "new", "--adopt")
    assert [snapshot["name"] for snapshot in served.json("snapshot", "list", "new")] == ["s"]
    assert served.run("volume", "delete", "new").stdout == "new is deleted; its data is kept\n"
    served.run("volume", "create", "new", "1MiB", "--new")
    assert served.json("snapshot", "list", "new") == []
    assert served.run("volume", "delete", "new", "--data").stdout == "new is deleted with its data\n"
    assert "choose one of them" in refused(served, "volume", "create", "new", "1MiB", "--adopt", "--new")


def test_terminal_is_asked_before_data_is_replaced(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol0", "s")
    words = ["--state-dir", str(served.state), "snapshot", "restore", "vol0@s"]
    for answer, status in (("n", 1), ("y", 0)):
        terminal = pexpect.spawn(str(daemon.PROGRAM), words, encoding="utf-8", timeout=120)
        terminal.expect_exact("[y/N]")
        terminal.sendline(answer)
        terminal.expect("nothing was changed" if status else "vol0 is rolled back to vol0@s")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == status
    terminal = pexpect.spawn(str(daemon.PROGRAM), [*words, "--yes"], encoding="utf-8", timeout=120)
    terminal.expect("vol0 is rolled back to vol0@s")


def test_doctor_knows_the_daemon_beside_it(served: daemon.Daemon) -> None:
    own = served.directory / "own.yaml"
    own.write_text(f"target: {daemon.IQN}\nportal: {{listen: {served.portal}}}\nvolumes: []\n")
    done = served.run("doctor", "--config", str(own))
    assert f"listening on {served.portal}: the daemon of this state directory does that" in done.stdout
