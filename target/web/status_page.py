# SPDX-License-Identifier: Apache-2.0
"""The status page's listener: the application behind its gate, on TCP, in a thread of its own.

It is off unless the configuration has `status.listen`.  It shares neither thread nor loop with the data path.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from pathlib import Path

import fastapi
import uvicorn

from target import liveness
from target.audit import Audit
from target.configuration import settings
from target.control import audited, control_socket
from target.fabrics import access
from target.web import gate, page_files

log = logging.getLogger(__name__)

STOP_SECONDS = 2


class CannotShow(Exception):
    """The status page cannot be served; the text has the reason and the remedy."""


class StatusPage:
    """The listener, from `start` to `close`.  `shown` is the application of the control socket."""

    def __init__(self, shown: fastapi.FastAPI, audit: Audit, configured: settings.StatusPage, state_dir: Path) -> None:
        """Read the tokens and the certificate.  Raise CannotShow."""
        self.pulse = liveness.Pulse("status-page")
        self._configured = configured
        shown.include_router(page_files.routes())
        guarded = gate.Gate(
            audited.Audited(shown, audit, "page"), _tokens(configured, state_dir), gate.own_names(configured.names)
        )
        made = uvicorn.Config(
            guarded,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        if configured.certificate is not None and configured.key is not None:
            made.ssl_certfile, made.ssl_keyfile = (
                str(state_dir / configured.certificate),
                str(state_dir / configured.key),
            )
            if configured.clients is not None:
                made.ssl_ca_certs, made.ssl_cert_reqs = str(state_dir / configured.clients), ssl.CERT_REQUIRED
        self._server = control_socket.Server(self.pulse, made)
        try:
            self._server.config.load()
        except (OSError, ssl.SSLError) as error:
            raise CannotShow(
                f"the status page cannot use its certificate ({error}): check status.certificate, key and clients"
            ) from error
        self._sockets: list[socket.socket] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="status-page", daemon=True)

    def start(self) -> None:
        """Listen, and answer from a thread.  Raise CannotShow if an address cannot be bound."""
        for listen in self._configured.listen or ():
            host, _, port = listen.rpartition(":")
            host = host.strip("[]")
            try:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                self._sockets.append(socket.create_server((host, int(port)), family=family, backlog=64))
            except OSError as error:
                for bound in self._sockets:
                    bound.close()
                remedy = "free it, or choose another in status.listen"
                raise CannotShow(f"the status page cannot listen on {listen} ({error.strerror}): {remedy}") from error
        scheme = "https" if self._configured.certificate else "http"
        for bound in self._sockets:
            name = bound.getsockname()
            shown = f"[{name[0]}]" if bound.family == socket.AF_INET6 else name[0]
            log.info("the status page is at %s://%s:%d/", scheme, shown, name[1])
        self._thread.start()

    def close(self) -> None:
        """Answer the requests that have come, then stop."""
        self._closing = True
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        for bound in self._sockets:
            bound.close()

    def _run(self) -> None:
        self._server.run(sockets=self._sockets)
        if not self._closing:
            raise control_socket.Ended


def _tokens(configured: settings.StatusPage, state_dir: Path) -> gate.Tokens:
    def read(path: Path | None) -> bytes | None:
        if path is None:
            return None
        try:
            return access.read_secret(state_dir / path).reveal()
        except access.SecretFileRefused as error:
            raise CannotShow(f"the status page has no token: {error}") from error

    return gate.Tokens(read(configured.token_file), read(configured.admin_token_file))
