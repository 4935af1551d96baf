# SPDX-License-Identifier: Apache-2.0
"""Raw HTTP requests to the control socket of a daemon."""

from __future__ import annotations

import http.client
import json
from typing import Any

from target import places
from tests import daemon

VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n"


def ask(served: daemon.Daemon, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Send one request and return the status and the decoded answer; bytes are sent as they are."""
    connection = http.client.HTTPConnection("wolun", timeout=30)
    connection.sock = places.connect(served.state, 30)
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, sent, {} if sent is None else {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()
