# SPDX-License-Identifier: Apache-2.0
"""Changes of the addresses that initiators connect to: `portal.listen`, or with `fabric: lio` `lio.listen`."""

from __future__ import annotations

import logging

from target.administration.in_force import InForce
from target.fabrics.fabric import CannotStart, Fabric
from target.service import problems

log = logging.getLogger(__name__)


class Portals:
    """The changes.  One caller at a time (see administration).  Every method raises Problem."""

    def __init__(self, fabric: Fabric, in_force: InForce) -> None:
        self._fabric = fabric
        self._in_force = in_force

    def create(self, address: str, *, dry_run: bool) -> None:
        """Listen on HOST:PORT in addition."""
        now, on_file = self._in_force.listening(self._in_force.settings), self._in_force.on_file.listen
        if not now.listen:
            raise problems.at_next_start("whether there is iSCSI at all")
        fields = {**now.model_dump(), "listen": (*now.listen, address)}
        after = problems.validated(type(now), fields, f"portal {address}")
        changed = self._in_force.settings.model_copy(update={self._in_force.group: after})
        for problem in changed.problems().values():
            raise problems.invalid(f"portal {address}", problem)
        if address in self._fabric.addresses():
            raise problems.invalid(f"portal {address}", "initiators connect there already")
        if dry_run:
            return
        try:
            self._fabric.listen(address)
        except CannotStart as error:
            remedy = error.remedy or "`ss -tlnp` lists the programs that listen, `ip address` this machine's addresses"
            raise problems.refused(f"portal {address}", error.reason, remedy) from error
        self._in_force.put_listening(after.listen, on_file if address in on_file else (*on_file, address))
        log.info("initiators can connect to %s", address)

    def delete(self, address: str, *, force: bool, dry_run: bool) -> None:
        """Stop listening on HOST:PORT, and end the sessions that came there."""
        addresses = list(self._fabric.addresses())
        if address not in addresses:
            raise problems.no_such_portal(address, addresses)
        unbound = self._fabric.unbound()
        if all(other == address or other in unbound for other in addresses):
            raise problems.in_use(f"portal {address}", ["all initiators: it is the only one"], "create another first")
        users = [] if force else self._fabric.users(address)
        if users:
            raise problems.in_use(f"portal {address}", users, problems.LOG_OUT)
        if dry_run:
            return
        try:
            self._fabric.unlisten(address)
        except CannotStart as error:
            raise problems.refused(f"portal {address}", str(error), "try again") from error
        now, on_file = self._in_force.listening(self._in_force.settings).listen, self._in_force.on_file.listen
        deleted = now[addresses.index(address)]
        self._in_force.put_listening(_without(now, deleted), _without(on_file, deleted) or on_file)
        log.info("initiators can no longer connect to %s", address)

    def forget(self, name: str, *, force: bool, dry_run: bool) -> None:
        """Delete a portal by the name that the configuration has for it, such as 127.0.0.1:0."""
        now = self._in_force.listening(self._in_force.settings).listen
        if name in now:
            self.delete(self._fabric.addresses()[now.index(name)], force=force, dry_run=dry_run)
        elif not dry_run:
            self._in_force.put_on_file(_without(self._in_force.on_file.listen, name))


def _without(listen: tuple[str, ...], address: str) -> tuple[str, ...]:
    return tuple(other for other in listen if other != address)
