# SPDX-License-Identifier: Apache-2.0
"""The requests for snapshots."""

from __future__ import annotations

import threading
from pathlib import Path

from tests import daemon
from tests.target.control.asking import ask

KEPT = "/v1/volumes/vol0/snapshots/kept"


def test_snapshots_are_listed_and_shown(running: daemon.Daemon) -> None:
    _, listed = ask(running, "GET", "/v1/snapshots")
    assert listed == ask(running, "GET", "/v1/volumes/vol0/snapshots")[1]
    assert [snapshot["name"] for snapshot in listed] == ["kept"]
    status, shown = ask(running, "GET", KEPT)
    assert status == 200
    assert shown["name"] == "kept"


def test_labels_are_set_and_removed(running: daemon.Daemon) -> None:
    status, labelled = ask(running, "PATCH", f"{KEPT}/labels", {"labels": {"purpose": "test"}})
    assert (status, labelled["labels"]) == (200, {"purpose": "test"})
    assert ask(running, "PATCH", f"{KEPT}/labels", {"labels": {"purpose": None}})[1]["labels"] == {}


def test_volume_is_rolled_back_only_by_force_while_initiators_reach_it(running: daemon.Daemon) -> None:
    with running.session():
        status, refusal = ask(running, "POST", f"{KEPT}/restore")
        assert (status, refusal["error"]) == (409, "in-use")
        status, job = ask(running, "POST", f"{KEPT}/restore?force=true")
        assert status == 202
        assert ask(running, "GET", f"/v1/jobs/{job['id']}?wait=10")[1]["state"] == "done"


def test_failed_export_has_a_refusal(running: daemon.Daemon, tmp_path: Path) -> None:
    request = {"path": str(tmp_path / "missing" / "out.img")}
    status, job = ask(running, "POST", "/v1/volumes/vol0/snapshots/kept/export", request)
    assert status == 202
    _, job = ask(running, "GET", f"/v1/jobs/{job['id']}?wait=10")
    assert job["state"] == "failed"
    assert job["refusal"]["error"] == "file-failed"
    assert "No such file or directory" in job["refusal"]["message"]


def test_only_one_of_many_requests_for_a_name_succeeds(running: daemon.Daemon) -> None:
    answers: list[int] = []

    def take() -> None:
        answers.append(ask(running, "POST", "/v1/volumes/vol0/snapshots", b'{"name": "race"}')[0])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201] + [409] * 7
    luns = [snapshot["view_lun"] for snapshot in running.json("snapshot", "list")]
    assert len(set(luns)) == len(luns) == 2
    running.run("snapshot", "delete", "vol0@race")
