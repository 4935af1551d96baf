# SPDX-License-Identifier: Apache-2.0
"""The kernel's target objects, through rtslib-fb: TCMU devices, the iSCSI target, `tcm_loop`.

All functions can run again over the objects that a crashed predecessor left.  Objects that exist and are right stay as
they are, with the sessions of initiators on them.  Our objects are known by their names: devices are called
`wolun-<owner>.<config>`, and the owner follows from the target's name.  Other objects are never changed or removed.

rtslib is slow when it searches: it scans all devices of the machine for a free index, and all LUNs of all targets for
users of a device.  So this module chooses the index itself, and removes objects from the outside in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lun_backends.files import os_error
from target.scsi import nexus
from target.scsi.logical_unit import LogicalUnit
from target.tcmu import aptpl, uio

if TYPE_CHECKING:
    import rtslib_fb  # only after the kernel modules are loaded: the import sets the kernel's database directory

_ADDRESS = re.compile(r"^\s*Address (\S+)", re.MULTILINE)
_DEVICE_NAME = re.compile(r"wolun-[0-9a-f]{8}\.")
TARGET_CORE = Path("/sys/kernel/config/target/core")
DATABASE = Path("/etc/target")  # the import of rtslib points the kernel there, and fails if it is missing
RESERVATIONS = DATABASE / "pr"
"""The directory in which the kernel keeps reservations with APTPL; without it, such a registration fails."""
MODULES = ("target_core_user", "iscsi_target_mod", "tcm_loop")

COMMAND_TIMEOUT = 130  # seconds; an initiator gives up a session after 120, so it decides before the kernel does
MAX_SECTORS_BYTES = 4 << 20  # the default of 128 sectors would cut large commands into pieces of 64 KiB
DATA_AREA_MB = 64
QUEUE_DEPTH = 128


class ConfigfsError(Exception):
    """The kernel's target cannot be set up; the text names the step and the kernel's error."""


@dataclass(frozen=True)
class Initiator:
    """An initiator that may log in: its iSCSI name, and its CHAP user and secret if it must prove its name.

    If the target must prove its name, too, this has the target's user and secret (RFC 7143 9.2.1).
    """

    name: str
    user: str = ""
    secret: str = field(default="", repr=False)
    target_user: str = ""
    target_secret: str = field(default="", repr=False)
    view: nexus.View = nexus.sees_all
    """The LUNs that the initiator reaches."""


@dataclass(frozen=True)
class Configuration:
    """The intended configuration of the kernel's target, without its LUNs."""

    target: str
    """The iSCSI name."""
    portals: tuple[tuple[str, int], ...] = ()
    """Addresses and TCP ports to listen on; empty: no iSCSI."""
    initiators: tuple[Initiator, ...] = ()
    anyone: bool = False
    """Whether initiators that are not listed may log in, too."""
    loopback: bool = False
    """Whether this host gets the LUNs itself, through tcm_loop."""
    reserving: frozenset[str] = frozenset()
    """Initiators with persistent registrations.  If `anyone` may log in, the kernel must know them before they come."""

    @property
    def owner(self) -> str:
        """Return the mark in the names of this target's objects, the same after a restart."""
        return hashlib.sha256(self.target.encode()).hexdigest()[:8]

    @property
    def loopback_wwn(self) -> str:
        """Return the address of the tcm_loop target (NAA 5, LIO's OUI, and the owner)."""
        return f"naa.5001405{self.owner}0"

    def device_name(self, config: str) -> str:
        """Return the name of the TCMU device that serves `config`."""
        return f"{self.device_prefix}{config.replace('/', '.')}"

    @property
    def device_prefix(self) -> str:
        """Return the beginning of the names of all our devices."""
        return f"wolun-{self.owner}."


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    """Turn an error into a ConfigfsError that names the failed step."""
    from rtslib_fb import RTSLibError

    try:
        yield
    except (RTSLibError, OSError) as error:
        raise ConfigfsError(f"cannot {what}: {error}") from error


