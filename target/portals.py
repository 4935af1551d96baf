# SPDX-License-Identifier: Apache-2.0
"""Where initiators connect, changed while they do: the portals of `fabric: portal`.

The settings may call a portal otherwise than it is (`127.0.0.1:0`), and `--portal` may stand in for what the file says; so
`on_file` is kept apart from `Service.settings`, whose portals are those of the fabric, in the same order.
"""

from __future__ import annotations

import logging

from target import fabrics, problems, service, settings

log = logging.getLogger(__name__)


class Portals:
    """One caller at a time.  Everything raises Problem."""

    def __init__(self, served: service.Service, fabric: fabrics.Fabric, on_file: settings.Portal) -> None:
        self._served = served
        self._fabric = fabric
        self.on_file = on_file

    def create(self, address: str, *, dry_run: bool) -> None:
        """Let initiators connect at HOST:PORT, too."""
        self._check_fabric()
        now, on_file = self._served.settings.portal.listen, self.on_file.listen
        after = problems.validated(settings.Portal, {"listen": (*now, address)}, f"portal {address}")
        if address in self._served.portal_addresses():
            raise problems.invalid(f"portal {address}", "initiators connect there already")
        if dry_run:
            return
        try:
            self._fabric.listen(address)
        except fabrics.CannotStart as error:
            raise problems.refused(f"portal {address}", str(error), "`ss -tlnp` lists who listens") from error
        self._put_in_force(after.listen, on_file if address in on_file else (*on_file, address))
        log.info("initiators can connect to %s", address)

    def delete(self, address: str, *, force: bool, dry_run: bool) -> None:
        """Let initiators connect at HOST:PORT no more."""
        self._check_fabric()
        there = list(self._served.portal_addresses())
        if address not in there:
            raise problems.no_such_portal(address, there)
        if len(there) == 1:
            raise problems.in_use(f"portal {address}", ["everybody: it is the only one"], "create another first")
        users = [f"{each.initiator} from {each.address}" for each in self._served.sessions() if each.portal == address]
        if users and not force:
            raise problems.in_use(f"portal {address}", users, "log them out first, or say force=true")
        if dry_run:
            return
        self._fabric.unlisten(address)
        now, on_file = self._served.settings.portal.listen, self.on_file.listen
        gone = now[there.index(address)]
        self._put_in_force(_without(now, gone), _without(on_file, gone) or on_file)
        log.info("initiators can connect to %s no more", address)

    def forget(self, name: str, force: bool, dry_run: bool) -> None:
        """The same for a portal by the name that the file has for it."""
        now = self._served.settings.portal.listen
        if name in now:
            self.delete(self._served.portal_addresses()[now.index(name)], force=force, dry_run=dry_run)
        elif not dry_run:
            self.on_file = settings.Portal(listen=_without(self.on_file.listen, name))

    def _check_fabric(self) -> None:
        if self._served.settings.fabric is settings.Fabric.LIO:
            raise problems.at_next_start("where the kernel's target listens")

    def _put_in_force(self, now: tuple[str, ...], on_file: tuple[str, ...]) -> None:
        self._served.settings = self._served.settings.model_copy(update={"portal": settings.Portal(listen=now)})
        self.on_file = settings.Portal(listen=on_file)


def _without(listen: tuple[str, ...], gone: str) -> tuple[str, ...]:
    return tuple(each for each in listen if each != gone)
