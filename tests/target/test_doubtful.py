# SPDX-License-Identifier: Apache-2.0
"""A primary that changed while the daemon was stopped: what an administrator sees, and what a decision changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemon, libiscsi
from tests.target.control.asking import ask
from tests.target.shell import shelling

INQUIRY = bytes.fromhex("120000006000")
TEST_UNIT_READY = bytes(6)
VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB, primary: disk.img}\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    """Return a daemon whose volume has one snapshot of before its primary was changed, and one of after."""
    made = daemon.Daemon(tmp_path_factory.mktemp("doubtful"), VOLUMES).start()
    made.run("snapshot", "create", "vol0", "before")
    made.kill()
    made.start()
    assert made.json("status")["alerts"] == []  # being killed is no reason for a doubt
    assert made.json("snapshot", "list")[0]["state"] == "active"
    made.stop()
    with (made.state / "disk.img").open("r+b") as primary:
        primary.write(b"Z" * 4096)
    made.start()
    made.run("snapshot", "create", "vol0", "after")
    yield made
    if made.process is not None:
        made.stop()


def refusal(served: daemon.Daemon, *words: str) -> str:
    done = served.run(*words, check=False)
    assert done.returncode == 1, done.stdout
    return done.stderr


def test_doubt_is_shown_wherever_the_snapshot_is(served: daemon.Daemon) -> None:
    (alert,) = served.json("status")["alerts"]
    assert (alert["code"], alert["subject"]) == ("snapshots-doubtful", "vol0")
    assert alert["message"].startswith("snapshots of vol0 are doubtful (before): its primary was changed at ")
    assert "wolun volume accept vol0" in alert["remedy"]
    before, after = served.json("snapshot", "list")
    assert (before["state"], after["state"], after["reason"]) == ("doubtful", "active", "")
    assert before["reason"].startswith("its primary was changed at ")
    assert "state         doubtful: its primary" in served.run("snapshot", "show", "vol0@before").stdout
    assert "online, doubtful" in served.run("status").stdout
    assert served.json("status")["volumes"][0]["doubtful"] == before["reason"]
    assert "1 doubtful" in shelling.good(served, "ls")
    assert "doubtful  " in shelling.good(served, "/volumes/vol0", "info")
    page = ask(served, "GET", "/metrics")[1]
    assert 'wolun_snapshot_doubtful{snapshot="before",volume="vol0"} 1.0' in page
    assert 'wolun_snapshot_doubtful{snapshot="after",volume="vol0"} 0.0' in page


def products(session: libiscsi.Session, luns: list[int]) -> list[str]:
    return [session.command(lun, INQUIRY, read=96).data[16:32].decode().rstrip() for lun in luns]


def test_initiators_see_which_view_is_doubtful(served: daemon.Daemon) -> None:
    luns = [0, *(snapshot["view_lun"] for snapshot in served.json("snapshot", "list"))]
    with served.session() as session:
        assert products(session, luns) == ["VOLUME", "DOUBTFUL VIEW", "SNAPSHOT VIEW"]


def test_nothing_leaves_a_doubtful_snapshot(served: daemon.Daemon, tmp_path: Path) -> None:
    image = str(tmp_path / "image.img")
    for words in (
        ("export", "vol0@before", image),
        ("export", "vol0@after", image, "--since", "vol0@before"),
        ("diff", "vol0@before"),
        ("restore", "vol0@before"),
    ):
        said = refusal(served, "snapshot", *words)
        assert "is doubtful: its primary was changed at" in said
        assert "`wolun volume accept vol0`" in said
    served.run("snapshot", "export", "vol0@after", image)
    done = served.run("snapshot", "verify", "vol0@before", check=False)
    assert done.returncode == 1
    assert "vol0@before is DOUBTFUL" in done.stdout


def test_accepted_primary_ends_the_doubt_for_good(served: daemon.Daemon) -> None:
    assert "there is no volume vol9" in refusal(served, "volume", "accept", "vol9")
    assert "not done: accepted vol0@before" in shelling.good(served, "--dry-run", "/volumes/vol0", "accept")
    assert served.json("snapshot", "list")[0]["state"] == "doubtful"
    luns = [snapshot["view_lun"] for snapshot in served.json("snapshot", "list")]
    with served.session() as session:
        for lun in luns:
            session.settle(lun)
        accepted = served.json("volume", "accept", "vol0")
        told = session.command(luns[0], TEST_UNIT_READY)
        assert (told.status, told.key, told.asc) == (2, 6, (0x3F, 0x03))  # INQUIRY DATA HAS CHANGED
        assert session.command(luns[1], TEST_UNIT_READY).status == 0
        assert products(session, luns) == ["SNAPSHOT VIEW"] * 2
    assert accepted == {"volume": "vol0", "snapshots": ["before"], "set_aside": False}
    assert "no snapshot of vol0 is doubtful" in shelling.good(served, "/volumes/vol0", "accept")
    for _ in range(2):
        assert served.json("snapshot", "list")[0]["state"] == "active"
        assert served.run("status").stdout.rstrip().endswith("no trouble")
        served.stop()
        served.start()
