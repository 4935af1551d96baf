# SPDX-License-Identifier: Apache-2.0
"""/iscsi/IQN/tpg1/acls: the initiators that may log in, their authentication, and the LUNs that they see."""

from __future__ import annotations

import dataclasses
import getpass
import sys
from collections.abc import Iterable

from target import messages, printable
from target.shell import console
from target.shell.node import Leaf, Node, export, files, flag, number, plural

AUTH = ("userid", "password", "mutual_userid", "mutual_password")


class Acls(Node):
    """The node /iscsi/IQN/tpg1/acls."""

    def __init__(self, parent: Node) -> None:
        super().__init__("acls", parent)

    def entries(self) -> tuple[messages.Initiator, ...]:
        """Return all entries."""
        access: messages.Access = self.parent.access()
        return access.initiators or ()

    def list_children(self) -> None:
        for entry in self.entries():
            Acl(entry, self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        access: messages.Access = self.parent.access()
        text = (
            "not needed" if access.initiators is None and access.networks else plural(len(self.entries()), "initiator")
        )
        return text, None

    def ui_command_create(self, wwn: str, read_only: str = "false", force: str = "false", yes: str = "false") -> None:
        """Allow an initiator to log in.  Once there is an entry, only initiators with an entry may log in.

        The first entry locks all other initiators out, so the shell asks; in a script it refuses.

        wwn        the initiator's iSCSI name, or a pattern of names: * matches any text, ? any one character
        read_only  true: refuse all its writes
        force      true: create the entry even if initiators without an entry are logged in, and end their sessions
        yes        true: do not ask whether the first entry may lock all others out; force=true does not ask either
        """
        if not (flag(force, "force") or self.asked.dry_run):
            confirm_lock_out(self.parent.access(), f"only {wwn} may log in then", sure=flag(yes, "yes"))
        new = messages.Initiator(wwn, read_only=flag(read_only, "read_only"))
        self.asked.create_initiator(new, force=flag(force, "force"))
        self.done(f"{wwn} may log in{' and read' if new.read_only else ''}")

    def ui_command_delete(self, wwn: str, force: str = "false") -> None:
        """Delete an initiator's entry.  The command refuses while the initiator is logged in, unless force is true.

        wwn    the entry
        force  true: delete it even so, and end the initiator's sessions
        """
        self.asked.delete_initiator(wwn, force=flag(force, "force"))
        self.done(f"deleted the entry of {wwn}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        if parameter != "wwn":
            return None
        known = [entry.name for entry in self.entries()]
        if command == "delete":
            return known
        return sorted({session.initiator for session in self.status().sessions} - set(known))


def confirm_lock_out(access: messages.Access, then: str, *, sure: bool) -> None:
    """Ask before a change that keeps out initiators of which any may log in now; in a script, refuse.  Raises Refused.

    `then` says who may log in after the change.
    """
    if sure or access.initiators is not None or not access.networks:
        return
    locked_out = f"{then}; until now any initiator from {', '.join(access.networks)} may"
    if not sys.stdin.isatty():
        raise console.Refused(f"this locks others out: {locked_out}", "use yes=true if that is what you want")
    if input(f"{printable.line(locked_out)}. Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise console.Refused("nothing was changed")


class Acl(Node):
    """The node /iscsi/IQN/tpg1/acls/INITIATOR."""

    def __init__(self, entry: messages.Initiator, parent: Acls) -> None:
        super().__init__(entry.name, parent)
        for name, description in zip(
            AUTH,
            (
                "The CHAP name of the initiator; empty: it does not authenticate.",
                "The secret of the initiator, 12 to 255 bytes; the shell asks for it if it is left out.  Never shown.",
                "The CHAP name of the target, for mutual CHAP.",
                "The secret of the target, which must differ; the shell asks for it if it is left out.  Never shown.",
            ),
            strict=True,
        ):
            self.define_config_group_param("auth", name, "string", description)
        self.define_config_group_param("attribute", "read_only", "bool", "Whether the target refuses all its writes.")
        self.define_config_group_param(
            "attribute", "networks", "string", "The networks it may come from; empty: any network."
        )

    def message(self) -> messages.Initiator:
        """Return the daemon's message about this entry."""
        entry: messages.Initiator
        for entry in self.parent.entries():
            if entry.name == self.name:
                return entry
        raise console.Refused(f"the entry of {self.name} no longer exists")

    def list_children(self) -> None:
        for mapped in self.message().luns or ():
            how = "read-only" if mapped.read_only else "read and write"
            Leaf(f"mapped_lun{mapped.lun}", self, f"{mapped.unit}, {how}")

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        entry = self.message()
        chap = "no CHAP" if entry.chap is None else "mutual CHAP" if entry.chap.target_name else "CHAP"
        luns = "all LUNs" if entry.luns is None else f"{plural(len(entry.luns), 'mapped LUN')}"
        broken = any(alert.code == "initiator-broken" and alert.subject == entry.name for alert in self._alerts())
        text = f"{luns}, {chap}{', read-only' if entry.read_only else ''}{', BROKEN' if broken else ''}"
        return text, not broken

    def _alerts(self) -> list[messages.Alert]:
        return self.facts.get("alerts", self.asked.alerts)

    def ui_command_create(self, mapped_lun: str, unit: str, read_only: str = "false", force: str = "false") -> None:
        """Map a unit to the initiator under a LUN of its own.

        Once a unit is mapped, the initiator sees only mapped units.

        mapped_lun  the LUN under which this initiator sees the unit
        unit        the unit: VOLUME, VOLUME@SNAPSHOT or VOLUME@SNAPSHOT/write-once
        read_only   true: refuse its writes
        force       true: map the unit even if the initiator is logged in and loses LUNs
        """
        entry = self.message()
        lun = number(mapped_lun.removeprefix("lun"), "mapped_lun")
        new = messages.MappedLun(lun or 0, unit, flag(read_only, "read_only"))
        changed = dataclasses.replace(entry, luns=(*(entry.luns or ()), new))
        self.asked.change_initiator(changed, force=flag(force, "force"))
        self.done(f"{self.name} sees {unit} as LUN {new.lun}{', read-only' if new.read_only else ''}")

    def ui_command_delete(self, mapped_lun: str, force: str = "false") -> None:
        """Delete a mapped LUN.  The command refuses while the initiator is logged in, unless force is true.

        mapped_lun  the LUN
        force       true: delete it even so
        """
        entry = self.message()
        lun = number(mapped_lun.removeprefix("mapped_lun").removeprefix("lun"), "mapped_lun")
        left = tuple(mapped for mapped in entry.luns or () if mapped.lun != lun)
        if len(left) == len(entry.luns or ()):
            known = ", ".join(str(mapped.lun) for mapped in entry.luns or ()) or "none"
            raise console.Refused(f"{self.name} has no mapped LUN {mapped_lun}", f"it has: {known}")
        self.asked.change_initiator(dataclasses.replace(entry, luns=left), force=flag(force, "force"))
        self.done(f"{self.name} no longer sees LUN {lun}")

    def ui_command_export(self, file: str | None = None) -> None:
        """Show the entry in the form of the configuration file.

        file  write the text to this file instead
        """
        export(self.asked.text_of_initiator(self.name), file)

    def ui_command_set(self, group: str | None = None, **parameter: str) -> None:
        """Change a group of parameters: auth, attribute or global.  Without parameters, explain them.

        group      auth, with userid, password, mutual_userid, mutual_password: the CHAP authentication.  On a terminal,
                   the shell asks for a password that is left out.  `set auth userid=` removes authentication.
        parameter  NAME=VALUE, any number of them
        """
        if group != "auth" or not parameter:
            super().ui_command_set(group, **parameter)
            return
        for name in parameter:
            if name not in AUTH:
                raise console.Refused(f"auth has no {name}", f"it has: {', '.join(AUTH)}")
        user, mutual = parameter.get("userid"), parameter.get("mutual_userid")
        if user is None:
            raise console.Refused(
                "userid is missing", "set all parameters of auth at once: userid= password= and so on"
            )
        if not user:
            self.asked.set_auth(self.name, None)
            self.done(f"{self.name} logs in without authentication")
            return
        secret = _secret(parameter.get("password"), f"secret of {user}: ")
        target = _secret(parameter.get("mutual_password"), f"secret of {mutual}: ") if mutual else None
        self.asked.set_auth(self.name, messages.SetAuth(user, secret, mutual or None, target))
        self.done(f"{self.name} authenticates as {user}{f', and the target to it as {mutual}' if mutual else ''}")

    def ui_getgroup_auth(self, parameter: str) -> str:
        """Return a value for `get auth`: never a secret."""
        chap = self.message().chap
        if chap is None:
            return ""
        return {
            "userid": chap.name,
            "password": printable.line(f"(in {chap.secret_file})"),
            "mutual_userid": chap.target_name or "",
            "mutual_password": printable.line(f"(in {chap.target_secret_file})") if chap.target_secret_file else "",
        }[parameter]

    def ui_setgroup_auth(self, parameter: str, value: str) -> None:
        """Satisfy configshell; `ui_command_set` sets all of auth at once."""
        raise NotImplementedError

    def ui_getgroup_attribute(self, parameter: str) -> object:
        """Return a value for `get attribute`."""
        entry = self.message()
        return entry.read_only if parameter == "read_only" else ",".join(entry.networks)

    def ui_setgroup_attribute(self, parameter: str, value: str | bool | None) -> None:
        """Change one parameter for `set attribute`."""
        self.facts.forget()  # one line may set several parameters
        entry = self.message()
        if parameter == "read_only":
            changed = dataclasses.replace(entry, read_only=bool(value))
        else:
            changed = dataclasses.replace(
                entry, networks=tuple(network for network in str(value or "").split(",") if network)
            )
        self.asked.change_initiator(changed, force=False)
        self.facts.forget()

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        if parameter == "unit":
            return self.units()
        if parameter == "file":
            return files(given.get("file", ""))
        if (command, parameter) == ("delete", "mapped_lun"):
            return [str(mapped.lun) for mapped in self.message().luns or ()]
        if (command, parameter) == ("create", "mapped_lun"):
            used = {mapped.lun for mapped in self.message().luns or ()}
            return [str(next(lun for lun in range(len(used) + 1) if lun not in used))]
        return None


def _secret(given: str | None, prompt: str) -> str:
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise console.Refused("the secret is missing", "add password=SECRET, or use the shell on a terminal")
    return getpass.getpass(prompt)
