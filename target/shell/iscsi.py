# SPDX-License-Identifier: Apache-2.0
"""/iscsi: the target, its LUNs, portals and sessions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from target import messages, show, units
from target.shell import console
from target.shell.acls import Acls, confirm_lock_out
from target.shell.node import Leaf, Node, flag, number, plural, table

ISCSI_PORT = "3260"


class Iscsi(Node):
    """The node /iscsi."""

    def __init__(self, parent: Node) -> None:
        super().__init__("iscsi", parent)

    def list_children(self) -> None:
        Target(self.status().target, self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        status = self.status()
        return f"{status.fabric}, {plural(len(status.sessions), 'session')}", None


class Target(Node):
    """The node /iscsi/IQN."""

    def list_children(self) -> None:
        PortalGroup(self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        status = self.status()
        return f"on {', '.join(status.portals) or status.portal}", None


class PortalGroup(Node):
    """The node /iscsi/IQN/tpg1."""

    forced_group = "access"

    def __init__(self, parent: Target) -> None:
        super().__init__("tpg1", parent)
        for name, kind, description in (
            (
                "networks",
                "string",
                "The networks that initiators may come from, separated by commas: 10.1.2.0/24,::1/128.",
            ),
            (
                "anybody",
                "bool",
                "Whether any initiator from these networks may log in, with or without an entry in acls.",
            ),
            ("discovery_chap", "bool", "Whether initiators with CHAP must use it for discovery, too."),
        ):
            self.define_config_group_param("access", name, kind, description)

    def access(self) -> messages.Access:
        """Return the rules of access."""
        return self.facts.get_exactly("access", self.asked.access)  # entries go back to the daemon, changed

    def list_children(self) -> None:
        Acls(self)
        Luns(self)
        Portals(self)
        Sessions(self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        access = self.access()
        if access.initiators is None:
            return (
                (f"any initiator from {', '.join(access.networks)}", None)
                if access.networks
                else ("no initiator may log in", False)
            )
        return ("initiators in acls", None) if access.initiators else ("no initiator may log in", False)

    def ui_getgroup_access(self, parameter: str) -> object:
        """Return a value for `get access`."""
        access = self.access()
        return {
            "networks": ",".join(access.networks),
            "anybody": access.initiators is None,
            "discovery_chap": access.discovery_chap,
        }[parameter]

    def ui_command_set(self, group: str | None = None, **parameter: str) -> None:
        """Change a group of parameters: access or global.  Without parameters, explain them.

        group      access, with networks, anybody, discovery_chap.  All given parameters change together, or none does.
                   The command refuses while an initiator is logged in that no longer may, unless `force=true` is given.
                   With anybody=false the shell asks, because only the entries in acls count then, unless `yes=true`
                   is given.
        parameter  NAME=VALUE, any number of them
        """
        if self.explained("access", group, parameter, ("force", "yes")):
            return
        force = flag(parameter.pop("force", "false"), "force")
        sure = flag(parameter.pop("yes", "false"), "yes") or force or self.asked.dry_run
        networks = parameter.get("networks")
        flags = {name: flag(value, name) for name, value in parameter.items() if name != "networks"}
        if flags.get("anybody") is False:
            confirm_lock_out(self.access(), "only the entries in acls may log in then", sure=sure)
        request = messages.ChangeAccess(
            networks=None if networks is None else tuple(network for network in networks.split(",") if network),
            anybody=flags.get("anybody"),
            discovery_chap=flags.get("discovery_chap"),
        )
        self.asked.change_access(request, force=force)
        self.facts.forget()
        for name, value in parameter.items():
            now = value if self.asked.dry_run else self.ui_getgroup_access(name)
            self.done(f"{name} is {str(now).lower() or 'empty'}")

    def ui_setgroup_access(self, parameter: str, value: str) -> None:
        """Satisfy configshell; `ui_command_set` sets all parameters of a line at once."""
        raise NotImplementedError


class Luns(Node):
    """The node /iscsi/IQN/tpg1/luns."""

    def __init__(self, parent: PortalGroup) -> None:
        super().__init__("luns", parent)

    def all_luns(self) -> list[messages.Lun]:
        """Return all LUNs of the target."""
        return self.facts.get("luns", self.asked.luns)

    def list_children(self) -> None:
        for lun in self.all_luns():
            Lun(lun, self)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        return plural(len(self.all_luns()), "LUN"), None

    def ui_command_create(self, volume: str, lun: str | None = None) -> None:
        """Give a volume a LUN, so that initiators see it.

        volume  the volume's name, or its path, /volumes/NAME
        lun     the LUN; default: the lowest free one
        """
        volume = volume.removeprefix("/volumes/").rstrip("/")
        before = self.facts.get(f"volume {volume}", lambda: self.asked.volume(volume))
        if before.lun is not None:
            raise console.Refused(
                f"{volume} is already LUN {before.lun}",
                f"delete that LUN first, or use `/volumes/{volume} set attribute lun=NUMBER`",
            )
        lun_number = number(lun, "lun")
        self.asked.change_volume(volume, messages.ChangeVolume(lun=lun_number, any_lun=lun_number is None), force=False)
        if lun_number is None and not self.asked.dry_run:
            lun_number = self.asked.volume(volume).lun
        self.done(f"{volume} has the lowest free LUN" if lun_number is None else f"{volume} is LUN {lun_number}")

    def ui_command_delete(self, lun: str, force: str = "false") -> None:
        """Remove a volume's LUN, so that initiators no longer see the volume.

        The volume stays, with its snapshots and their LUNs.  The command refuses while the volume is in use, unless
        force is true.

        lun    the LUN
        force  true: remove it even if it is in use, together with its mappings to initiators
        """
        lun_number = number(lun.removeprefix("lun"), "lun")
        unit = next((known.unit for known in self.all_luns() if known.lun == lun_number), None)
        if unit is None:
            luns = ", ".join(str(known.lun) for known in self.all_luns()) or "none"
            raise console.Refused(f"there is no LUN {lun}", f"the LUNs are: {luns}")
        volumes = {volume.name for volume in self.volumes()}
        if unit not in volumes:
            owner, _, name = unit.partition("@")
            name = name.removesuffix("/write-once")
            remedy = f"use `/volumes/{owner}/snapshots delete {name}`, or map the LUNs for each initiator in acls"
            if owner not in volumes:
                remedy = "change `shared` or `write_once` in the configuration file, and start the daemon again"
            raise console.Refused(f"LUN {lun_number} is {unit}, which always has a LUN", remedy)
        self.asked.change_volume(unit, messages.ChangeVolume(hidden=True), force=flag(force, "force"))
        self.done(f"{unit} has no LUN")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        if (command, parameter) == ("create", "volume"):
            return [volume.name for volume in self.volumes() if volume.lun is None]
        if (command, parameter) == ("delete", "lun"):
            return [str(volume.lun) for volume in self.volumes() if volume.lun is not None]
        return None


class Lun(Node):
    """The node /iscsi/IQN/tpg1/luns/lunN."""

    def __init__(self, lun: messages.Lun, parent: Luns) -> None:
        super().__init__(f"lun{lun.lun}", parent)
        self._lun = lun

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        return f"{self._lun.unit} ({self._lun.kind}), {units.human_size(self._lun.size)}", True

    def ui_command_info(self) -> None:
        """Show the unit of this LUN, and the initiators that it is mapped to."""
        lun = self._lun
        acls = self.parent.parent.access().initiators or ()
        mapped = [
            f"{acl.name} as LUN {mapping.lun}" for acl in acls for mapping in acl.luns or () if mapping.unit == lun.unit
        ]
        console.say(
            table(
                [
                    ("LUN", lun.lun),
                    ("unit", lun.unit),
                    ("kind", lun.kind),
                    ("size", units.human_size(lun.size)),
                    ("mapped to", ", ".join(mapped) or "no initiator in particular"),
                ]
            )
        )

    def ui_command_reservations(self) -> None:
        """Show the reservations of this LUN's unit, the registered initiators and who holds the reservation."""
        found = [unit for unit in self.asked.reservations() if unit.lun == self._lun.lun]
        console.say(show.reservations(found))

    def ui_command_clear_reservations(self, initiator: str | None = None, force: str = "false") -> None:
        """Remove the reservations and registrations of this LUN's unit, for good.

        The command refuses while a registered initiator is logged in, unless force is true.

        initiator  clear only those of this initiator
        force      true: clear them even if their initiators are logged in
        """
        self.asked.clear_reservations(self._lun.lun, initiator, force=flag(force, "force"))
        self.done(f"{self._lun.unit} has no reservation{f' of {initiator}' if initiator else ''}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        if (command, parameter) == ("clear_reservations", "initiator"):
            units = [unit for unit in self.asked.reservations() if unit.lun == self._lun.lun]
            return sorted({registration.initiator for unit in units for registration in unit.registrations})
        return None


class Portals(Node):
    """The node /iscsi/IQN/tpg1/portals."""

    def __init__(self, parent: PortalGroup) -> None:
        super().__init__("portals", parent)

    def list_children(self) -> None:
        status = self.status()
        for address in status.portals:
            bound = address not in status.portals_unbound
            Leaf(address, self, "listens" if bound else "cannot be bound, is tried again", healthy=bound)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        return plural(len(self.children), "portal"), None

    def ui_command_create(self, ip_address: str, ip_port: str = ISCSI_PORT) -> None:
        """Let initiators connect at one more address of this machine.

        ip_address  the IP address; 0.0.0.0 or :: for all addresses; or ADDRESS:PORT, as `ls` shows it
        ip_port     the TCP port; default: 3260
        """
        address = _address(ip_address, ip_port)
        self.asked.create_portal(address)
        self.done(f"initiators can connect to {address}")

    def ui_command_delete(self, ip_address: str, ip_port: str = ISCSI_PORT, force: str = "false") -> None:
        """Delete a portal, so that initiators can no longer connect there.

        The command refuses while initiators are logged in there, unless force is true.  The last portal cannot be deleted.

        ip_address  the IP address; or ADDRESS:PORT, as `ls` shows it
        ip_port     the TCP port; default: 3260
        force       true: delete it even if initiators are logged in there, and end their sessions
        """
        address = _address(ip_address, ip_port)
        self.asked.delete_portal(address, force=flag(force, "force"))
        self.done(f"initiators can no longer connect to {address}")

    def choices(self, command: str, parameter: str, given: dict[str, str]) -> Iterable[str] | None:
        """Return the possible values for completion."""
        there = [portal.rpartition(":") for portal in self.status().portals]
        if parameter == "ip_address":
            if command == "delete":
                return sorted(self.status().portals)
            return ["0.0.0.0", "127.0.0.1", "::"]
        if parameter == "ip_port":
            ports = [port for host, _, port in there if host.strip("[]") == given.get("ip_address", "").strip("[]")]
            return ports if command == "delete" else [ISCSI_PORT]
        return None


class Sessions(Node):
    """The node /iscsi/IQN/tpg1/sessions."""

    def __init__(self, parent: PortalGroup) -> None:
        super().__init__("sessions", parent)

    def list_children(self) -> None:
        seen: dict[str, int] = {}
        for session in self.status().sessions:
            seen[session.initiator] = seen.get(session.initiator, 0) + 1
            name = (
                session.initiator if seen[session.initiator] == 1 else f"{session.initiator}:{seen[session.initiator]}"
            )
            text = f"{'' if session.target else 'discovery, '}from {session.address or 'an unknown address'}"
            if session.since is not None:
                text += f" since {show.moment(session.since)}"
            if session.bytes_read is not None and session.bytes_written is not None:
                text += (
                    f", {units.human_size(session.bytes_read)} read, {units.human_size(session.bytes_written)} written"
                )
            Leaf(name, self, text)

    def summary(self) -> tuple[str, bool | None]:
        """Return the text and the health for `ls`."""
        return plural(len(self.status().sessions), "session"), None


def _address(host: str, port: str) -> str:
    """Return HOST:PORT as the configuration writes it.  `host` may have the port already, as `ls` shows portals."""
    if re.fullmatch(r"(\[.*\]|[^:]*):[0-9]+", host):
        return host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
