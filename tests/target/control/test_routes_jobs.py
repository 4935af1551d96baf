# SPDX-License-Identifier: Apache-2.0
"""The requests for jobs."""

from __future__ import annotations

from tests import daemon
from tests.target.control.asking import ask


def test_job_is_listed_and_its_result_shown(running: daemon.Daemon) -> None:
    _, job = ask(running, "POST", "/v1/volumes/vol0/snapshots/kept/verify")
    path = f"/v1/jobs/{job['id']}"
    assert ask(running, "GET", f"{path}?wait=10")[1]["state"] == "done"
    assert job["id"] in [listed["id"] for listed in ask(running, "GET", "/v1/jobs")[1]]
    status, result = ask(running, "GET", f"{path}/result")
    assert (status, result["damage"]) == (200, [])


def test_request_for_a_missing_result_is_refused(running: daemon.Daemon) -> None:
    ask(running, "POST", "/v1/volumes/vol0/snapshots", {"name": "brief"})
    _, job = ask(running, "DELETE", "/v1/volumes/vol0/snapshots/brief")
    assert ask(running, "GET", f"/v1/jobs/{job['id']}?wait=10")[1]["state"] == "done"
    status, refusal = ask(running, "GET", f"/v1/jobs/{job['id']}/result")
    assert (status, refusal["error"]) == (404, "no-result")
