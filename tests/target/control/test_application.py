# SPDX-License-Identifier: Apache-2.0
"""The application: it describes its requests, and explains what it refuses."""

from __future__ import annotations

import pytest

from target import codec, messages
from tests import daemon
from tests.target.control.asking import ask


def test_each_request_is_described(running: daemon.Daemon) -> None:
    status, description = ask(running, "GET", "/openapi.json")
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
def test_refusal_has_a_code_a_message_and_a_remedy(
    running: daemon.Daemon, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    answered, answer = ask(running, method, path, body)
    assert answered == status
    refusal = codec.decode(messages.Refusal, answer)
    assert refusal.error == code
    assert refusal.message
    assert refusal.remedy


@pytest.mark.parametrize(
    ("method", "path", "body", "where"),
    [
        ("POST", "/v1/volumes/vol0/snapshots", {"name": "a\ud800"}, "body.name"),
        ("POST", "/v1/volumes/vol0/snapshots", {"name": "a", "labels": {"a\udcff": "b"}}, "body.labels"),
        ("POST", "/v1/groups", {"name": "a", "volumes": ["vol0", "b\udcff"]}, "body.volumes.1"),
        ("POST", "/v1/volumes/vol0/snapshots/kept/export", {"path": "/a\0b"}, "body.path"),
        ("POST", "/v1/configuration/save", {"file": "/a\0b"}, "body.file"),
        ("POST", "/v1/configuration/restore", {"file": "/a\udcff"}, "body.file"),
        ("POST", "/v1/volumes", {"name": "a", "size": "1MiB", "primary": "/a\udcff"}, "body.primary"),
        ("POST", "/v1/access/initiators", {"name": "iqn.2026-11.io.wolun:\ud800"}, "body.name"),
    ],
)
def test_text_that_nothing_can_be_called_is_refused(
    running: daemon.Daemon, method: str, path: str, body: object, where: str
) -> None:
    status, refusal = ask(running, method, path, body)
    assert (status, refusal["error"]) == (422, "bad-request")
    assert f"wrong at {where}: it has a" in refusal["message"]


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff", b'"' + b"x" * 100_000 + b'"'])
def test_body_that_is_no_request_is_refused(running: daemon.Daemon, body: bytes) -> None:
    status, refusal = ask(running, "POST", "/v1/groups", body)
    assert 400 <= status < 500
    assert refusal["error"] in ("bad-request", "no-such-request")
