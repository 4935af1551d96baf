# SPDX-License-Identifier: Apache-2.0
"""The Unix socket that the application answers on; only the daemon's own user can connect.

It has a thread and an event loop of its own and shares neither with the data path.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import uvicorn

from target import liveness, places
from target.administration import administration
from target.control import application, audited
from target.service.service import Service

STOP_SECONDS = 5


class Ended(Exception):
    """The loop of the control socket ended although the daemon had not ended it."""


class Server(uvicorn.Server):
    """uvicorn's loop, which shows that it moves."""

    def __init__(self, pulse: liveness.Pulse, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._pulse = pulse

    async def on_tick(self, counter: int) -> bool:
        """Do what uvicorn does ten times a second."""
        self._pulse.beat()
        return await super().on_tick(counter)


class ControlSocket:
    """The application on its socket, from `start` to `close`.

    The caller holds the state directory's lock, so a socket that lies there was left behind by a killed daemon.
    """

    def __init__(self, service: Service, admin: administration.Administration, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.pulse = liveness.Pulse("control-socket")
        self._server = Server(
            self.pulse,
            uvicorn.Config(
                audited.Audited(application.application(service, admin), service.audit, "api"),
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                timeout_graceful_shutdown=STOP_SECONDS,
            ),
        )
        self._socket: socket.socket | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="control-socket", daemon=True)

    def start(self) -> None:
        """Listen, and answer from a thread.  Raise OSError if the socket cannot be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode of a socket's file is that of the socket when it is bound, so no other user can ever connect.
        os.fchmod(listener.fileno(), 0o600)
        new = f"{places.SOCKET}.new"
        (self._state_dir / new).unlink(missing_ok=True)
        try:
            with places.short_name(self._state_dir, new) as path:
                listener.bind(path)
            listener.listen(64)
            (self._state_dir / new).replace(self._state_dir / places.SOCKET)
        except OSError:
            listener.close()
            raise
        self._socket = listener
        self._thread.start()

    def close(self) -> None:
        """Answer the requests that have come, then stop."""
        with contextlib.suppress(FileNotFoundError):
            (self._state_dir / places.SOCKET).unlink()
        self._closing = True
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        assert self._socket is not None  # `start` has made it
        self._server.run(sockets=[self._socket])
        if not self._closing:
            raise Ended
