# SPDX-License-Identifier: Apache-2.0
"""The child process that freezes a virtual machine's file systems through its QEMU guest agent, and thaws them.

It is run as a program, with the path of the agent's socket and a number of seconds, and needs only Python itself.

| step   | does                                                                                                     |
| ------ | -------------------------------------------------------------------------------------------------------- |
| sync   | `guest-sync-delimited`: throws away what an earlier client left in the channel                             |
| freeze | `guest-fsfreeze-status` must say that nothing is frozen yet; then `guest-fsfreeze-freeze`                   |
|        | it prints `frozen`, and waits until its standard input ends (also by the death of the daemon) or time is up |
| thaw   | `guest-fsfreeze-thaw`, with a new connection again and again, until the agent says that nothing is frozen   |

Once the request to freeze was sent, it thaws whatever happened: an answer that does not come may come too late.  It gives up after
`PATIENCE` seconds without an agent, because a machine that is gone is not frozen.  Exit status: 0 if it froze in time and thawed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

PATIENCE = 600.0
_ANSWER = 65536
_NAP = 0.2
_TRY = 5.0


class Failed(Exception):
    """The agent cannot be reached, or refused; the text says why."""


class Agent:
    """A connection to a guest agent, ready for requests.  Its methods raise Failed."""

    def __init__(self, path: str, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._left = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
            number = int.from_bytes(os.urandom(4), "big")
            self._send(b"\xff", {"execute": "guest-sync-delimited", "arguments": {"id": number}})
            while True:
                self._read_past(b"\xff")
                if self._answer().get("return") == number:
                    return
        except (OSError, ValueError) as error:
            self.close()
            raise Failed(f"the guest agent at {path} does not answer: {_why(error)}") from error
        except Failed:
            self.close()
            raise

    def ask(self, command: str) -> object:
        """Return what the agent answers to a command."""
        try:
            self._send(b"", {"execute": command})
            answer = self._answer()
        except (OSError, ValueError) as error:
            raise Failed(f"the guest agent does not answer to {command}: {_why(error)}") from error
        if "return" not in answer:
            refusal = answer.get("error")
            said = refusal.get("desc") if isinstance(refusal, dict) else None
            raise Failed(f"the guest agent refuses {command}: {said or answer}")
        return answer["return"]

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _send(self, before: bytes, request: dict[str, object]) -> None:
        self._socket.settimeout(max(0.001, self._until - time.monotonic()))
        self._socket.sendall(before + json.dumps(request).encode() + b"\n")

    def _answer(self) -> dict[str, object]:
        line = self._read_past(b"\n")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError(f"{line[:80]!r} is no answer")
        return answer

    def _read_past(self, mark: bytes) -> bytes:
        """Return what comes before the mark.  Raises OSError, ValueError."""
        while mark not in self._left:
            if len(self._left) > _ANSWER:
                raise ValueError("it sends too much")
            self._socket.settimeout(max(0.001, self._until - time.monotonic()))
            more = self._socket.recv(4096)
            if not more:
                raise ConnectionResetError("it closed the connection")
            self._left += more
        before, _, self._left = self._left.partition(mark)
        return before


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "time is up"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def thaw(path: str) -> None:
    """Thaw, and return when the agent says that nothing is frozen.  Raise Failed if there is no agent for a long time."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            agent = Agent(path, _TRY)
            try:
                agent.ask("guest-fsfreeze-thaw")
                if agent.ask("guest-fsfreeze-status") == "thawed":
                    return
            finally:
                agent.close()
        except Failed:
            if time.monotonic() > until:
                raise
        time.sleep(_NAP)


def main(path: str, seconds: float) -> int:
    """Freeze, wait, and thaw.  Return the exit status."""
    for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    until = time.monotonic() + seconds
    try:
        agent = Agent(path, seconds)
        if agent.ask("guest-fsfreeze-status") != "thawed":
            raise Failed("the guest is frozen already, by somebody else")
    except Failed as failure:
        print(failure, file=sys.stderr)  # noqa: T201 - the daemon reads it
        return 1
    try:
        count = agent.ask("guest-fsfreeze-freeze")
        if not count:
            raise Failed("the guest agent froze no file system")
        print("frozen", flush=True)  # noqa: T201 - the daemon reads it
        ended, _, _ = select.select([sys.stdin], [], [], max(0.0, until - time.monotonic()))
    except (Failed, OSError) as failure:
        print(failure, file=sys.stderr)  # noqa: T201 - the daemon reads it
        ended = []
    finally:
        agent.close()
    try:
        thaw(path)
    except Failed as failure:
        print(f"the guest may be frozen still: {failure}", file=sys.stderr)  # noqa: T201 - the daemon reads it
        return 1
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
