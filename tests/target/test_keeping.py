# SPDX-License-Identifier: Apache-2.0
"""Holds, dates of expiry, new names, and deletion by pattern, through the commands and a daemon that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon
from tests.target.control.asking import ask
from tests.target.shell import shelling

VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB, snapshots: [installed]}\n  - {name: vol1, lun: 1, size: 1MiB}\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("keeping"), VOLUMES) as made:
        yield made


def refusal(served: daemon.Daemon, *words: str) -> str:
    done = served.run(*words, check=False)
    assert done.returncode in (1, 2), done.stdout
    return done.stderr


def names(served: daemon.Daemon, *words: str) -> list[str]:
    return [snapshot["name"] for snapshot in served.json("snapshot", "list", *words)]


def test_nobody_deletes_a_held_snapshot_even_after_a_kill(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol1", "golden", "--hold", "the auditors want it")
    served.run("snapshot", "create", "vol1", "spare")
    served.run("snapshot", "hold", "vol1@spare", "--reason", "still in use")
    served.kill()
    served.start()
    for name, reason in (("golden", "the auditors want it"), ("spare", "still in use")):
        said = refusal(served, "snapshot", "delete", f"vol1@{name}", "--force")
        assert f"vol1@{name} is held: {reason}" in said
        assert f"`wolun snapshot release vol1@{name}`" in said
    assert "held          still in use" in served.run("snapshot", "show", "vol1@spare").stdout
    assert names(served, "vol1", "--state", "held") == ["golden", "spare"]
    assert "vol1@golden stays: it is held" in served.run("snapshot", "delete", "vol1@*").stdout
    served.run("snapshot", "release", "vol1@spare")
    assert served.json("snapshot", "show", "vol1@spare")["hold"] == ""
    served.run("snapshot", "delete", "vol1@*")
    assert names(served, "vol1") == ["golden"]
    assert "released vol1@golden" in shelling.good(served, "/volumes/vol1/snapshots/golden", "release")
    served.run("snapshot", "delete", "vol1@golden")


def test_a_snapshot_that_has_expired_goes(served: daemon.Daemon) -> None:
    served.run("snapshot", "create", "vol1", "short", "--expires", "30d")
    assert served.json("snapshot", "list", "vol1")[0]["expires"].startswith("20")
    assert "until 20" in served.run("snapshot", "list", "vol1").stdout
    assert "never expires" in served.run("snapshot", "expire", "vol1@short", "never").stdout
    assert served.json("snapshot", "list", "vol1")[0]["expires"] is None
    said = refusal(served, "snapshot", "expire", "vol1@short", "yesterday")
    assert "write a time from now like 12h, 30d or 8w" in said
    served.run("snapshot", "delete", "vol1@short")


def test_snapshot_gets_another_name_and_keeps_its_lun(served: daemon.Daemon) -> None:
    before = served.json("snapshot", "create", "vol1", "before")
    served.run("snapshot", "create", "vol1", "taken")
    assert "there is a snapshot 'taken' already" in refusal(served, "snapshot", "rename", "vol1@before", "taken")
    assert "'a b' is no name" in refusal(served, "snapshot", "rename", "vol1@before", "a b")
    assert "vol1@before is now vol1@after" in served.run("snapshot", "rename", "vol1@before", "after").stdout
    after = served.json("snapshot", "show", "vol1@after")
    assert (after["uuid"], after["view_lun"]) == (before["uuid"], before["view_lun"])
    said = refusal(served, "snapshot", "rename", "vol0@installed", "other")
    assert "the configuration lists it in `snapshots` of vol0" in said
    served.run("snapshot", "delete", "vol1@*")


def test_snapshots_are_chosen_by_pattern_and_label(served: daemon.Daemon) -> None:
    for number in range(3):
        served.run("snapshot", "create", "vol1", f"n{number}", "--label", f"day={number}")
    served.run("snapshot", "create", "vol1", "other", "--label", "day=1")
    assert names(served, "vol1@n*") == ["n0", "n1", "n2"]
    assert names(served, "vol1", "--label", "day=1") == ["n1", "other"]
    assert names(served, "vol1", "--sort", "name", "--reverse") == ["other", "n2", "n1", "n0"]
    said = served.run("snapshot", "delete", "vol1@n*", "--label", "day=1", "--dry-run").stdout
    assert said == "vol1@n1 would be deleted\n"
    assert len(names(served, "vol1")) == 4
    served.run("snapshot", "delete", "vol1@n*", "--label", "day=1")
    assert names(served, "vol1") == ["n0", "n2", "other"]
    assert "names no snapshots" in refusal(served, "snapshot", "delete", "vol1")
    served.run("snapshot", "delete", "vol1@*")
    assert names(served, "vol1") == []


def test_bad_reason_takes_nothing(served: daemon.Daemon) -> None:
    said = refusal(served, "snapshot", "create", "vol1", "never", "--hold", "x" * 257)
    assert "the reason of a hold is not at most 256 printable characters" in said
    assert names(served, "vol1") == []


def test_schedule_deletes_no_held_snapshot_and_every_expired_one(tmp_path: Path) -> None:
    volumes = "  - {name: vol0, lun: 0, size: 1MiB}\n"
    with daemon.Daemon(tmp_path, volumes) as served:
        for name in ("held", "gone"):
            served.run("snapshot", "create", "vol0", name)
        served.run("snapshot", "hold", "vol0@held")
        past = {"expires": "2026-01-01T00:00:00Z"}  # the command takes no moment that has passed, programs may
        for name in ("held", "gone"):
            status, answer = ask(served, "PATCH", f"/v1/volumes/vol0/snapshots/{name}", past)
            assert (status, answer["expires"]) == (200, "2026-01-01T00:00:00.000Z")
        served.kill()
        served.start()  # the scheduler looks at once
        while "gone" in names(served, "vol0"):
            pass
        assert names(served, "vol0") == ["held"]
