# SPDX-License-Identifier: Apache-2.0
"""A proxy for HTTP that delays and drops requests, answers them itself, or loses the answers to them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Fault:
    """The fate of a request: it waits, then is dropped, answered with a status, or passed on and its answer lost."""

    delay: float = 0.0
    drop: bool = False
    status: int = 0
    lose: bool = False


NONE = Fault()
Choice = Callable[[str, str], Fault]
"""Returns the fate of a request from its method and its path."""


class Proxy:
    """A proxy for a server on the loopback address, while the context is open."""

    def __init__(self, upstream: int, choose: Choice = lambda _method, _path: NONE) -> None:
        self.upstream = upstream
        self.choose = choose
        self.counted: dict[str, int] = {}
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    while proxy._one(self):
                        pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _one(self, of: socketserver.StreamRequestHandler) -> bool:
        """Handle one request; return whether the connection goes on."""
        lines: list[bytes] = []
        while (line := of.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines:
            return False
        method, path, _ = lines[0].decode().split(" ", 2)
        self.counted[method] = self.counted.get(method, 0) + 1
        headers = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in lines[1:]}
        body = of.rfile.read(int(headers.get(b"content-length", b"0")))
        fault = self.choose(method, path)
        time.sleep(fault.delay)
        if fault.drop:
            return False
        if fault.status:
            of.wfile.write(b"HTTP/1.1 %d Fault\r\nETag: x\r\nContent-Length: 0\r\n\r\n" % fault.status)
            return True
        with socket.create_connection(("127.0.0.1", self.upstream)) as upstream:
            upstream.sendall(b"".join(lines) + b"\r\n" + body)
            answer = http.client.HTTPResponse(upstream, method=method)
            answer.begin()
            content = answer.read()
            if fault.lose:
                return False
            kept = [(key, value) for key, value in answer.getheaders() if key.lower() not in _HOP]
            length = answer.getheader("content-length", "0") if method == "HEAD" else str(len(content))
            head = [f"HTTP/1.1 {answer.status} {answer.reason}", f"Content-Length: {length}"]
            head += [f"{key}: {value}" for key, value in kept]
            of.wfile.write("\r\n".join(head).encode() + b"\r\n\r\n" + content)
        return True


_HOP = {"content-length", "transfer-encoding", "connection", "keep-alive"}
