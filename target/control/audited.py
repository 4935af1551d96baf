# SPDX-License-Identifier: Apache-2.0
"""The record of each request that changes something, around the application.

Only the daemon's own user and root can open the control socket.  So what a command says about itself and its user (`WAY`,
`USER`) is not proved, and need not be.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib import parse

from target.audit import Audit
from target.control.client import USER, WAY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_LARGEST = 64 << 10  # bytes of a request or an answer that are looked at


class Audited:
    """The application `inner`, whose changes go into the audit log.  `way` is that of clients that do not name theirs."""

    def __init__(self, inner: Application, audit: Audit, way: str) -> None:
        self._inner = inner
        self._audit = audit
        self._way = way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        query = scope.get("query_string", b"").decode("latin-1")
        looks = scope["type"] != "http" or scope["method"] in ("GET", "HEAD")
        if looks or "true" in (value.lower() for value in parse.parse_qs(query).get("dry_run", ())):
            await self._inner(scope, receive, send)
            return
        asked, answered, status = bytearray(), bytearray(), 0

        async def receiving() -> MutableMapping[str, Any]:
            message = await receive()
            if len(asked) < _LARGEST:
                asked.extend(message.get("body", b""))
            return message

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and len(answered) < _LARGEST:
                answered.extend(message.get("body", b""))
            await send(message)

        try:
            await self._inner(scope, receiving, sending)
        finally:
            headers = dict(scope["headers"])
            client = scope.get("client") or ("", 0)
            what = f"{scope['method']} {scope['path']}{'?' if query else ''}{query}"
            self._audit.record(
                headers.get(WAY.lower().encode(), self._way.encode()).decode("latin-1"),
                headers.get(USER.lower().encode(), b"").decode("latin-1"),
                what,
                "done" if 0 < status < 400 else _code(bytes(answered)) or "failed",
                address=client[0] or "",
                details=_json(bytes(asked)),
            )


def _code(answer: bytes) -> str:
    content = _json(answer)
    return str(content.get("error", "")) if isinstance(content, dict) else ""


def _json(text: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text) if text else None
    return None
