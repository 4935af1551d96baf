# SPDX-License-Identifier: Apache-2.0
"""/iscsi/IQN/tpg1/acls: who may log in, how they prove it, and what they see."""

from __future__ import annotations

import dataclasses
import getpass
import sys
from collections.abc import Iterable

from target import messages
from target.shell import console
from target.shell.node import Leaf, Node, export, files, flag, number, plural

AUTH = ("userid", "password", "mutual_userid", "mutual_password")


class Acls(Node):
    """/iscsi/IQN/tpg1/acls."""

    def __init__(self, parent: Node) -> None:
        super().__init__("acls", parent)

    def told(self) -> tuple[messages.Initiator, ...]:
        """All entries."""
        found: messages.Access = self.parent.access()
        return found.initiators or ()

    def list_children(self) -> None:
        for each in self.told():
            Acl(each, self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        access: messages.Access = self.parent.access()
        text = "not needed" if access.initiators is None and access.networks else plural(len(self.told()), "initiator")
        return text, None

    def ui_command_create(self, wwn: str, read_only: str = "false", force: str = "false") -> None:
        """Lets an initiator log in.  From the first entry on, only initiators with an entry may.

        wwn        the initiator's iSCSI name, or a pattern of names: * stands for anything, ? for any one character
        read_only  true: refuse all its writes
        force      true: even if others are logged in who no longer may; their sessions are ended
        """
        new = messages.Initiator(wwn, read_only=flag(read_only, "read_only"))
        self.asked.create_initiator(new, force=flag(force, "force"))
        self.done(f"{wwn} may log in{' and read' if flag(read_only, 'read_only') else ''}")

    def ui_command_delete(self, wwn: str, force: str = "false") -> None:
        """Takes an initiator's entry away.  Refused while it is logged in.

        wwn    which entry
        force  true: even so; its sessions are ended
        """
        self.asked.delete_initiator(wwn, force=flag(force, "force"))
        self.done(f"deleted the entry of {wwn}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        if parameter != "wwn":
            return None
        known = [each.name for each in self.told()]
        if command == "delete":
            return known
        return sorted({each.initiator for each in self.status().sessions} - set(known))


class Acl(Node):
    """/iscsi/IQN/tpg1/acls/INITIATOR."""

    def __init__(self, entry: messages.Initiator, parent: Acls) -> None:
        super().__init__(entry.name, parent)
        for name, what in zip(
            AUTH,
            (
                "The CHAP name the initiator gives; empty: it need not prove who it is.",
                "Its secret, 12 to 255 bytes; asked for if left out.  Never shown.",
                "The CHAP name the target gives, for mutual CHAP.",
                "The target's secret, another one; asked for if left out.  Never shown.",
            ),
            strict=True,
        ):
            self.define_config_group_param("auth", name, "string", what)
        self.define_config_group_param("attribute", "read_only", "bool", "Whether all its writes are refused.")
        self.define_config_group_param(
            "attribute", "networks", "string", "Where it may come from; empty: from anywhere."
        )

    def told(self) -> messages.Initiator:
        """What the daemon says of it."""
        for each in self.parent.told():
            if each.name == self.name:
                found: messages.Initiator = each
                return found
        raise console.Refused(f"there is no entry of {self.name} any more")

    def list_children(self) -> None:
        for each in self.told().luns or ():
            how = "read-only" if each.read_only else "read and write"
            Leaf(f"mapped_lun{each.lun}", self, f"{each.unit}, {how}")

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        each = self.told()
        chap = "no CHAP" if each.chap is None else "mutual CHAP" if each.chap.target_name else "CHAP"
        luns = "all LUNs" if each.luns is None else f"{plural(len(each.luns), 'mapped LUN')}"
        broken = any(a.code == "initiator-broken" and a.subject == each.name for a in self._alerts())
        return f"{luns}, {chap}" + (", read-only" if each.read_only else "") + (
            ", BROKEN" if broken else ""
        ), not broken

    def _alerts(self) -> list[messages.Alert]:
        return self.facts.get("alerts", self.asked.alerts)

    def ui_command_create(self, mapped_lun: str, unit: str, read_only: str = "false", force: str = "false") -> None:
        """Maps a unit to the initiator under a number of its own.  From the first one on it sees only what is mapped.

        mapped_lun  the LUN this initiator sees it under
        unit        what it sees: VOLUME, VOLUME@SNAPSHOT or VOLUME@SNAPSHOT/write-once
        read_only   true: refuse its writes
        force       true: even if it is logged in and loses LUNs by it
        """
        each = self.told()
        lun = number(mapped_lun.removeprefix("lun"), "mapped_lun")
        new = messages.MappedLun(lun or 0, unit, flag(read_only, "read_only"))
        changed = dataclasses.replace(each, luns=(*(each.luns or ()), new))
        self.asked.change_initiator(changed, force=flag(force, "force"))
        self.done(f"{self.name} sees {unit} as LUN {new.lun}{', read-only' if new.read_only else ''}")

    def ui_command_delete(self, mapped_lun: str, force: str = "false") -> None:
        """Takes a mapped LUN away.  Refused while the initiator is logged in.

        mapped_lun  which
        force       true: even so
        """
        each = self.told()
        lun = number(mapped_lun.removeprefix("mapped_lun").removeprefix("lun"), "mapped_lun")
        left = tuple(mapped for mapped in each.luns or () if mapped.lun != lun)
        if len(left) == len(each.luns or ()):
            known = ", ".join(str(mapped.lun) for mapped in each.luns or ()) or "none"
            raise console.Refused(f"{self.name} has no mapped LUN {mapped_lun}", f"it has: {known}")
        self.asked.change_initiator(dataclasses.replace(each, luns=left), force=flag(force, "force"))
        self.done(f"{self.name} sees LUN {lun} no more")

    def ui_command_export(self, file: str | None = None) -> None:
        """Shows the entry as it would stand in a configuration file.

        file  write it into this file instead
        """
        export(self.asked.text_of_initiator(self.name), file)

    def ui_command_set(self, group: str | None = None, **parameter: str) -> None:
        """Changes a group of parameters: auth, attribute or global.  Without parameters, explains them.

        group      auth, with userid, password, mutual_userid, mutual_password: how the initiator proves who it is.
                   A password that is left out is asked for, on a terminal; `set auth userid=` ends the need for one.
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
            raise console.Refused("userid is missing", "set all of auth at once: userid= password= and so on")
        if not user:
            self.asked.set_auth(self.name, None)
            self.done(f"{self.name} need not prove who it is")
            return
        secret = _secret(parameter.get("password"), f"secret of {user}: ")
        target = _secret(parameter.get("mutual_password"), f"secret of {mutual}: ") if mutual else None
        self.asked.set_auth(self.name, messages.SetAuth(user, secret, mutual or None, target))
        self.done(f"{self.name} proves itself as {user}{f', the target to it as {mutual}' if mutual else ''}")

    def ui_getgroup_auth(self, parameter: str) -> str:
        """For `get auth`: never a secret."""
        chap = self.told().chap
        if chap is None:
            return ""
        return {
            "userid": chap.name,
            "password": f"(in {chap.secret_file})",
            "mutual_userid": chap.target_name or "",
            "mutual_password": f"(in {chap.target_secret_file})" if chap.target_secret_file else "",
        }[parameter]

    def ui_setgroup_auth(self, parameter: str, value: str) -> None:
        """Configshell wants it; `ui_command_set` sets all of auth at once."""
        raise NotImplementedError

    def ui_getgroup_attribute(self, parameter: str) -> object:
        """For `get attribute`."""
        each = self.told()
        return each.read_only if parameter == "read_only" else ",".join(each.networks)

    def ui_setgroup_attribute(self, parameter: str, value: str | bool | None) -> None:
        """For `set attribute`."""
        self.facts.forget()  # several may be set on one line
        each = self.told()
        if parameter == "read_only":
            changed = dataclasses.replace(each, read_only=bool(value))
        else:
            changed = dataclasses.replace(each, networks=tuple(one for one in str(value or "").split(",") if one))
        self.asked.change_initiator(changed, force=False)
        self.facts.forget()

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        if parameter == "unit":
            return self.units()
        if parameter == "file":
            return files(given.get("file", ""))
        if (command, parameter) == ("delete", "mapped_lun"):
            return [str(mapped.lun) for mapped in self.told().luns or ()]
        if (command, parameter) == ("create", "mapped_lun"):
            used = {mapped.lun for mapped in self.told().luns or ()}
            return [str(next(lun for lun in range(len(used) + 1) if lun not in used))]
        return None


def _secret(given: str | None, prompt: str) -> str:
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise console.Refused("the secret is missing", "say password=SECRET, or ask from a terminal")
    return getpass.getpass(prompt)
