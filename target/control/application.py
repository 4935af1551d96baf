# SPDX-License-Identifier: Apache-2.0
"""The application behind the control socket: all requests, in HTTP and JSON.

Requests run on a few threads of their own.  /openapi.json describes them, /metrics is for Prometheus.  Each refusal is a
`messages.Refusal`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import fastapi
import prometheus_client
from fastapi import exceptions, responses
from starlette.exceptions import HTTPException

import target
from target import codec, messages
from target.administration import administration
from target.control import (
    metrics,
    routes_access,
    routes_administration,
    routes_configuration,
    routes_jobs,
    routes_nodes,
    routes_replicas,
    routes_snapshots,
)
from target.control.client import STREAM
from target.service import problems
from target.service.service import Service

REFUSALS: dict[int | str, dict[str, object]] = {"default": {"model": messages.Refusal}}


def application(service: Service, admin: administration.Administration) -> fastapi.FastAPI:
    """Return the application with all its requests."""
    app = fastapi.FastAPI(
        title="wolun",
        version=target.VERSION,
        docs_url=None,
        redoc_url=None,
        dependencies=[fastapi.Depends(_refuse_odd_text)],
    )
    _explain_refusals(app)

    @app.get("/v1/status", responses=REFUSALS)
    def status() -> messages.Status:
        """Show volumes, sessions, throughput, space and trouble."""
        return service.status.status()

    for router in (
        routes_snapshots.routes(service),
        routes_nodes.routes(service, admin),
        routes_replicas.routes(service, admin),
        routes_jobs.routes(service.jobs),
        routes_administration.routes(admin),
        routes_access.routes(admin),
        routes_configuration.routes(admin),
    ):
        app.include_router(router, responses=REFUSALS)

    registry = prometheus_client.CollectorRegistry()
    registry.register(metrics.Collector(service))

    @app.get("/metrics", response_class=responses.PlainTextResponse)
    def metrics_page() -> responses.Response:
        """Show counters and gauges, for Prometheus."""
        text = prometheus_client.generate_latest(registry)
        return responses.Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return app


async def _refuse_odd_text(request: fastapi.Request) -> None:
    """Refuse a request that has text which is no name of anything, and which no answer could repeat.  Raise Problem.

    The content of a stream is no text, and is never in memory as a whole.
    """
    if request.headers.get("content-type") == STREAM:
        return
    with contextlib.suppress(ValueError, RecursionError):  # text that is no JSON is refused elsewhere
        for where, text in _texts(json.loads(await request.body() or b"null")):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise problems.bad_request(where, "it has a character that is not valid in UTF-8") from None
            if "\0" in text:
                raise problems.bad_request(where, "it has a NUL character")


def _texts(content: object) -> Iterator[tuple[str, str]]:
    """Yield (place, text) for each text in a request, keys included."""
    left = [("body", content)]
    while left:
        where, value = left.pop()
        if isinstance(value, str):
            yield where, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield where, key
                left.append((f"{where}.{key}", inner))
        elif isinstance(value, list):
            left += [(f"{where}.{index}", inner) for index, inner in enumerate(value)]


def _explain_refusals(app: fastapi.FastAPI) -> None:
    """Answer each error, foreseen or not, with a refusal."""

    @app.exception_handler(problems.Problem)
    def refuse(_: fastapi.Request, problem: problems.Problem) -> responses.Response:
        return _refusal(problem)

    @app.exception_handler(exceptions.RequestValidationError)
    def invalid(_: fastapi.Request, error: exceptions.RequestValidationError) -> responses.Response:
        first = error.errors()[0]
        return _refusal(problems.bad_request(".".join(map(str, first["loc"])), first["msg"]))

    @app.exception_handler(HTTPException)
    def unknown(request: fastapi.Request, error: HTTPException) -> responses.Response:
        return _refusal(problems.no_such_request(request.method, request.url.path, error.status_code))

    @app.exception_handler(Exception)
    def unforeseen(_: fastapi.Request, error: Exception) -> responses.Response:
        return _refusal(problems.internal(error))  # uvicorn logs the traceback


def _refusal(problem: problems.Problem) -> responses.Response:
    body = messages.Refusal(problem.code, problem.message, problem.remedy)
    # In ASCII, so that a name from outside can be repeated whatever it has.
    text = json.dumps(codec.encode(body))
    return responses.Response(text, status_code=problem.status, media_type="application/json")
