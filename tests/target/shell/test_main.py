# SPDX-License-Identifier: Apache-2.0
"""`wolun shell` in this process: one command, a script, or a session, and the directory of its preferences."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.control import client
from target.shell import main
from tests import daemon

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"


@pytest.fixture
def asked(shared: daemon.Daemon) -> Iterator[client.Client]:
    opened = client.Client(shared.state)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WOLUN_SHELL_DIR", str(tmp_path / "preferences"))
    return tmp_path / "preferences"


def script(monkeypatch: pytest.MonkeyPatch, *lines: str, terminal: bool = False) -> None:
    """Make `lines` the standard input."""
    text = io.StringIO("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(text, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdin", text)


def test_the_exit_status_is_that_of_the_command(asked: client.Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(asked, "/volumes ls", dry_run=False, keep_going=False) == 0
    assert "o- vol0" in capsys.readouterr().out
    assert main.run(asked, "/volumes/vol1 info", dry_run=False, keep_going=False) == 1
    assert capsys.readouterr().err.startswith("wolun: there is no volume vol1")


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_script_stops_at_the_first_refusal_unless_it_keeps_going(
    asked: client.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep_going: bool
) -> None:
    script(monkeypatch, "/volumes/vol1 info", "/volumes ls")
    assert main.run(asked, "", dry_run=False, keep_going=keep_going) == 1
    assert ("o- vol0" in capsys.readouterr().out) is keep_going


def test_a_script_without_refusals_succeeds(asked: client.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "/volumes ls", "", "# a comment")
    assert main.run(asked, "", dry_run=False, keep_going=False) == 0


def test_a_dry_run_changes_nothing(asked: client.Client) -> None:
    assert main.run(asked, "/volumes create more 1MiB", dry_run=True, keep_going=False) == 0
    assert [volume.name for volume in asked.status().volumes] == ["vol0"]


def test_a_session_needs_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, terminal=True)
    assert main.run(client.Client(tmp_path), "", dry_run=False, keep_going=False) == 1
    assert capsys.readouterr().err.startswith(f"wolun: no daemon serves {tmp_path}")


def test_only_a_session_creates_the_directory_of_preferences(preferences: Path) -> None:
    assert main._preferences(interactive=False) is None
    assert main._preferences(interactive=True) == preferences
    preferences.mkdir()
    assert main._preferences(interactive=False) == preferences


def test_preferences_are_in_the_home_directory_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WOLUN_SHELL_DIR", "")
    assert main._preferences(interactive=True) == tmp_path / ".wolun"
    monkeypatch.delenv("WOLUN_SHELL_DIR")
    assert main._preferences(interactive=True) == tmp_path / ".wolun"
