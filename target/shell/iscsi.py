# SPDX-License-Identifier: Apache-2.0
"""/iscsi: the target, its LUNs, its portal, and who is logged in."""

from __future__ import annotations

from collections.abc import Iterable

from target import messages, show, units
from target.shell import console
from target.shell.acls import Acls
from target.shell.node import Leaf, Node, flag, number, plural, table

ISCSI_PORT = "3260"


class Iscsi(Node):
    """/iscsi."""

    def __init__(self, parent: Node) -> None:
        super().__init__("iscsi", parent)

    def list_children(self) -> None:
        Target(self.status().target, self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        status = self.status()
        return f"{status.fabric}, {plural(len(status.sessions), 'session')}", None


class Target(Node):
    """/iscsi/IQN."""

    def list_children(self) -> None:
        PortalGroup(self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        status = self.status()
        return f"on {', '.join(status.portals) or status.portal}", None


class PortalGroup(Node):
    """/iscsi/IQN/tpg1."""

    forced_group = "access"

    def __init__(self, parent: Target) -> None:
        super().__init__("tpg1", parent)
        for name, kind, what in (
            ("networks", "string", "Networks that initiators may come from, with commas between: 10.1.2.0/24,::1/128."),
            ("anybody", "bool", "Whether any initiator from these networks may log in, named in acls or not."),
            ("discovery_chap", "bool", "Whether initiators that have CHAP must use it for discovery, too."),
        ):
            self.define_config_group_param("access", name, kind, what)

    def access(self) -> messages.Access:
        """Who may log in."""
        return self.facts.get("access", self.asked.access)

    def list_children(self) -> None:
        Acls(self)
        Luns(self)
        Portals(self)
        Sessions(self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        access = self.access()
        if access.initiators is None:
            return (
                (f"anybody from {', '.join(access.networks)}", None)
                if access.networks
                else ("nobody may log in", False)
            )
        return ("initiators in acls", None) if access.initiators else ("nobody may log in", False)

    def ui_getgroup_access(self, parameter: str) -> object:
        """For `get access`."""
        access = self.access()
        return {
            "networks": ",".join(access.networks),
            "anybody": access.initiators is None,
            "discovery_chap": access.discovery_chap,
        }[parameter]

    def ui_command_set(self, group: str | None = None, **parameter: str) -> None:
        """Changes a group of parameters: access or global.  Without parameters, explains them.

        group      access, with networks, anybody, discovery_chap; all that are given change together, or none does.
                   Refused while somebody is logged in who no longer may, unless `force=true` is among them.
        parameter  NAME=VALUE, any number of them
        """
        if self.explained("access", group, parameter):
            return
        force = flag(parameter.pop("force", "false"), "force")
        networks = parameter.get("networks")
        flags = {name: flag(value, name) for name, value in parameter.items() if name != "networks"}
        request = messages.ChangeAccess(
            networks=None if networks is None else tuple(each for each in networks.split(",") if each),
            anybody=flags.get("anybody"),
            discovery_chap=flags.get("discovery_chap"),
        )
        self.asked.change_access(request, force=force)
        self.facts.forget()
        for name, value in parameter.items():
            now = value if self.asked.dry_run else self.ui_getgroup_access(name)
            self.done(f"{name} is {str(now).lower() or 'empty'}")

    def ui_setgroup_access(self, parameter: str, value: str) -> None:
        """Configshell wants it; `ui_command_set` sets all that are given at once."""
        raise NotImplementedError


class Luns(Node):
    """/iscsi/IQN/tpg1/luns."""

    def __init__(self, parent: PortalGroup) -> None:
        super().__init__("luns", parent)

    def told(self) -> list[messages.Lun]:
        """All of them."""
        return self.facts.get("luns", self.asked.luns)

    def list_children(self) -> None:
        for each in self.told():
            Lun(each, self)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        return plural(len(self.told()), "LUN"), None

    def ui_command_create(self, volume: str, lun: str | None = None) -> None:
        """Shows initiators a volume that has no LUN.

        volume  which; its path, /volumes/NAME, will do
        lun     under which number; left out, the lowest one that is free
        """
        volume = volume.removeprefix("/volumes/").rstrip("/")
        found = self.facts.get(f"volume {volume}", lambda: self.asked.volume(volume))
        if found.lun is not None:
            raise console.Refused(
                f"{volume} is LUN {found.lun} already",
                f"delete that first, or `/volumes/{volume} set attribute lun=NUMBER`",
            )
        wanted = number(lun, "lun")
        if wanted is None:
            wanted = self.lowest_free()
        self.asked.change_volume(volume, messages.ChangeVolume(lun=wanted), force=False)
        self.done(f"{volume} is LUN {wanted}")

    def ui_command_delete(self, lun: str, force: str = "false") -> None:
        """Shows a volume to initiators no more; it stays, with its snapshots and their LUNs.  Refused while somebody uses it.

        lun    its number
        force  true: even if it is in use; mappings of it to initiators go, too
        """
        wanted = number(lun.removeprefix("lun"), "lun")
        found = next((each for each in self.told() if each.lun == wanted), None)
        if found is None:
            known = ", ".join(str(each.lun) for each in self.told()) or "none"
            raise console.Refused(f"there is no LUN {lun}", f"there are: {known}")
        if all(each.name != found.unit for each in self.volumes()):
            owner, _, name = found.unit.partition("@")
            name = name.removesuffix("/write-once")
            remedy = f"`/volumes/{owner}/snapshots delete {name}`, or map to each initiator in acls what it is to see"
            if all(each.name != owner for each in self.volumes()):
                remedy = (
                    "it is one of `shared` or `write_once` in the configuration file, which hold from the next start on"
                )
            raise console.Refused(f"LUN {wanted} is {found.unit}, which always has one", remedy)
        self.asked.change_volume(found.unit, messages.ChangeVolume(hidden=True), force=flag(force, "force"))
        self.done(f"{found.unit} has no LUN")

    def lowest_free(self) -> int:
        """The lowest number that no unit has."""
        used = {each.lun for each in self.told()} | {each.lun for each in self.volumes()}  # one may be out of service
        return next(each for each in range(len(used) + 1) if each not in used)

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        if (command, parameter) == ("create", "volume"):
            return [each.name for each in self.volumes() if each.lun is None]
        if (command, parameter) == ("create", "lun"):
            return [str(self.lowest_free())]
        if (command, parameter) == ("delete", "lun"):
            return [str(each.lun) for each in self.volumes() if each.lun is not None]
        return None


class Lun(Node):
    """/iscsi/IQN/tpg1/luns/lunN."""

    def __init__(self, lun: messages.Lun, parent: Luns) -> None:
        super().__init__(f"lun{lun.lun}", parent)
        self._lun = lun

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        return f"{self._lun.unit} ({self._lun.kind}), {units.human_size(self._lun.size)}", True

    def ui_command_info(self) -> None:
        """Shows what is under this number, and who sees it."""
        lun = self._lun
        acls = self.parent.parent.access().initiators or ()
        mapped = [f"{acl.name} as LUN {each.lun}" for acl in acls for each in acl.luns or () if each.unit == lun.unit]
        console.say(
            table(
                [
                    ("LUN", lun.lun),
                    ("unit", lun.unit),
                    ("kind", lun.kind),
                    ("size", units.human_size(lun.size)),
                    ("mapped to", ", ".join(mapped) or "nobody in particular"),
                ]
            )
        )


class Portals(Node):
    """/iscsi/IQN/tpg1/portals."""

    def __init__(self, parent: PortalGroup) -> None:
        super().__init__("portals", parent)

    def list_children(self) -> None:
        for address in self.status().portals:
            Leaf(address, self, "listens", healthy=True)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        return plural(len(self.children), "portal"), None

    def ui_command_create(self, ip_address: str, ip_port: str = ISCSI_PORT) -> None:
        """Lets initiators connect at one more address of this machine.

        ip_address  which; 0.0.0.0 or :: for all of them
        ip_port     the TCP port, 3260 if left out
        """
        address = _address(ip_address, ip_port)
        self.asked.create_portal(address)
        self.done(f"initiators can connect to {address}")

    def ui_command_delete(self, ip_address: str, ip_port: str = ISCSI_PORT, force: str = "false") -> None:
        """Lets initiators connect there no more.  Refused while somebody is logged in there, and for the last one.

        ip_address  which
        ip_port     its TCP port, 3260 if left out
        force       true: even if somebody is logged in; those sessions are ended
        """
        address = _address(ip_address, ip_port)
        self.asked.delete_portal(address, force=flag(force, "force"))
        self.done(f"initiators cannot connect to {address} any more")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """For completion."""
        there = [each.rpartition(":") for each in self.status().portals]
        if parameter == "ip_address":
            hosts = (
                [host.strip("[]") for host, _, _ in there] if command == "delete" else ["0.0.0.0", "127.0.0.1", "::"]
            )
            return sorted(set(hosts))
        if parameter == "ip_port":
            ports = [port for host, _, port in there if host.strip("[]") == given.get("ip_address", "").strip("[]")]
            return ports if command == "delete" else [ISCSI_PORT]
        return None


class Sessions(Node):
    """/iscsi/IQN/tpg1/sessions."""

    def __init__(self, parent: PortalGroup) -> None:
        super().__init__("sessions", parent)

    def list_children(self) -> None:
        seen: dict[str, int] = {}
        for each in self.status().sessions:
            seen[each.initiator] = seen.get(each.initiator, 0) + 1
            name = each.initiator if seen[each.initiator] == 1 else f"{each.initiator}:{seen[each.initiator]}"
            text = f"{'' if each.target else 'discovery, '}from {each.address or 'an unknown address'}"
            if each.since is not None:
                text += f" since {show.moment(each.since)}"
            if each.bytes_read is not None and each.bytes_written is not None:
                text += f", {units.human_size(each.bytes_read)} read, {units.human_size(each.bytes_written)} written"
            Leaf(name, self, text)

    def summary(self) -> tuple[str, bool | None]:
        """For ls."""
        return plural(len(self.status().sessions), "session"), None


def _address(host: str, port: str) -> str:
    """HOST:PORT as the configuration has it."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
