# SPDX-License-Identifier: Apache-2.0
"""The answer that sends the output of a job, from a pipe.

The head names the job, and the size if it is known.  If the job fails, the connection breaks before all bytes are sent, so no client
takes a part for the whole; the job has the reason.  A client that goes away cancels the job.
"""

from __future__ import annotations

import io

import anyio.to_thread
import fastapi
from fastapi import responses
from starlette import types

from target.service import jobs

JOB_HEADER = "Wolun-Job"
_STEP = 1 << 20


class JobStream(responses.Response):
    """The content that `job` writes into the pipe behind `content`, `size` bytes in all; None: as many as it writes."""

    media_type = "application/octet-stream"

    def __init__(self, job: jobs.Job, content: io.FileIO, size: int | None) -> None:
        super().__init__(headers={JOB_HEADER: str(job.number)})
        self._job = job
        self._content = content
        self._size = size

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Send head and body."""
        request = fastapi.Request(scope, receive)
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        if self._size is not None:
            headers.append((b"content-length", str(self._size).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with self._content:
            sent = 0
            while data := await anyio.to_thread.run_sync(self._content.read, _STEP):
                if await request.is_disconnected():
                    self._job.cancel()
                    return
                sent += len(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
        if self._size is None:
            await anyio.to_thread.run_sync(self._job.wait)  # it ends after its last byte
        if sent == self._size or (self._size is None and self._job.message().state == "done"):
            await send({"type": "http.response.body", "body": b""})
