# SPDX-License-Identifier: Apache-2.0
"""The behaviour that all commands share: JSON, refusals, and the connection to the daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import daemon
from tests.target.commands import commanding

pytestmark = pytest.mark.usefixtures("no_snapshots_left")


def test_json_is_accepted_before_and_after_the_verb(served: daemon.Daemon) -> None:
    taken = json.loads(served.run("snapshot", "create", "vol0", "a", "--json").stdout)
    assert (taken["volume"], taken["name"]) == ("vol0", "a")
    assert isinstance(taken["view_lun"], int)
    assert taken["write_once_lun"] is None
    assert 0 < taken["writes_held_seconds"] < 60
    for words in (("--json", "status"), ("status", "--json"), ("snapshot", "list", "--json"), ("version", "--json")):
        json.loads(served.run(*words).stdout)


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        ("snapshot create vol1 s", "there is no volume vol1", "Did you mean vol0?"),
        ("snapshot create vol0 a/b", "vol0@a/b was not taken: 'a/b' is no name for a snapshot", "A name is 1 to 64 "),
        ("snapshot show vol0@s", "vol0 has no snapshot s", "Take one with `wolun snapshot create vol0 s`."),
        ("snapshot delete vol0@s", "vol0 has no snapshot s", "Take one with `wolun snapshot create vol0 s`."),
        ("snapshot export vol0@s x.img", "vol0 has no snapshot s", "Take one with `wolun snapshot create vol0 s`."),
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


def test_without_a_daemon_the_remedy_is_to_start_one(tmp_path: Path) -> None:
    for state in (tmp_path, tmp_path / "missing"):
        done = commanding.wolun("snapshot", "list", environment={"WOLUN_STATE_DIR": str(state)})
        assert done.returncode == 1
        assert done.stderr.startswith(f"wolun: no daemon serves {state}\nStart one with `wolun serve`")


def test_the_state_directory_comes_from_the_environment_too(served: daemon.Daemon) -> None:
    done = commanding.wolun("status", "--json", environment={"WOLUN_STATE_DIR": str(served.state)})
    assert json.loads(done.stdout)["state_dir"] == str(served.state)
