# SPDX-License-Identifier: Apache-2.0
"""The files of the page, which need no token because they hold no data, and the explanations of the alerts."""

from __future__ import annotations

import importlib.resources

import fastapi
from fastapi import responses

from target.explanations import EXPLANATIONS

_TYPES = {
    "index.html": "text/html",
    "wolun.js": "text/javascript",
    "wolun.css": "text/css",
    "icon.svg": "image/svg+xml",
}


def routes() -> fastapi.APIRouter:
    """Return the requests for the page."""
    router = fastapi.APIRouter(include_in_schema=False)
    files = importlib.resources.files("target.web") / "page"
    contents = {name: (files / name).read_bytes() for name in _TYPES}

    @router.get("/")
    def index() -> responses.Response:
        return responses.Response(contents["index.html"], media_type=_TYPES["index.html"])

    @router.get("/page/{name}")
    def file(name: str) -> responses.Response:
        if name not in contents:
            raise fastapi.HTTPException(404)
        return responses.Response(contents[name], media_type=_TYPES[name])

    @router.get("/v1/explanations")
    def explanations() -> dict[str, str]:
        return dict(EXPLANATIONS)

    return router
