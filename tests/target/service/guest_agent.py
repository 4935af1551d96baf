# SPDX-License-Identifier: Apache-2.0
"""A scripted QEMU guest agent on a Unix socket, for faults that the real one does not have on demand.

It knows the four requests that wolun sends, and keeps whether its guest is frozen.  Tests set the faults.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from types import TracebackType


class GuestAgent:
    """An agent that serves one client at a time, as the real one does; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = False
        self.thaws = 0
        self.greeting = b""  # sent before anything else, like what an earlier client left unread
        self.silent_on: str | None = None  # a request that gets no answer, although it is carried out
        self.refuses: str | None = None
        self.drops = 0  # so many requests to thaw end the connection and do nothing
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> GuestAgent:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            # Outermost, because closing the stream writes what is left, to a client that may be gone.
            with contextlib.suppress(ConnectionError), client, client.makefile("rwb") as stream:
                stream.write(self.greeting)
                for line in stream:
                    answer = self._answer(json.loads(line.lstrip(b"\xff")))
                    if answer is None:
                        break
                    stream.write(answer)
                    stream.flush()

    def _answer(self, request: dict[str, object]) -> bytes | None:
        """Carry out a request, and return the answer; None ends the connection."""
        command = str(request["execute"])
        value: object = 0
        before = b""
        if command == "guest-sync-delimited":
            before, arguments = b"\xff", request["arguments"]
            assert isinstance(arguments, dict)
            value = arguments["id"]
        elif command == self.refuses:
            return json.dumps({"error": {"class": "GenericError", "desc": "not today"}}).encode() + b"\n"
        elif command == "guest-fsfreeze-status":
            value = "frozen" if self.frozen else "thawed"
        elif command == "guest-fsfreeze-freeze":
            self.frozen, value = True, 2
        elif command == "guest-fsfreeze-thaw":
            self.thaws += 1
            if self.drops:
                self.drops -= 1
                return None
            value, self.frozen = 2 * self.frozen, False
        return b"" if command == self.silent_on else before + json.dumps({"return": value}).encode() + b"\n"
