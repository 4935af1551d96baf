# SPDX-License-Identifier: Apache-2.0
"""Changes of access: who may log in, how they prove it, and what they see.

A change of the rules reaches the fabric first, then the sessions.  Sessions that may no longer be logged in end.  Every
other session sees the LUNs of its new rule from its next command on.
"""

from __future__ import annotations

import logging
from typing import Any

from target import codec, messages
from target.administration.in_force import InForce
from target.administration.secrets import Secrets
from target.configuration import settings
from target.fabrics import access
from target.fabrics.fabric import CannotStart, Fabric
from target.scsi.nexus import sees_nothing
from target.service import problems
from target.service.inventory import Inventory

log = logging.getLogger(__name__)


class AccessChanges:
    """The changes.  One caller at a time (see administration).  Every method raises Problem."""

    def __init__(self, inventory: Inventory, fabric: Fabric, in_force: InForce) -> None:
        self._inventory = inventory
        self._fabric = fabric
        self._in_force = in_force
        self._secrets = Secrets(inventory.state_dir)

    def change(self, request: messages.ChangeAccess, *, force: bool, dry_run: bool) -> None:
        """Change the rules of `access` that hold for all initiators."""
        now = self._in_force.settings.access
        fields = now.model_dump(mode="json")
        if request.networks is not None:
            fields["networks"] = request.networks
        if request.discovery_chap is not None:
            fields["discovery_chap"] = request.discovery_chap
        if request.anybody is not None:
            if request.anybody and now.initiators:
                names = [initiator.name for initiator in now.initiators]
                raise problems.in_use("the list of initiators", names, "delete them first")
            fields["initiators"] = None if request.anybody else (now.initiators and fields["initiators"]) or ()
        self.become(problems.validated(settings.Access, fields, "access"), force=force, dry_run=dry_run)

    def create_initiator(self, request: messages.Initiator, *, force: bool, dry_run: bool) -> None:
        """Create an entry."""
        known = self._in_force.settings.access.initiators or ()
        created = self._validated(request)
        if any(initiator.name.lower() == created.name.lower() for initiator in known):
            raise problems.invalid(f"initiator {created.name}", "there is an entry of this name already")
        self._check_units(created)
        self._become_with((*known, created), force=force, dry_run=dry_run)

    def change_initiator(self, name: str, request: messages.Initiator, *, force: bool, dry_run: bool) -> None:
        """Change the entry of that name."""
        changed = self._validated(request, name)
        before = self._in_force.initiator(name)
        self._check_units(changed)
        self._replace(before, changed, force=force, dry_run=dry_run)

    def delete_initiator(self, name: str, *, force: bool, dry_run: bool) -> None:
        """Delete an entry, and its secrets if `set auth` stored them."""
        deleted = self._in_force.initiator(name)
        known = self._in_force.settings.access.initiators or ()
        left = tuple(initiator for initiator in known if initiator is not deleted)
        self._become_with(left, force=force, dry_run=dry_run)
        if not dry_run:
            self._forget_secrets(deleted)

    def set_auth(self, name: str, request: messages.SetAuth | None, *, dry_run: bool) -> None:
        """Require CHAP of an initiator from its next login on, or (None) no longer.  Its sessions stay."""
        before = self._in_force.initiator(name)
        if request is None:
            self._replace(before, before.model_copy(update={"chap": None}), force=True, dry_run=dry_run)
            if not dry_run:
                self._forget_secrets(before)
            return
        chap = self._chap(name, request)
        try:
            proof = access.credentials_of(chap, request.secret, request.target_secret)
            self._inventory.access.rules.check_apart(before.name, proof)
        except access.SecretFileRefused as refused:
            raise problems.invalid(f"the CHAP of {name}", str(refused)) from None
        if dry_run:
            return
        with problems.translated(f"the secrets of {name} cannot be stored"):
            self._secrets.keep(name, request.secret, request.target_secret)
        self._replace(before, before.model_copy(update={"chap": chap}), force=True, dry_run=False)

    def _forget_secrets(self, initiator: settings.Initiator) -> None:
        """Remove the secrets that `set auth` stored for an initiator, unless an entry in force names their files."""
        entries = self._in_force.settings.access.initiators or ()
        self._secrets.forget(
            initiator.name, initiator.chap, [entry.chap for entry in entries if entry.chap is not None]
        )

    def _chap(self, name: str, request: messages.SetAuth) -> settings.Chap:
        file, target_file = self._secrets.files(name)
        fields: dict[str, Any] = {"name": request.name, "secret_file": str(file)}
        if request.target_name is not None:
            fields |= {"target_name": request.target_name, "target_secret_file": str(target_file)}
        return problems.validated(settings.Chap, fields, f"the CHAP of {name}")

    def _validated(self, request: messages.Initiator, name: str | None = None) -> settings.Initiator:
        return problems.validated(settings.Initiator, codec.encode(request), f"initiator {name or request.name}")

    def _replace(self, before: settings.Initiator, after: settings.Initiator, *, force: bool, dry_run: bool) -> None:
        known = self._in_force.settings.access.initiators or ()
        changed = tuple(after if initiator is before else initiator for initiator in known)
        self._become_with(changed, force=force, dry_run=dry_run)

    def _become_with(self, initiators: tuple[settings.Initiator, ...], *, force: bool, dry_run: bool) -> None:
        now = self._in_force.settings.access
        self.become(now.model_copy(update={"initiators": initiators}), force=force, dry_run=dry_run)

    def _check_units(self, initiator: settings.Initiator) -> None:
        """Raise Problem if a mapping names no unit.

        A mapping that another entry has, too, is accepted: its unit may have been a snapshot that was deleted.
        """
        known = {access.unit_name(unit) for unit in self._inventory.scsi.luns.values()}
        for other in self._in_force.settings.access.initiators or ():
            known |= {mapped.unit for mapped in other.luns or ()}
        for mapped in initiator.luns or ():
            if mapped.unit not in known:
                raise problems.no_such_unit(mapped.unit, sorted(known))

    def become(self, wanted: settings.Access, *, force: bool, dry_run: bool) -> None:
        """Put another `access` in force.  Unless `force`, no session may end or lose a LUN by that."""
        changed = self._in_force.with_access(wanted)
        rules = access.Rules.read(wanted, self._inventory.state_dir)
        if not force:
            self._refuse_if_missed(rules)
        if dry_run:
            return
        before = self._in_force.settings.access
        self.apply(rules)
        self._in_force.put(changed)
        log.info("access changed: %s", _told(wanted))
        if before.initiators is None and before.networks and wanted.initiators is not None:
            networks = ", ".join(map(str, before.networks))
            log.warning("all other initiators from %s are locked out: until now each of them could log in", networks)

    def _refuse_if_missed(self, rules: access.Rules) -> None:
        """Raise Problem if a session would end, or lose a LUN."""
        sessions = self._inventory.fabric.sessions()
        ended = [session for session in sessions if not rules.keeps(session.initiator, session.address)]
        if ended:
            users = [
                f"{session.initiator} from {session.address}" if session.address else session.initiator
                for session in ended
            ]
            raise problems.in_use("the right to log in", users, problems.LOG_OUT)
        luns, users = self._inventory.scsi.luns, []
        for initiator in sorted({session.initiator for session in sessions if session.target is not None}):
            left = rules.seen(initiator, luns)
            seen = self._inventory.access.rules.seen(initiator, luns)
            users += [f"{initiator} (LUN {lun})" for lun, unit in sorted(seen.items()) if left.get(lun) is not unit]
        if users:
            raise problems.in_use("a LUN that would disappear", users, problems.LOG_OUT)

    def apply(self, rules: access.Rules) -> None:
        """Put rules in force with the fabric and with each session."""
        try:
            self._fabric.admit(rules)
        except CannotStart as error:
            raise problems.refused("access was changed only in part", str(error), "try again") from error
        self._inventory.access.rules = rules
        for session in self._inventory.fabric.sessions():
            if not rules.keeps(session.initiator, session.address):
                self._fabric.end_session(session.tsih)
        for nexus in self._inventory.scsi.nexuses:
            rule = rules.find(nexus.initiator)
            view = sees_nothing if rule is None or rule.broken else rule.view
            self._inventory.scsi.change_view(nexus, view)
            bucket = self._inventory.access.limit(nexus.initiator)
            if bucket is not nexus.bucket:
                nexus.limit(bucket)


def _told(wanted: settings.Access) -> str:
    """Return who may log in, as a phrase for the log."""
    networks = ", ".join(map(str, wanted.networks)) or "any network"
    if wanted.initiators is None:
        return f"all initiators from {networks} may log in" if wanted.networks else "nobody may log in"
    names = ", ".join(initiator.name for initiator in wanted.initiators)
    return f"{names} may log in, from {networks}" if names else "nobody may log in"
