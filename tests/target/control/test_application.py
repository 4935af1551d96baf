# SPDX-License-Identifier: Apache-2.0
"""The control socket as other programs see it: HTTP, JSON, OpenAPI, metrics."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser

from target import codec, messages, places
from tests import daemon

VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    with daemon.Daemon(tmp_path_factory.mktemp("daemon"), VOLUMES) as running:
        running.run("snapshot", "create", "vol0", "kept")
        yield running


def request(served: daemon.Daemon, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("wolun", timeout=30)
    connection.sock = places.connect(served.state, 30)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


def test_it_describes_itself(served: daemon.Daemon) -> None:
    status, description = request(served, "GET", "/openapi.json")
    assert status == 200
    assert {
        ("/v1/status", "get"),
        ("/v1/snapshots", "get"),
        ("/v1/volumes/{volume}/snapshots", "post"),
        ("/v1/volumes/{volume}/snapshots/{name}", "delete"),
        ("/v1/volumes/{volume}/snapshots/{name}/export", "post"),
        ("/v1/jobs/{number}", "delete"),
    } <= {(path, method) for path, methods in description["paths"].items() for method in methods}
    assert {"Status", "Taken", "Refusal", "Job"} <= set(description["components"]["schemas"])
    for methods in description["paths"].values():
        for operation in methods.values():
            assert operation.get("description"), operation["operationId"]


def test_metrics_are_what_prometheus_reads(served: daemon.Daemon) -> None:
    with served.session() as session:
        session.settle(0)
        assert session.command(0, b"\x2a\x00\x00\x00\x00\x00\x00\x00\x80\x00", out=bytes(64 << 10)).status == 0
        _, text = request(served, "GET", "/metrics")
    samples = {
        (sample.name, sample.labels.get("unit") or sample.labels.get("snapshot") or ""): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["wolun_sessions", ""] == 1
    assert samples["wolun_written_bytes_total", "vol0"] == 64 << 10
    assert samples["wolun_commands_total", "vol0"] >= 1
    assert samples["wolun_copies_total", ""] == 1
    assert samples["wolun_futile_copies_total", ""] == 0
    assert samples["wolun_snapshot_preserved_bytes", "kept"] == 64 << 10
    assert samples["wolun_snapshot_held_seconds", "kept"] > 0
    assert samples["wolun_volume_up", ""] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/", None, 404, "no-such-request"),
        ("PUT", "/v1/status", None, 405, "no-such-request"),
        ("GET", "/v1/volumes/x/snapshots", None, 404, "no-such-volume"),
        ("GET", "/v1/volumes/vol0/snapshots/x", None, 404, "no-such-snapshot"),
        ("DELETE", "/v1/volumes/vol0/snapshots/x", None, 404, "no-such-snapshot"),
        ("POST", "/v1/volumes/vol0/snapshots", b"", 422, "bad-request"),
        ("POST", "/v1/volumes/vol0/snapshots", b"{", 422, "bad-request"),
        ("POST", "/v1/volumes/vol0/snapshots", b"[]", 422, "bad-request"),
        ("POST", "/v1/volumes/vol0/snapshots", b"{}", 422, "bad-request"),
        ("POST", "/v1/volumes/vol0/snapshots", b'{"name": 5}', 422, "bad-request"),
        ("POST", "/v1/volumes/vol0/snapshots", b'{"name": ""}', 422, "bad-name"),
        ("POST", "/v1/volumes/vol0/snapshots", b'{"name": "../x"}', 422, "bad-name"),
        ("POST", "/v1/volumes/vol0/snapshots", b'{"name": "kept"}', 409, "snapshot-exists"),
        ("POST", "/v1/volumes/vol0/snapshots/kept/export", b'{"path": "relative"}', 409, "file-failed"),
        ("POST", "/v1/volumes/vol0/snapshots/kept/export", b'{"path": "/dev/null"}', 409, "file-exists"),
        ("GET", "/v1/volumes/vol0/snapshots/kept/changes?cells=0", None, 422, "bad-request"),
        ("GET", "/v1/volumes/vol0/snapshots/kept/changes?cells=999999999", None, 422, "bad-request"),
        ("GET", "/v1/jobs/999", None, 404, "no-such-job"),
        ("DELETE", "/v1/jobs/999", None, 404, "no-such-job"),
        ("GET", "/v1/jobs/x", None, 422, "bad-request"),
        ("GET", "/v1/jobs/1?wait=1e9", None, 422, "bad-request"),
    ],
)
def test_a_refusal_has_a_code_a_message_and_a_remedy(
    served: daemon.Daemon, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    answered, refusal = request(served, method, path, body)
    assert answered == status
    found = codec.decode(messages.Refusal, refusal)
    assert found.error == code
    assert found.message
    assert found.remedy


def test_an_export_that_fails_says_why(served: daemon.Daemon, tmp_path: Path) -> None:
    body = json.dumps({"path": str(tmp_path / "missing" / "out.img")}).encode()
    status, job = request(served, "POST", "/v1/volumes/vol0/snapshots/kept/export", body)
    assert status == 202
    _, job = request(served, "GET", f"/v1/jobs/{job['id']}?wait=10")
    assert job["state"] == "failed"
    assert job["refusal"]["error"] == "file-failed"
    assert "No such file or directory" in job["refusal"]["message"]


def test_of_many_who_ask_for_one_name_one_gets_it(served: daemon.Daemon) -> None:
    answers: list[int] = []

    def ask() -> None:
        answers.append(request(served, "POST", "/v1/volumes/vol0/snapshots", b'{"name": "race"}')[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201] + [409] * 7
    luns = [each[key] for each in served.json("snapshot", "list") for key in ("view_lun", "write_once_lun")]
    assert len(set(luns)) == len(luns) == 4
    served.run("snapshot", "delete", "vol0@race")


def test_those_who_connect_and_say_nothing_or_nonsense_hold_nobody_up(served: daemon.Daemon) -> None:
    silent = [places.connect(served.state, 30) for _ in range(20)]
    rude: socket.socket = places.connect(served.state, 30)
    rude.sendall(b"\x00\xff nonsense\r\n\r\n")
    assert rude.recv(100).startswith(b"HTTP/1.1 400")
    assert request(served, "GET", "/v1/status")[0] == 200
    for connection in (*silent, rude):
        connection.close()