def load_modules(modules: Iterable[str] = MODULES) -> None:
    """Load the kernel modules, mount configfs and make rtslib's directory.  Raises ConfigfsError."""
    for module in modules:
        if Path("/sys/module", module).exists():
            continue
        try:
            done = subprocess.run(["modprobe", module], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigfsError("modprobe is missing: install kmod") from error
        if done.returncode:
            raise ConfigfsError(f"cannot load the kernel module {module}: {done.stderr.strip()}")
    if not os.path.ismount("/sys/kernel/config"):
        mount = ["mount", "-t", "configfs", "none", "/sys/kernel/config"]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigfsError(f"cannot mount configfs: {done.stderr.strip()}")
    try:
        RESERVATIONS.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigfsError(f"cannot make {RESERVATIONS}: {error.strerror}") from error


def create_device(name: str, config: str, *, size: int, block_size: int, serial: str) -> None:
    """Make and enable a TCMU device of `size` bytes, with its persistent reservations.  It has no handler yet.

    The kernel is told not to wait for a handler's answer (`nl_reply_supported=-1`), because this process is the
    handler.  Raises aptpl.Damaged, ConfigfsError.
    """
    from rtslib_fb import UserBackedStorageObject

    control = f"hw_block_size={block_size},max_data_area_mb={DATA_AREA_MB},nl_reply_supported=-1"
    reservations(serial)  # rtslib hands them back to the kernel, but would not report a fault in them
    with _saying(f"create the device {name}"):
        aptpl.make_readable(_remembered(serial))
        device = UserBackedStorageObject(
            name,
            config=config,
            size=size,
            wwn=serial,
            hw_max_sectors=MAX_SECTORS_BYTES // block_size,
            control=control,
            index=_free_index(),
        )
        device.set_attribute("cmd_time_out", COMMAND_TIMEOUT)
        if "tmr_notification" in device.list_attributes():  # since Linux 5.10: put notes of aborts into the ring
            device.set_attribute("tmr_notification", 1)


def reservations(serial: str) -> tuple[aptpl.Registration, ...]:
    """Return the kept registrations of the device with that serial number.  Raises aptpl.Damaged, ConfigfsError."""
    with _saying(f"read the reservations of {serial}"):
        return aptpl.load(_remembered(serial))


def _remembered(serial: str) -> Path:
    return RESERVATIONS / f"aptpl_{serial}"


def _free_index() -> int:
    """Return an HBA number that no device of the machine has."""
    numbers = (entry.name.rpartition("_")[2] for entry in os.scandir(TARGET_CORE))
    used = {int(number) for number in numbers if number.isdigit()}
    return next(number for number in range(len(used) + 1) if number not in used)


def delete_device(hba: int, name: str) -> None:
    """Remove a TCMU device that no LUN uses.  Raises ConfigfsError."""
    from rtslib_fb import UserBackedStorageObject

    with _saying(f"remove the device {name}"):
        UserBackedStorageObject(name, index=hba).delete()


def is_made_by_a_daemon(name: str) -> bool:
    """Return whether a wolun daemon (this one or another) made the device, and not an administrator."""
    return _DEVICE_NAME.match(name) is not None


def our_devices(prefix: str) -> list[tuple[int, str]]:
    """Return HBA number and name of the devices with that prefix, in any state."""
    paths = TARGET_CORE.glob("user_*/*")
    return [(int(path.parent.name.rpartition("_")[2]), path.name) for path in paths if path.name.startswith(prefix)]


def exported() -> frozenset[str]:
    """Return the names of the devices that are LUNs of a target; no initiator can use the others yet."""
    names = set()
    for lun in TARGET_CORE.parent.glob("*/*/tpgt_*/lun/lun_*"):
        with contextlib.suppress(FileNotFoundError):  # the LUN has just been removed
            names.add(_linked(lun))
    return frozenset(names)


def action(device: uio.UioDevice, name: str, value: int) -> None:
    """Give the kernel an order about a device, `block_dev` (hold new commands) or `reset_ring`.  Raises ConfigfsError."""
    with _saying(f"set {name} of {device.name}"):
        path = TARGET_CORE / f"user_{device.hba}" / device.name / "action" / name
        path.write_text(f"{value}\n")


@dataclass
class _Acl:
    """The kernel's entry of an initiator: its node, and for each mapped LUN the target's LUN and whether it is read-only."""

    node: rtslib_fb.NodeACL
    mapped: dict[int, tuple[int, bool]]


class KernelTarget:
    """The iSCSI target and the tcm_loop target of a configuration, with their LUNs."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._acls: dict[Initiator, _Acl] = {}
        self.unbound: dict[tuple[str, int], str] = {}
        """The addresses that the kernel could not bind, with the reasons."""
        with _saying(f"set up the target {configuration.target}"):
            self._groups = list(self._make_groups())
        if self.unbound and len(self.unbound) == len(configuration.portals) and not configuration.loopback:
            (address, port), reason = next(iter(self.unbound.items()))
            self.delete()
            raise ConfigfsError(f"cannot listen on {address}:{port}: {reason}")

    def luns(self) -> dict[int, str]:
        """Return the devices by LUN, also those of a predecessor, without the LUNs that only some targets have."""
        luns = [
            {int(path.name[4:]): _linked(path) for path in Path(group.path, "lun").glob("lun_*")}
            for group in self._groups
        ]
        if not luns:
            return {}
        first, *others = luns
        return {lun: name for lun, name in first.items() if all(other.get(lun) == name for other in others)}

    def add_lun(self, lun: int, hba: int, name: str, unit: LogicalUnit) -> None:
        """Export the device of a unit as a LUN, and map it for the initiators that may see it.

        A LUN with another device is replaced.  Raises ConfigfsError.
        """
        from rtslib_fb import LUN, UserBackedStorageObject

        with _saying(f"make {name} LUN {lun}"):
            for group in self._groups:
                path = Path(group.path, "lun", f"lun_{lun}")
                if path.exists() and _linked(path) != name:
                    LUN(group, lun).delete()
                if not path.exists():
                    LUN(group, lun, UserBackedStorageObject(name, index=hba))
        with _saying(f"map LUN {lun}"):
            for initiator, acl in self._acls.items():
                self._map(acl, lun, {reach.lun: reach.read_only for reach in initiator.view(lun, unit)})

    def admit(self, initiators: tuple[Initiator, ...], *, anyone: bool) -> None:
        """Let these initiators log in, and end the sessions of all others.  Raises ConfigfsError.

        The caller then makes the LUNs and their mappings again with `add_lun`, and at last calls `open`.
        """
        self._configuration = dataclasses.replace(self._configuration, initiators=initiators, anyone=anyone)
        if self._configuration.portals:
            with _saying("change who may log in"):
                self._acls.clear()
                self._groups = list(self._make_groups())

    def listen(self, address: str, port: int) -> None:
        """Listen on another address.  Raises ConfigfsError; then nothing has changed."""
        from rtslib_fb import NetworkPortal

        portals = self._configuration.portals
        with _saying(f"listen on {address}:{port}"):
            NetworkPortal(self._groups[0], address, port, mode="create")
        self._configuration = dataclasses.replace(self._configuration, portals=(*portals, (address, port)))

    def bind_again(self) -> list[tuple[str, int]]:
        """Try again to listen on the addresses that could not be bound, and return those that are bound now."""
        return [place for place in list(self.unbound) if self._bind(self._groups[0], *place)]

    def unlisten(self, address: str, port: int) -> None:
        """Stop listening on an address; the initiators that came there stay logged in.  Raises ConfigfsError."""
        from rtslib_fb import NetworkPortal

        portals = self._configuration.portals
        if self.unbound.pop((address, port), None) is None:
            with _saying(f"stop listening on {address}:{port}"):
                NetworkPortal(self._groups[0], address, port).delete()
        left = tuple(portal for portal in portals if portal != (address, port))
        self._configuration = dataclasses.replace(self._configuration, portals=left)

    def sessions(self) -> list[tuple[str, str]]:
        """Return the initiators that are logged in, with their addresses.

        The address is empty for an initiator without an entry: the kernel reports only its name.
        """
        sessions: list[tuple[str, str]] = []
        if not self._configuration.portals:
            return sessions
        group = Path(self._groups[0].path)
        for info in sorted(group.glob("acls/*/info")):
            try:
                text = info.read_text()
            except OSError:  # the entry has just been removed
                continue
            if not text.startswith("No active"):
                address = _ADDRESS.search(text)
                sessions.append((info.parent.name, address[1] if address else ""))
        with contextlib.suppress(OSError):
            dynamic = (group / "dynamic_sessions").read_text()
            sessions += [(name, "") for name in re.split(r"[\n\0]+", dynamic) if name]
        return sessions

    def _map(self, acl: _Acl, lun: int, wanted: dict[int, bool]) -> None:
        """Let an initiator reach a LUN under the numbers of `wanted` (number -> read-only), and under no others."""
        from rtslib_fb import MappedLUN

        there = {mapped: read_only for mapped, (to, read_only) in acl.mapped.items() if to == lun}
        for mapped in there.keys() - {number for number, read_only in wanted.items() if there.get(number) is read_only}:
            MappedLUN(acl.node, mapped).delete()
            del acl.mapped[mapped]
        for mapped, read_only in wanted.items():
            if mapped not in acl.mapped:
                MappedLUN(acl.node, mapped, lun, write_protect=read_only)
                acl.mapped[mapped] = (lun, read_only)

    def remove_lun(self, lun: int) -> None:
        """Remove a LUN, and wait until the kernel has no command for it.  Raises ConfigfsError."""
        from rtslib_fb import LUN

        with _saying(f"remove LUN {lun}"):
            for group in self._groups:
                if Path(group.path, "lun", f"lun_{lun}").exists():
                    LUN(group, lun).delete()
            for acl in self._acls.values():
                acl.mapped = {mapped: value for mapped, value in acl.mapped.items() if value[0] != lun}

    def open(self) -> None:
        """Let initiators log in.  Raises ConfigfsError."""
        with _saying("listen"):
            for group in self._groups:
                group.enable = True

    def delete(self) -> None:
        """Remove the targets.  Raises ConfigfsError.

        The kernel ends all sessions and waits for their commands, so the rings must be served meanwhile.
        """
        with _saying(f"remove the target {self._configuration.target}"), contextlib.ExitStack() as removals:
            for group in self._groups:
                removals.callback(group.parent_target.delete)  # if one fails, the others are still removed

    def _make_groups(self) -> Iterator[rtslib_fb.TPG]:
        from rtslib_fb import TPG, FabricModule, Target

        configuration = self._configuration
        if configuration.portals:
            target = Target(FabricModule("iscsi"), configuration.target)
            fresh = not Path(target.path, "tpgt_1").exists()
            group = TPG(target, 1)
            if not configuration.anyone and int(group.get_attribute("generate_node_acls")):
                # The kernel remembers each initiator that it admitted without an entry, even after the end of its
                # sessions, and admits it again.  But it lists only those that are logged in now.  It forgets them with
                # the group.  Initiators that may still log in come back by themselves.
                group.delete()
                group = TPG(target, 1)
            self._set_access(group, fresh=fresh)
            self._set_portals(group)
            yield group
        if configuration.loopback:
            yield TPG(Target(FabricModule("loopback"), configuration.loopback_wwn), 1)

    def _set_access(self, group: rtslib_fb.TPG, *, fresh: bool) -> None:
        from rtslib_fb import NodeACL

        configuration = self._configuration
        attributes = {
            "authentication": False,
            "generate_node_acls": configuration.anyone,
            "cache_dynamic_acls": configuration.anyone,
            "demo_mode_discovery": configuration.anyone,
            "demo_mode_write_protect": False,
            "default_cmdsn_depth": QUEUE_DEPTH,
        }
        for name, value in attributes.items():
            if int(group.get_attribute(name)) != int(value):
                group.set_attribute(name, int(value))
        known = {acl.node_wwn: acl for acl in group.node_acls}
        initiators = {initiator.name: initiator for initiator in configuration.initiators}
        if configuration.anyone:
            # This excludes initiators that came without an entry since, because their sessions must not change.
            reserving = configuration.reserving if fresh else configuration.reserving & known.keys()
            initiators |= {name: Initiator(name) for name in reserving - initiators.keys()}
        for name in known.keys() - initiators.keys():
            known[name].delete()
        for initiator in initiators.values():
            node = NodeACL(group, initiator.name)
            chap = {
                "chap_userid": initiator.user,
                "chap_password": initiator.secret,
                "chap_mutual_userid": initiator.target_user,
                "chap_mutual_password": initiator.target_secret,
            }
            for attribute, proof in chap.items():
                if getattr(node, attribute) != proof:
                    setattr(node, attribute, proof)
            node.set_attribute("authentication", int(bool(initiator.secret)))
            mapped = {lun.mapped_lun: (lun.tpg_lun.lun, bool(lun.write_protect)) for lun in node.mapped_luns}
            self._acls[initiator] = _Acl(node, mapped)

    def _set_portals(self, group: rtslib_fb.TPG) -> None:

        wanted = {(address, port) for address, port in self._configuration.portals}
        for portal in list(group.network_portals):
            if (portal.ip_address, portal.port) not in wanted:
                portal.delete()
        self.unbound = {}
        for address, port in self._configuration.portals:
            self._bind(group, address, port)

    def _bind(self, group: rtslib_fb.TPG, address: str, port: int) -> bool:
        """Listen on an address, and return whether that worked."""
        from rtslib_fb import NetworkPortal, RTSLibError

        try:
            NetworkPortal(group, address, port)
        except (RTSLibError, OSError) as error:
            cause = error.__context__ if isinstance(error, RTSLibError) else error
            if isinstance(cause, OSError):  # LIO answers EINVAL, whatever kept it from binding
                in_use = "the kernel cannot bind it, most likely because a program has the port"
                self.unbound[address, port] = in_use if cause.errno == errno.EINVAL else os_error.reason(cause)
            else:
                self.unbound[address, port] = str(error)
            return False
        self.unbound.pop((address, port), None)
        return True


def _linked(lun: Path) -> str:
    """Return the name of the device that a LUN's directory links to; empty if it links to none."""
    for path in lun.iterdir():
        if path.is_symlink():
            return path.readlink().name
    return ""
