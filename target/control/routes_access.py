# SPDX-License-Identifier: Apache-2.0
"""The requests for access: who may log in, and what each initiator sees.

With `dry_run`, a request is checked in full and not carried out.
"""

from __future__ import annotations

import fastapi

from target import messages
from target.administration.administration import Administration
from target.control.options import DryRun, Force


def routes(admin: Administration) -> fastapi.APIRouter:
    """Return the requests."""
    router = fastapi.APIRouter(prefix="/v1")

    @router.get("/access")
    def access() -> messages.Access:
        """Show who may log in."""
        return admin.who()

    @router.patch("/access", status_code=204)
    def change_access(request: messages.ChangeAccess, force: Force = False, dry_run: DryRun = False) -> None:
        """Change the rules that hold for all initiators."""
        admin.change_access(request, force=force, dry_run=dry_run)

    @router.post("/access/initiators", status_code=204)
    def create_initiator(request: messages.Initiator, force: Force = False, dry_run: DryRun = False) -> None:
        """Let an initiator log in, or those whose names fit a pattern."""
        admin.put_initiator(request.name, request, create=True, force=force, dry_run=dry_run)

    @router.put("/access/initiators/{name}", status_code=204)
    def change_initiator(name: str, request: messages.Initiator, force: Force = False, dry_run: DryRun = False) -> None:
        """Change where an initiator may come from and what it sees."""
        admin.put_initiator(name, request, create=False, force=force, dry_run=dry_run)

    @router.delete("/access/initiators/{name}", status_code=204)
    def delete_initiator(name: str, force: Force = False, dry_run: DryRun = False) -> None:
        """Remove an initiator's entry."""
        admin.delete_initiator(name, force=force, dry_run=dry_run)

    @router.get("/access/initiators/{name}/configuration")
    def initiator_text(name: str) -> messages.Text:
        """Show the entry as it would stand in a configuration file."""
        return admin.text_of("initiator", name)

    @router.put("/access/initiators/{name}/auth", status_code=204)
    def set_auth(name: str, request: messages.SetAuth, dry_run: DryRun = False) -> None:
        """Make an initiator prove itself by CHAP."""
        admin.set_auth(name, request, dry_run=dry_run)

    @router.delete("/access/initiators/{name}/auth", status_code=204)
    def clear_auth(name: str, dry_run: DryRun = False) -> None:
        """Let an initiator log in without proof."""
        admin.set_auth(name, None, dry_run=dry_run)

    return router
