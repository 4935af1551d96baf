# SPDX-License-Identifier: Apache-2.0
"""The control socket's requests that change what is served: `administration.Administration` over HTTP.

Each takes `dry_run`: then it is checked in full, and not done.
"""

from __future__ import annotations

from typing import Annotated

import fastapi

from target import messages
from target.administration.administration import Administration

REFUSALS: dict[int | str, dict[str, object]] = {"default": {"model": messages.Refusal}}

DryRun = Annotated[bool, fastapi.Query(description="Check everything and change nothing.")]
Force = Annotated[bool, fastapi.Query(description="Even if somebody uses it.")]


def routes(admin: Administration) -> fastapi.APIRouter:
    """The requests there are."""
    router = fastapi.APIRouter(prefix="/v1", responses=REFUSALS)

    @router.get("/volumes")
    def volumes() -> list[messages.Volume]:
        """The volumes, as they are served."""
        return admin.volumes()

    @router.get("/volumes/{name}")
    def volume(name: str) -> messages.Volume:
        """One volume, as it is served."""
        return admin.volume(name)

    @router.patch("/volumes/{name}", status_code=204)
    def change_volume(name: str, request: messages.ChangeVolume, force: Force = False, dry_run: DryRun = False) -> None:
        """Change a volume; for another LUN or durability it is gone for a moment."""
        admin.change_volume(name, request, force=force, dry_run=dry_run)

    @router.post("/volumes/{name}/resize")
    def resize_volume(name: str, request: messages.ResizeVolume) -> messages.Volume:
        """Make a volume larger; initiators are told."""
        return admin.resize_volume(name, request.size)

    @router.post("/volumes", status_code=204)
    def create_volume(request: messages.CreateVolume, dry_run: DryRun = False) -> None:
        """Make a volume, or take up one whose data is there, and serve it."""
        admin.create_volume(request, dry_run=dry_run)

    @router.delete("/volumes/{name}", status_code=204)
    def delete_volume(name: str, force: Force = False, data: bool = False, dry_run: DryRun = False) -> None:
        """Serve a volume no more; with `data`, remove its files in the state directory."""
        admin.delete_volume(name, force=force, data=data, dry_run=dry_run)

    @router.get("/volumes/{name}/configuration")
    def volume_text(name: str) -> messages.Text:
        """The volume as it would stand in a configuration file."""
        return admin.text_of("volume", name)

    @router.get("/luns")
    def luns() -> list[messages.Lun]:
        """The logical units of the target."""
        return admin.luns()

    @router.post("/portals", status_code=204)
    def create_portal(request: messages.Portal, dry_run: DryRun = False) -> None:
        """Let initiators connect there, too."""
        admin.create_portal(request.address, dry_run=dry_run)

    @router.delete("/portals/{address}", status_code=204)
    def delete_portal(address: str, force: Force = False, dry_run: DryRun = False) -> None:
        """Let initiators connect there no more."""
        admin.delete_portal(address, force=force, dry_run=dry_run)

    @router.get("/alerts")
    def alerts() -> list[messages.Alert]:
        """What needs somebody's attention."""
        return admin.alerts()

    @router.get("/access")
    def access() -> messages.Access:
        """Who may log in."""
        return admin.who()

    @router.patch("/access", status_code=204)
    def change_access(request: messages.ChangeAccess, force: Force = False, dry_run: DryRun = False) -> None:
        """Change what holds for all initiators."""
        admin.change_access(request, force=force, dry_run=dry_run)

    @router.post("/access/initiators", status_code=204)
    def create_initiator(request: messages.Initiator, force: Force = False, dry_run: DryRun = False) -> None:
        """Let an initiator, or those whose names fit a pattern, log in."""
        admin.put_initiator(request.name, request, create=True, force=force, dry_run=dry_run)

    @router.put("/access/initiators/{name}", status_code=204)
    def change_initiator(name: str, request: messages.Initiator, force: Force = False, dry_run: DryRun = False) -> None:
        """Change where an initiator may come from and what it sees."""
        admin.put_initiator(name, request, create=False, force=force, dry_run=dry_run)

    @router.delete("/access/initiators/{name}", status_code=204)
    def delete_initiator(name: str, force: Force = False, dry_run: DryRun = False) -> None:
        """Take an initiator's entry away."""
        admin.delete_initiator(name, force=force, dry_run=dry_run)

    @router.get("/access/initiators/{name}/configuration")
    def initiator_text(name: str) -> messages.Text:
        """The entry as it would stand in a configuration file."""
        return admin.text_of("initiator", name)

    @router.put("/access/initiators/{name}/auth", status_code=204)
    def set_auth(name: str, request: messages.SetAuth, dry_run: DryRun = False) -> None:
        """Have an initiator prove itself by CHAP."""
        admin.set_auth(name, request, dry_run=dry_run)

    @router.delete("/access/initiators/{name}/auth", status_code=204)
    def clear_auth(name: str, dry_run: DryRun = False) -> None:
        """Let an initiator in without proof."""
        admin.set_auth(name, None, dry_run=dry_run)

    @router.post("/configuration/save")
    def save(request: messages.ConfigurationFile, dry_run: DryRun = False) -> messages.Saved:
        """Write what is in force into a configuration file."""
        return admin.save(request, dry_run=dry_run)

    @router.post("/configuration/restore")
    def restore(
        request: messages.ConfigurationFile, force: Force = False, dry_run: DryRun = False
    ) -> list[messages.Outcome]:
        """Make the system what a configuration file says."""
        return admin.restore(request, force=force, dry_run=dry_run)

    @router.post("/configuration/clear")
    def clear(force: Force = False, dry_run: DryRun = False) -> list[messages.Outcome]:
        """Serve nothing to nobody."""
        return admin.clear(force=force, dry_run=dry_run)

    return router
