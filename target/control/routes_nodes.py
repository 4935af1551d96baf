# SPDX-License-Identifier: Apache-2.0
"""The requests for shared volumes and their nodes: take part, leave, list, expel."""

from __future__ import annotations

import fastapi

from target import messages
from target.administration.administration import Administration
from target.control.options import DryRun, Force
from target.service.service import Service


def routes(service: Service, admin: Administration) -> fastapi.APIRouter:
    """Return the requests."""
    router = fastapi.APIRouter(prefix="/v1")

    @router.post("/shared", status_code=204)
    def share(request: messages.ShareVolume, dry_run: DryRun = False) -> None:
        """Take part in a shared volume. Its devices are opened in the background; the status and the alerts tell how that goes."""
        admin.share_volume(request, dry_run=dry_run)

    @router.delete("/shared/{volume}", status_code=204)
    def unshare(volume: str, force: Force = False, dry_run: DryRun = False) -> None:
        """Take part in a shared volume no longer. The volume, its snapshots and the other nodes stay as they are."""
        admin.unshare_volume(volume, force=force, dry_run=dry_run)

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
