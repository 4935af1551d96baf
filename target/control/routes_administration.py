# SPDX-License-Identifier: Apache-2.0
"""The requests for volumes, LUNs, reservations, portals and alerts.

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

    @router.get("/volumes")
    def volumes() -> list[messages.Volume]:
        """List the volumes, as they are served."""
        return admin.volumes()

    @router.get("/volumes/{name}")
    def volume(name: str) -> messages.Volume:
        """Show one volume, as it is served."""
        return admin.volume(name)

    @router.patch("/volumes/{name}", status_code=204)
    def change_volume(name: str, request: messages.ChangeVolume, force: Force = False, dry_run: DryRun = False) -> None:
        """Change a volume. Another LUN or durability withdraws it from initiators for a moment."""
        admin.change_volume(name, request, force=force, dry_run=dry_run)

    @router.post("/volumes/{name}/resize")
    def resize_volume(name: str, request: messages.ResizeVolume) -> messages.Volume:
        """Make a volume larger. The target reports it to initiators."""
        return admin.resize_volume(name, request.size)

    @router.post("/volumes/{name}/accept")
    def accept_volume(name: str, dry_run: DryRun = False) -> messages.Accepted:
        """Accept a volume as it is.

        Its doubtful snapshots count as true from now on. If the configuration does not name it, its data is left aside.
        """
        return admin.accept_volume(name, dry_run=dry_run)

    @router.post("/volumes/{name}/store", status_code=202)
    def set_store(name: str, request: messages.ChangeStore) -> messages.Job:
        """Let later snapshots have another store, and begin a job that converts existing ones.

        The result of the job is a Conversion.
        """
        job = admin.set_store(name, request)
        job.wait(0.2)
        return job.message()

    @router.post("/volumes/{name}/relocate")
    def relocate_volume(
        name: str, request: messages.Relocate, force: Force = False, dry_run: DryRun = False
    ) -> messages.Volume:
        """Take up the data of a volume that was renamed, or its primary in another place.

        With `force`, a primary that is not known to be the same is taken, and the snapshots become doubtful.
        """
        return admin.relocate_volume(name, request, force=force, dry_run=dry_run)

    @router.post("/volumes", status_code=204)
    def create_volume(request: messages.CreateVolume, force: Force = False, dry_run: DryRun = False) -> None:
        """Make a volume, or open it if its data exists, and serve it.

        A LUN under which an initiator that is logged in knows another unit is refused, unless `force` is set.
        """
        admin.create_volume(request, force=force, dry_run=dry_run)

    @router.delete("/volumes/{name}", status_code=204)
    def delete_volume(name: str, force: Force = False, data: bool = False, dry_run: DryRun = False) -> None:
        """Stop serving a volume. With `data`, remove its files in the state directory."""
        admin.delete_volume(name, force=force, data=data, dry_run=dry_run)

    @router.get("/volumes/{name}/configuration")
    def volume_text(name: str) -> messages.Text:
        """Show the volume as it would stand in a configuration file."""
        return admin.text_of("volume", name)

    @router.get("/luns")
    def luns() -> list[messages.Lun]:
        """List the logical units of the target."""
        return admin.luns()

    @router.get("/reservations")
    def reservations() -> list[messages.UnitReservations]:
        """List the reservations and registrations of all logical units."""
        return admin.reservations()

    @router.delete("/luns/{lun}/reservations", status_code=204)
    def clear_reservations(
        lun: int, initiator: str | None = None, force: Force = False, dry_run: DryRun = False
    ) -> None:
        """Remove the reservations and registrations of a unit, or only those of `initiator`."""
        admin.clear_reservations(lun, initiator, force=force, dry_run=dry_run)

    @router.post("/portals", status_code=204)
    def create_portal(request: messages.Portal, dry_run: DryRun = False) -> None:
        """Listen on one more address."""
        admin.create_portal(request.address, dry_run=dry_run)

    @router.delete("/portals/{address}", status_code=204)
    def delete_portal(address: str, force: Force = False, dry_run: DryRun = False) -> None:
        """Stop listening on an address."""
        admin.delete_portal(address, force=force, dry_run=dry_run)

    @router.get("/alerts")
    def alerts() -> list[messages.Alert]:
        """List the conditions that need the administrator's attention."""
        return admin.alerts()

    return router
