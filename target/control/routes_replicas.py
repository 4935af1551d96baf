# SPDX-License-Identifier: Apache-2.0
"""The requests for framed streams: send a snapshot, receive one into a volume, make a replica an ordinary volume."""

from __future__ import annotations

import os

import anyio.to_thread
import fastapi
from fastapi import responses
from starlette.requests import ClientDisconnect

from target import messages
from target.administration.administration import Administration
from target.control import job_stream
from target.exports import sending
from target.service import problems
from target.service.jobs import Job
from target.service.service import Service


def routes(service: Service, admin: Administration) -> fastapi.APIRouter:
    """Return the requests."""
    router = fastapi.APIRouter(prefix="/v1")

    @router.post("/volumes/{volume}/snapshots/{name}/send", response_class=responses.StreamingResponse)
    def send(volume: str, name: str, request: messages.Send) -> fastapi.Response:
        """Answer with a framed stream of the snapshot, and name the job that reads it in the header `Wolun-Job`.

        If the job fails, the connection breaks, and the stream has no end.
        """
        planned = sending.planned(service, volume, name, request)
        return job_stream.JobStream(*sending.open_stream(service, planned), None)

    @router.post("/resume", response_class=responses.StreamingResponse)
    def resume(request: messages.Resume) -> fastapi.Response:
        """Answer with the rest of a framed stream that was interrupted."""
        planned = sending.resumed(service, request)
        return job_stream.JobStream(*sending.open_stream(service, planned), None)

    @router.get("/volumes/{volume}/replica")
    def replica(volume: str) -> messages.Replica:
        """Show which snapshots a volume has as bases of streams, and where an interrupted one goes on."""
        return admin.replica(volume)

    @router.post("/volumes/{volume}/receive", status_code=202)
    def receive(volume: str, request: messages.Receive) -> messages.Job:
        """Begin a job that receives a framed stream into the volume, which is made if there is none.

        The request describes the stream; then `/jobs/{number}/content` sends it, from its first byte on.
        """
        return admin.receive(volume, request).message()

    @router.post(
        "/jobs/{number}/content", openapi_extra={"requestBody": {"content": {"application/vnd.wolun.stream": {}}}}
    )
    async def content(number: int, request: fastapi.Request) -> messages.Job:
        """Send a job the content that it waits for.  The job is cancelled if the client goes away."""
        job = service.jobs.job(number)
        pipe, job.input = job.input, None
        if pipe is None:
            raise problems.no_input(number)
        job.hold()
        try:
            with pipe:
                async for data in request.stream():
                    await anyio.to_thread.run_sync(_write, pipe.fileno(), data)
        except ClientDisconnect:
            job.cancel()
        except BrokenPipeError:
            pass  # the job has ended, and says why
        await anyio.to_thread.run_sync(job.wait)
        return job.message()

    @router.post("/volumes/{volume}/promote", status_code=202)
    def promote(volume: str) -> messages.Job:
        """Begin a job that lets a replica take writes.  It follows its source no longer."""
        job: Job = admin.promote_volume(volume)
        job.wait(0.2)
        return job.message()

    return router


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
