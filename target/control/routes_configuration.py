# SPDX-License-Identifier: Apache-2.0
"""The requests for the configuration as a whole: save it, restore it, clear it.

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

    @router.post("/configuration/save")
    def save(request: messages.ConfigurationFile, dry_run: DryRun = False) -> messages.Saved:
        """Write the configuration in force into a file."""
        return admin.save(request, dry_run=dry_run)

    @router.post("/configuration/restore")
    def restore(
        request: messages.ConfigurationFile, force: Force = False, dry_run: DryRun = False
    ) -> list[messages.Outcome]:
        """Put the configuration of a file in force."""
        return admin.restore(request, force=force, dry_run=dry_run)

    @router.post("/configuration/clear")
    def clear(force: Force = False, dry_run: DryRun = False) -> list[messages.Outcome]:
        """Stop serving all volumes, and let no initiator log in."""
        return admin.clear(force=force, dry_run=dry_run)

    return router
