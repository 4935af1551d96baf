# SPDX-License-Identifier: Apache-2.0
"""The control socket: HTTP and JSON on a Unix socket that only the daemon's own user can open.

It has a thread and an event loop of its own and shares neither with the data path; requests run on a few threads more.
/openapi.json describes it, /metrics is for Prometheus.  Every refusal is a `messages.Refusal`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Annotated

import fastapi
import prometheus_client
import uvicorn
from fastapi import exceptions, responses
from starlette.exceptions import HTTPException

import target
from target import codec, messages, places
from target.administration import administration
from target.control import metrics, routes_administration, routes_snapshots
from target.exports import jobs as backups
from target.service import jobs, problems, service

MAX_WAIT_SECONDS = 10.0
STOP_SECONDS = 5


def application(served: service.Service, admin: administration.Administration) -> fastapi.FastAPI:
    """The requests there are."""
    app = fastapi.FastAPI(title="wolun", version=target.VERSION, docs_url=None, redoc_url=None)
    registry = prometheus_client.CollectorRegistry()
    registry.register(metrics.Collector(served))
    refusals: dict[int | str, dict[str, object]] = {"default": {"model": messages.Refusal}}

    @app.exception_handler(problems.Problem)
    def refuse(_: fastapi.Request, problem: problems.Problem) -> responses.JSONResponse:
        return _refusal(problem)

    @app.exception_handler(exceptions.RequestValidationError)
    def invalid(_: fastapi.Request, error: exceptions.RequestValidationError) -> responses.JSONResponse:
        first = error.errors()[0]
        return _refusal(problems.bad_request(".".join(map(str, first["loc"])), first["msg"]))

    @app.exception_handler(HTTPException)
    def unknown(request: fastapi.Request, error: HTTPException) -> responses.JSONResponse:
        return _refusal(problems.no_such_request(request.method, request.url.path, error.status_code))

    @app.exception_handler(Exception)
    def unforeseen(_: fastapi.Request, error: Exception) -> responses.JSONResponse:
        return _refusal(problems.internal(error))  # uvicorn logs the traceback

    @app.get("/v1/status", responses=refusals)
    def status() -> messages.Status:
        """Volumes, sessions, throughput, space, trouble."""
        return served.status()

    @app.get("/v1/snapshots", responses=refusals)
    def all_snapshots() -> list[messages.Snapshot]:
        """The snapshots of all volumes, oldest first."""
        return list(served.snapshots())

    @app.get("/v1/volumes/{volume}/snapshots", responses=refusals)
    def snapshots(volume: str) -> list[messages.Snapshot]:
        """The snapshots of a volume, oldest first."""
        return list(served.snapshots(volume))

    @app.post("/v1/volumes/{volume}/snapshots", status_code=201, responses=refusals)
    def create_snapshot(volume: str, request: messages.CreateSnapshot) -> messages.Taken:
        """Take a snapshot; its LUNs are there when the answer is."""
        return served.create_snapshot(volume, request.name, request.labels)

    @app.get("/v1/volumes/{volume}/snapshots/{name}", responses=refusals)
    def snapshot(volume: str, name: str) -> messages.SnapshotDetails:
        """One snapshot."""
        return served.snapshot(volume, name)

    @app.get("/v1/volumes/{volume}/snapshots/{name}/changes", responses=refusals)
    def changes(
        volume: str, name: str, cells: Annotated[int, fastapi.Query(ge=1, le=service.MAX_CELLS)] = 1024
    ) -> messages.Changes:
        """Which parts of the volume have changed since."""
        return served.changes(volume, name, cells)

    @app.post("/v1/volumes/{volume}/snapshots/{name}/export", status_code=202, responses=refusals)
    def export(volume: str, name: str, request: messages.Export) -> messages.Job:
        """Write the snapshot's content into a file on the daemon's machine: a job."""
        return backups.export(served, volume, name, request).message()

    @app.delete("/v1/volumes/{volume}/snapshots/{name}", status_code=202, responses=refusals)
    def delete_snapshot(volume: str, name: str) -> messages.Job:
        """Delete the snapshot: a job, which often has ended already when the answer comes."""
        job = served.delete_snapshot(volume, name)
        job.wait(0.2)
        return job.message()

    @app.post("/v1/groups", status_code=201, responses=refusals)
    def create_group(request: messages.CreateGroup) -> list[messages.Taken]:
        """Take snapshots of several volumes at one moment: all of them, or none."""
        return served.create_group(request.name, request.volumes, request.labels)

    @app.post("/v1/volumes/{volume}/snapshots/{name}/restore", status_code=202, responses=refusals)
    def restore_snapshot(volume: str, name: str, force: bool = False) -> messages.Job:
        """Roll the volume back to the snapshot: a job.  Once `total` is not 0 it has taken effect and cannot be cancelled.
        Refused while initiators reach the volume, unless `force`.
        """
        job = served.reshaping.restore(volume, name, force=force)
        job.wait(0.2)
        return job.message()

    @app.get("/v1/jobs", responses=refusals)
    def all_jobs() -> list[messages.Job]:
        """The jobs that run, and the last ones that ended."""
        return [job.message() for job in served.jobs.all()]

    @app.get("/v1/jobs/{number}", responses=refusals)
    def one_job(number: int, wait: Annotated[float, fastapi.Query(ge=0, le=MAX_WAIT_SECONDS)] = 0) -> messages.Job:
        """One job; the answer comes when it has ended, or after `wait` seconds."""
        job: jobs.Job = served.jobs.job(number)
        job.wait(wait)
        return job.message()

    @app.delete("/v1/jobs/{number}", responses=refusals)
    def cancel(number: int) -> messages.Job:
        """Ask a job to stop."""
        job = served.jobs.job(number)
        job.cancel()
        return job.message()

    app.include_router(routes_snapshots.routes(served))
    app.include_router(routes_administration.routes(admin))

    @app.get("/metrics", response_class=responses.PlainTextResponse)
    def metrics_page() -> responses.Response:
        """Counters and gauges for Prometheus."""
        text = prometheus_client.generate_latest(registry)
        return responses.Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return app


def _refusal(problem: problems.Problem) -> responses.JSONResponse:
    body = messages.Refusal(problem.code, problem.message, problem.remedy)
    return responses.JSONResponse(codec.encode(body), status_code=problem.status)


class ControlSocket:
    """The application on its socket, from `start` to `close`.

    The caller holds the state directory's lock, so a socket that is found there is what a killed daemon left.
    """

    def __init__(self, served: service.Service, admin: administration.Administration, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(served, admin),
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="control-socket", daemon=True)

    def start(self) -> None:
        """Listen, and answer from a thread.  Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode of a socket's file is that of the socket when it is bound, so nobody else can ever connect.
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
        """Answer what was asked, then stop."""
        with contextlib.suppress(FileNotFoundError):
            (self._state_dir / places.SOCKET).unlink()
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        if self._socket is not None:
            self._server.run(sockets=[self._socket])
