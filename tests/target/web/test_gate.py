# SPDX-License-Identifier: Apache-2.0
"""Who may do what over TCP: tokens, the header Host, and the requests that only the control socket has."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from target.configuration import reader
from tests import daemon, peers

LOOK, CHANGE = "a token to look", "a token to change"
VOLUMES = "  - {name: vol0, lun: 0, size: 1MiB}\n"


def secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def address(served: daemon.Daemon) -> tuple[str, int]:
    """Return where the status page is, as the daemon's log says."""
    log = (served.directory / "stderr").read_text()
    host, _, port = log.rpartition("the status page is at ")[2].partition("//")[2].partition("/")[0].rpartition(":")
    return host.strip("[]"), int(port)


def ask(served: daemon.Daemon, method: str, path: str, token: str = "", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*address(served), timeout=30)
    given = {**headers, **({"Authorization": f"Bearer {token}"} if token else {})}
    connection.request(method, path, headers=given)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if answer.headers["Content-Type"] == "application/json" else text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    directory = tmp_path_factory.mktemp("gate")
    look, change = secret(directory / "look", LOOK), secret(directory / "change", CHANGE)
    status = f"status: {{listen: '127.0.0.1:0', token_file: {look}, admin_token_file: {change}}}\n"
    with daemon.Daemon(directory, VOLUMES, extra=status) as made:
        made.run("snapshot", "create", "vol0", "a")
        yield made


def test_looking_needs_a_token_and_the_page_itself_none(served: daemon.Daemon) -> None:
    assert ask(served, "GET", "/")[0] == 200
    for path in ("/metrics", "/v1/status", "/v1/snapshots", "/v1/volumes/vol0/snapshots/a/changes"):
        assert ask(served, "GET", path)[0] == 401
        assert ask(served, "GET", path, "another token")[0] == 401
        assert ask(served, "GET", path, LOOK)[0] == 200
        assert ask(served, "GET", path, CHANGE)[0] == 200
    assert b"wolun_sessions" in ask(served, "GET", "/metrics", LOOK)[1]


def test_changing_needs_the_administrators_token(served: daemon.Daemon) -> None:
    path = "/v1/volumes/vol0/snapshots/a"
    for token in ("", LOOK):
        status, refusal = ask(served, "DELETE", path, token)
        assert (status, refusal["error"]) == (401, "no-token")
    assert [snapshot["name"] for snapshot in served.json("snapshot", "list")] == ["a"]
    assert ask(served, "DELETE", path, CHANGE)[0] == 202
    served.run("snapshot", "create", "vol0", "a")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/access"),
        ("POST", "/v1/volumes"),
        ("DELETE", "/v1/volumes/vol0"),
        ("POST", "/v1/volumes/vol0/snapshots/a/restore"),
        ("POST", "/v1/configuration/save"),
        ("GET", "/v1/volumes/vol0/snapshots/a/changes/../../../../access"),
        ("GET", "/page/../../../etc/passwd"),
    ],
)
def test_other_requests_are_not_there_with_any_token(served: daemon.Daemon, method: str, path: str) -> None:
    status, refusal = ask(served, method, path, CHANGE)
    assert (status, refusal["error"]) == (403, "not-here")


def test_request_for_another_host_is_refused(served: daemon.Daemon) -> None:
    status, refusal = ask(served, "GET", "/v1/status", LOOK, Host="evil.example")
    assert (status, refusal["error"]) == (421, "wrong-host")
    assert ask(served, "GET", "/v1/status", LOOK, Host="localhost:9260")[0] == 200


def test_clients_need_a_certificate_with_mutual_tls(tmp_path: Path) -> None:
    openssl = peers.require("openssl", "openssl")

    def run(*words: object) -> None:
        subprocess.run([openssl, *map(str, words)], check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    run(
        *new,
        "-subj",
        "/CN=server",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        tmp_path / "key",
        "-out",
        tmp_path / "pem",
    )
    run(*new, "-subj", "/CN=client", "-keyout", tmp_path / "client.key", "-out", tmp_path / "client.pem")
    status = f"status: {{listen: '127.0.0.1:0', certificate: {tmp_path}/pem, key: {tmp_path}/key, clients: {tmp_path}/client.pem}}\n"
    with daemon.Daemon(tmp_path, VOLUMES, extra=status) as served:
        context = ssl.create_default_context(cafile=str(tmp_path / "pem"))
        for known in (False, True):
            if known:
                context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
            connection = http.client.HTTPSConnection(*address(served), timeout=30, context=context)
            try:
                connection.request("GET", "/v1/status")
                assert connection.getresponse().status == 200
                assert known
            except (ssl.SSLError, ConnectionError):
                assert not known


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("{listen: '0.0.0.0:9260'}", "status.listen[0]: others can reach it: write token_file"),
        ("{listen: '0.0.0.0:9260', token_file: t}", "status.listen[0]: a token would cross the network in the clear"),
        ("{token_file: t}", "status.token_file: it does nothing without listen"),
        ("{listen: '127.0.0.1:1', key: k}", "status.certificate: certificate and key belong together"),
        ("{listen: 'host:1'}", "status.listen[0]: the status page takes numeric addresses"),
    ],
)
def test_configuration_that_would_be_open_or_pointless_is_refused(status: str, why: str) -> None:
    text = f"target: {daemon.IQN}\nstatus: {status}\nvolumes:\n{VOLUMES}"
    with pytest.raises(reader.ConfigurationError) as refused:
        reader.parse(text, "f.yaml")
    assert why in str(refused.value)


def test_address_that_is_taken_keeps_the_daemon_from_starting_with_the_reason(
    tmp_path: Path, served: daemon.Daemon
) -> None:
    taken = address(served)[1]
    other = daemon.Daemon(tmp_path, VOLUMES, extra=f"status: {{listen: '127.0.0.1:{taken}'}}\n")
    with pytest.raises(AssertionError, match="the status page cannot listen on"):
        other.start()
