# SPDX-License-Identifier: Apache-2.0
"""Servers of object storage on the loopback address, beside Ceph's gateway: moto, Azurite, and one that is unfit.

| server  | speaks | the condition of a PUT (`If-None-Match: *`)    |
| ------- | ------ | ---------------------------------------------- |
| moto    | S3     | kept, by one process                           |
| Azurite | Azure  | kept                                           |
| s3rver  | S3     | ignored: no store may be there                 |
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import registries
from tests.ceph import free_port

MOTO = ("moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5")
AZURITE, S3RVER = "azurite@3.37.0", "s3rver@3.7.1"
# The account that every Azurite has; its documentation publishes the key.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Server:
    """A running server with an empty bucket or container: what the configuration says about it."""

    url: str
    endpoint: str
    credentials: str  # the content of the file


@contextlib.contextmanager
def moto(directory: Path) -> Iterator[Server]:
    """Run moto."""
    port = free_port()
    environment = {"PYTHONPATH": str(registries.from_pypi(*MOTO)), "PYTHONDONTWRITEBYTECODE": "1"}
    with _running(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, directory, environment
    ):
        _request(port, "PUT", "/bucket", {})
        keys = "AWS_ACCESS_KEY_ID=any\nAWS_SECRET_ACCESS_KEY=any\n"
        yield Server("s3://bucket/x", f"http://127.0.0.1:{port}", keys)


@contextlib.contextmanager
def s3rver(directory: Path) -> Iterator[Server]:
    """Run s3rver."""
    port = free_port()
    program = registries.from_npm(S3RVER) / "bin" / "s3rver.js"
    words = [
        "--directory",
        str(directory),
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
        "--configure-bucket",
        "bucket",
    ]
    with _running([registries.node()[0], str(program), *words], port, directory):
        keys = "AWS_ACCESS_KEY_ID=S3RVER\nAWS_SECRET_ACCESS_KEY=S3RVER\n"
        yield Server("s3://bucket/x", f"http://127.0.0.1:{port}", keys)


@contextlib.contextmanager
def azurite(directory: Path) -> Iterator[Server]:
    """Run Azurite's service for blobs, which keeps them in memory."""
    port = free_port()
    program = registries.from_npm(AZURITE) / "dist" / "src" / "blob" / "main.js"
    words = [
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
        "--inMemoryPersistence",
        "--silent",
        "--disableTelemetry",
    ]
    with _running([registries.node()[0], str(program), *words, "--skipApiVersionCheck"], port, directory):
        _make_container(port, "container")
        keys = f"AZURE_STORAGE_ACCOUNT_NAME={_ACCOUNT}\nAZURE_STORAGE_ACCOUNT_KEY={_KEY}\n"
        yield Server("az://container/x", f"http://127.0.0.1:{port}/{_ACCOUNT}", keys)


def _make_container(port: int, name: str) -> None:
    """Send a PUT signed with the account's key (SharedKey): obstore makes no containers."""
    date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
    listed = "".join(f"{key}:{value}\n" for key, value in headers.items())
    nothing = "\n" * 11  # headers that are not sent
    text = f"PUT\n{nothing}{listed}/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(_KEY), text.encode(), hashlib.sha256)).decode()
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{signature}"
    _request(port, "PUT", f"/{_ACCOUNT}/{name}?restype=container", headers)


def _request(port: int, method: str, path: str, headers: Mapping[str, str]) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, headers={**headers, "Content-Length": "0"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status in (200, 201), (answer.status, content)


@contextlib.contextmanager
def _running(
    command: Sequence[str], port: int, directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server that listens on a port of the loopback address."""
    log = directory / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=directory, env={**os.environ, **(environment or {})}, stdout=output, stderr=output
        )
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.closing(socket.socket()) as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()
