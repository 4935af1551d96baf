# SPDX-License-Identifier: Apache-2.0
"""The command that receives a replication, like `ssh backup wolun volume receive vol0`, run without a shell.

The stream goes to its standard input.  It begins with HELLO (`frames`), so the command answers with a line of JSON about what
is there, and with another one when all is received.  Standard error says why it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Self

from lun_backends.backups import frames
from target import codec, messages
from target.exports import compressed, stream
from target.service import jobs, problems

ANSWER_SECONDS = 120.0
"""How long the command may take for its first answer, and for its end."""
_POLL = 0.1
_LINE_MAX = 16 << 20
_SAID_MAX = 2000


class Failed(Exception):
    """The receiver cannot be reached, or refused; the text says why."""


class ReceiverProcess:
    """The running command; at the end of the context it has ended."""

    def __init__(self, command: Sequence[str], cancelled: Callable[[], bool], *, compress: bool) -> None:
        """Start the command.  Raise Failed."""
        self._name = command[0]
        self._cancelled = cancelled
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._said.close()
            raise Failed(f"{command[0]} cannot be run: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        stream.prepare(self._stdin.fileno())
        self.writer = frames.Writer(self._write, compressed.LEVEL if compress else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)  # without its input it ends, and keeps what has come
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
        self._said.close()

    def ask(self) -> messages.Replica:
        """Return what the receiver has.  Raise Failed, jobs.Cancelled."""
        self.writer.hello()
        return self._answer(messages.Replica)

    def finish(self) -> messages.Identified:
        """End the input; return what was received.  Raise Failed, jobs.Cancelled."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        answer = self._answer(messages.Identified)
        self._end()
        return answer

    def _write(self, data: bytes | memoryview) -> None:
        try:
            stream.send(self._stdin.fileno(), memoryview(data), self._cancelled)
        except OSError as error:
            self._end()
            raise Failed(f"{self._name} took no more: {error.strerror}") from error

    def _answer(self, kind: type[codec.T]) -> codec.T:
        line = b""
        deadline = time.monotonic() + ANSWER_SECONDS
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        while not line.endswith(b"\n"):
            if self._cancelled():
                raise jobs.Cancelled
            if time.monotonic() > deadline:
                raise Failed(f"{self._name} has not answered for {ANSWER_SECONDS:.0f} s{self._words()}")
            if not poll.poll(_POLL * 1000):
                continue
            piece = os.read(self._stdout.fileno(), 65536)
            if not piece or len(line) > _LINE_MAX:
                self._end()
                raise Failed(f"{self._name} ended without an answer{self._words()}")
            line += piece
        try:
            return codec.decode(kind, json.loads(line.splitlines()[-1]))
        except (ValueError, TypeError, KeyError):
            raise Failed(f"{self._name} gave an answer that is none of `wolun volume receive`{self._words()}") from None

    def _end(self) -> None:
        """Wait for the end of the process.  Raise Failed if it was not a good one."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._cancelled():
                raise jobs.Cancelled
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL)
        status = self._process.poll()
        if status:
            raise Failed(f"{self._name} ended with status {status}{self._words()}")

    def _words(self) -> str:
        """Return the end of what the command said, as the end of a sentence."""
        length = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, length - _SAID_MAX))
        text = " ".join(self._said.read().decode(errors="replace").split())
        return f": {text}" if text else ""


def failed(what: str, error: Failed) -> problems.Problem:
    """Return the refusal for a replication that failed."""
    return problems.refused(what, str(error), "remove the cause; wolun tries again by itself")
