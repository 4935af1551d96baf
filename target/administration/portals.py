# SPDX-License-Identifier: Apache-2.0
"""Where initiators connect, changed while they do: `portal.listen`, or with `fabric: lio` `lio.listen`.

The settings may call a portal otherwise than it is (`127.0.0.1:0`), and `--portal` may stand in for what the file says; so
`on_file` is kept apart from `Inventory.settings`, whose portals are those of the fabric, in the same order.
"""

from __future__ import annotations

import logging

from target.configuration import settings
from target.fabrics import fabric as fabrics
from target.service import problems
from target.service.service import Service

log = logging.getLogger(__name__)


class Portals:
    """One caller at a time.  Everything raises Problem."""

    def __init__(self, service: Service, fabric: fabrics.Fabric, on_file: settings.Settings) -> None:
        self._service = service
        self._fabric = fabric
        self.group = "lio" if service.inventory.settings.fabric is settings.Fabric.LIO else "portal"
        """The key of the settings that says where to listen."""
        self.on_file = self.of(on_file)

    def of(self, configured: settings.Settings) -> settings.Portal | settings.Lio:
        """The group of settings that says where to listen."""
        found: settings.Portal | settings.Lio = getattr(configured, self.group)
        return found

    def create(self, address: str, *, dry_run: bool) -> None:
        """Let initiators connect at HOST:PORT, too."""
        now, on_file = self.of(self._service.inventory.settings), self.on_file.listen
        if not now.listen:
            raise problems.at_next_start("whether there is iSCSI at all")
        fields = {**now.model_dump(), "listen": (*now.listen, address)}
        after = problems.validated(type(now), fields, f"portal {address}")
        for what in self._service.inventory.settings.model_copy(update={self.group: after}).problems().values():
            raise problems.invalid(f"portal {address}", what)
        if address in self._service.inventory.fabric.addresses():
            raise problems.invalid(f"portal {address}", "initiators connect there already")
        if dry_run:
            return
        try:
            self._fabric.listen(address)
        except fabrics.CannotStart as error:
            remedy = error.remedy or "`ss -tlnp` lists who listens, `ip address` the addresses of this machine"
            raise problems.refused(f"portal {address}", error.reason, remedy) from error
        self._put_in_force(after.listen, on_file if address in on_file else (*on_file, address))
        log.info("initiators can connect to %s", address)

    def delete(self, address: str, *, force: bool, dry_run: bool) -> None:
        """Let initiators connect at HOST:PORT no more."""
        there = list(self._service.inventory.fabric.addresses())
        if address not in there:
            raise problems.no_such_portal(address, there)
        if len(there) == 1:
            raise problems.in_use(f"portal {address}", ["everybody: it is the only one"], "create another first")
        users = [] if force else self._fabric.users(address)
        if users:
            raise problems.in_use(f"portal {address}", users, "log them out first, or say force=true")
        if dry_run:
            return
        try:
            self._fabric.unlisten(address)
        except fabrics.CannotStart as error:
            raise problems.refused(f"portal {address}", str(error), "say it again") from error
        now, on_file = self.of(self._service.inventory.settings).listen, self.on_file.listen
        gone = now[there.index(address)]
        self._put_in_force(_without(now, gone), _without(on_file, gone) or on_file)
        log.info("initiators can connect to %s no more", address)

    def forget(self, name: str, force: bool, dry_run: bool) -> None:
        """The same for a portal by the name that the file has for it."""
        now = self.of(self._service.inventory.settings).listen
        if name in now:
            self.delete(self._service.inventory.fabric.addresses()[now.index(name)], force=force, dry_run=dry_run)
        elif not dry_run:
            self.on_file = self.on_file.model_copy(update={"listen": _without(self.on_file.listen, name)})

    def _put_in_force(self, now: tuple[str, ...], on_file: tuple[str, ...]) -> None:
        in_force = self.of(self._service.inventory.settings).model_copy(update={"listen": now})
        self._service.inventory.put_settings(self._service.inventory.settings.model_copy(update={self.group: in_force}))
        self.on_file = self.on_file.model_copy(update={"listen": on_file})


def _without(listen: tuple[str, ...], gone: str) -> tuple[str, ...]:
    return tuple(each for each in listen if each != gone)
