# SPDX-License-Identifier: Apache-2.0
"""The requests for the nodes of shared volumes: list, expel."""

from __future__ import annotations

import fastapi

from target import messages
from target.control.options import Force
from target.service.service import Service


def routes(service: Service) -> fastapi.APIRouter:
    """Return the requests."""
    router = fastapi.APIRouter(prefix="/v1")

    @router.get("/volumes/{volume}/nodes")
    def nodes(volume: str) -> list[messages.Node]:
        """List the nodes of a shared volume, in order of name."""
        return service.nodes.list_nodes(volume)

    @router.delete("/volumes/{volume}/nodes/{name}")
    def expel(volume: str, name: str, force: Force = False) -> list[messages.Node]:
        """Expel a node from a shared volume, for good, and list the nodes.

        The node that serves the request, and one that nobody has seen, are refused, unless `force` is set.
        """
        return service.nodes.expel(volume, name, force=force)

    return router
