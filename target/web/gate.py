# SPDX-License-Identifier: Apache-2.0
"""Who may do what over TCP: the status page's guard in front of the control socket's application.

| request                                                       | needs                                           |
| ------------------------------------------------------------- | ----------------------------------------------- |
| the page itself (it holds no data)                            | nothing                                         |
| what `_LOOK` names                                            | the token, if the configuration has one         |
| what `_CHANGE` names: take, hold, export, delete a snapshot   | the administrator's token                       |
| everything else                                               | cannot be had here; the control socket has it   |

A token comes in the header `Authorization: Bearer ...`, never in a cookie, so no other site can make a browser send it.
The header `Host` must name this host by an address or by its own name.  Else another site could point its own name at this
address and read the answers (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from target import codec, messages

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_PAGE = re.compile(r"/|/page/[a-z.]+")
_LOOK = re.compile(
    r"/metrics|/openapi\.json|/v1/(status|snapshots|volumes|alerts|luns|reservations|explanations)"
    r"|/v1/jobs(/[0-9]+)?|/v1/volumes/[^/]+(/(snapshots|nodes))?|/v1/volumes/[^/]+/snapshots/[^/]+(/changes)?"
)
_CHANGE: Mapping[str, re.Pattern[str]] = {
    "POST": re.compile(r"/v1/volumes/[^/]+/snapshots|/v1/volumes/[^/]+/snapshots/[^/]+/export"),
    "PATCH": re.compile(r"/v1/volumes/[^/]+/snapshots/[^/]+"),
    "DELETE": re.compile(r"/v1/volumes/[^/]+/snapshots/[^/]+|/v1/jobs/[0-9]+"),
}
_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True)
class Tokens:
    """The tokens; None: nobody needs one to look, or nobody may change anything."""

    look: bytes | None
    change: bytes | None

    def admits_look(self, given: bytes) -> bool:
        """Return whether who gives this token may look."""
        return self.look is None or _same(given, self.look) or self.admits_change(given)

    def admits_change(self, given: bytes) -> bool:
        """Return whether who gives this token may change something."""
        return self.change is not None and _same(given, self.change)


class Gate:
    """The guard in front of `inner`.  `names` are the names of this host that the header `Host` may have."""

    def __init__(self, inner: Application, tokens: Tokens, names: frozenset[str]) -> None:
        self._inner = inner
        self._tokens = tokens
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let `inner` do it."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope["method"], scope["path"], dict(scope["headers"]))
        if refusal is not None:
            await _refuse(send, *refusal)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._inner(scope, receive, guarded)

    def _refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> tuple[int, messages.Refusal] | None:
        if not self._knows(headers.get(b"host", b"").decode("latin-1")):
            text = "this request is for another host"
            return 421, messages.Refusal(
                "wrong-host", text, "use this host's address, or a name listed in status.names"
            )
        if method in ("GET", "HEAD") and _PAGE.fullmatch(path):
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        token = given.strip() if scheme.lower() == b"bearer" else b""
        if method in ("GET", "HEAD") and _LOOK.fullmatch(path):
            if self._tokens.admits_look(token):
                return None
            return 401, messages.Refusal("no-token", "this needs a token", "send the one in status.token_file")
        if method in _CHANGE and _CHANGE[method].fullmatch(path):
            if self._tokens.admits_change(token):
                return None
            if self._tokens.change is None:
                remedy = "set status.admin_token_file, or use the control socket"
                return 403, messages.Refusal("read-only", "nothing can be changed here", remedy)
            text, remedy = "this needs the administrator's token", "send the one in status.admin_token_file"
            return 401, messages.Refusal("no-token", text, remedy)
        text = f"{method} {path} cannot be had here"
        return 403, messages.Refusal("not-here", text, "use the control socket, or `wolun` on this machine")

    def _knows(self, host: str) -> bool:
        name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        return True


def own_names(listed: tuple[str, ...]) -> frozenset[str]:
    """Return the names by which clients may call this host: its own, localhost, and those that the configuration lists."""
    return frozenset(name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), *listed))


def _same(given: bytes, token: bytes) -> bool:
    return hmac.compare_digest(given, token)


async def _refuse(send: Send, status: int, refusal: messages.Refusal) -> None:
    body = json.dumps(codec.encode(refusal)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
