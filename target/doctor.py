# SPDX-License-Identifier: Apache-2.0
"""`wolun doctor`: check what this machine can run, and name a remedy for each missing part.

The check only reads: it loads, mounts and changes nothing.  It needs no daemon and no configuration.

| fabric   | checked                                                                                          |
| -------- | ------------------------------------------------------------------------------------------------ |
| both     | the state directory, how many files may be open, libiscsi for shared volumes at iscsi:// addresses |
| `portal` | whether the portal can listen at its addresses                                                   |
| `lio`    | rights, Python packages, kernel modules, configfs, the kernel target's database directory, D-Bus |
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lun_backends.initiator import libiscsi
from target import descriptors, places
from target.configuration import fabric_kind
from target.control import client
from target.fabrics import packages

MODULES = ("target_core_user", "iscsi_target_mod", "tcm_loop")
CONFIGFS = Path("/sys/kernel/config")
SYSTEM_BUS = Path("/run/dbus/system_bus_socket")
BUS_POLICIES = (Path("/etc/dbus-1/system.d"), Path("/usr/share/dbus-1/system.d"))
SERVICE = "org.kernel.TCMUService1"
CAP_SYS_ADMIN = 21
ENOUGH_SNAPSHOTS = 1000


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    If it is not `good`, `fabric` (None: neither fabric) cannot run, unless the part is `optional`.
    """

    fabric: fabric_kind.Fabric | None
    what: str
    good: bool
    found: str
    remedy: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Report:
    """The results of all checks."""

    findings: tuple[Finding, ...]

    def can_run(self, fabric: fabric_kind.Fabric) -> bool:
        """Return whether the machine has all parts that the fabric needs."""
        needed = (finding for finding in self.findings if finding.fabric in (None, fabric))
        return all(finding.good or finding.optional for finding in needed)


def examine(state_dir: Path, listen: Iterable[str]) -> Report:
    """Check this machine; `listen` are the addresses of the portal, HOST:PORT each."""
    own = _own_portals(state_dir)
    ports = (_port(address, served=address in own) for address in listen)
    return Report((_state(state_dir), _open_files(), _libiscsi(), *ports, *_kernel()))


def show(report: Report) -> str:
    """Return the report as text for people."""
    lines = []
    for fabric, title in (
        (None, "for both fabrics"),
        (fabric_kind.Fabric.PORTAL, "fabric: portal, wolun's own iSCSI portal"),
        (fabric_kind.Fabric.LIO, "fabric: lio, the kernel's target"),
    ):
        verdict = "" if fabric is None else (": can run" if report.can_run(fabric) else ": CANNOT RUN")
        lines.append(f"{title}{verdict}")
        for finding in report.findings:
            if finding.fabric is fabric:
                mark = "ok     " if finding.good else ("-      " if finding.optional else "MISSING")
                lines.append(f"  {mark} {finding.what}: {finding.found}")
                if not finding.good and finding.remedy:
                    lines.append(f"          {finding.remedy}")
    return "\n".join(lines)


def _state(directory: Path) -> Finding:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    good = os.access(existing, os.W_OK | os.X_OK)
    found = f"{directory} {'exists' if existing == directory else 'can be created' if good else 'cannot be created'}"
    if existing == directory and not good:
        found = f"{directory} is not writable"
    return Finding(None, "state directory", good, found, places.UNUSABLE_REMEDY)


def _open_files() -> Finding:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    snapshots = descriptors.enough_for(most)
    found = f"{most}, enough for about {snapshots} snapshots"
    remedy = "raise the hard limit: `ulimit -Hn`, or LimitNOFILE= in the unit (config/wolun.service has 524288)"
    return Finding(None, "open files", snapshots >= ENOUGH_SNAPSHOTS, found, remedy, optional=True)


def _libiscsi() -> Finding:
    good = libiscsi.is_installed()
    found = f"{libiscsi.LIBRARY} {'is installed' if good else 'is not installed'}"
    remedy = "nodes whose primary is an iscsi:// address need it: apt-get install libiscsi7"
    return Finding(None, "libiscsi", good, found, remedy, optional=True)


def _own_portals(state_dir: Path) -> Collection[str]:
    """Return the addresses on which the daemon of this state directory listens; none if none runs."""
    try:
        return client.Client(state_dir, timeout=2).status().portals
    except client.Failed:
        return ()


def _port(listen: str, *, served: bool) -> Finding:
    host, port = fabric_kind.host_and_port(listen)
    fabric = fabric_kind.Fabric.PORTAL
    what = f"listening on {listen}"
    if served:
        return Finding(fabric, what, True, "the daemon of this state directory does that")
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        remedy = "stop the program that uses it, or listen at another address: portal.listen"
        return Finding(fabric, what, False, error.strerror or str(error), remedy)
    return Finding(fabric, what, True, "free")


def _kernel() -> Iterator[Finding]:
    lio = fabric_kind.Fabric.LIO
    privileged = os.geteuid() == 0 and _has_capability(CAP_SYS_ADMIN)
    who = "root" if privileged else "root without CAP_SYS_ADMIN" if os.geteuid() == 0 else f"user {os.geteuid()}"
    yield Finding(
        lio, "rights", privileged, who, "run as root; a container must be privileged, with the host's /sys and /dev"
    )
    lacking = packages.missing()
    found = f"not installed: {', '.join(lacking)}" if lacking else "installed"
    yield Finding(lio, "Python packages", not lacking, found, packages.REMEDY)
    for module in MODULES:
        good, found = _module(module)
        remedy = (
            f"boot a kernel that has it (Debian: linux-image-amd64), or in a container, load it on the host: "
            f"modprobe {module}"
        )
        yield Finding(lio, f"module {module}", good, found, remedy)
    mounted = os.path.ismount(CONFIGFS)
    known = "configfs" in Path("/proc/filesystems").read_text() or _module("configfs")[0]
    found = "mounted" if mounted else "not mounted yet; `wolun serve` mounts it" if known else "unknown to this kernel"
    yield Finding(lio, "configfs", mounted or known, found, "boot a kernel with CONFIG_CONFIGFS_FS")
    database = Path("/etc/target")
    good = database.is_dir() or os.access(database.parent, os.W_OK)
    found = "exists" if database.is_dir() else "can be created" if good else "missing, and /etc is read-only"
    yield Finding(lio, str(database), good, found, f"create it: mkdir {database}")
    bus = SYSTEM_BUS.exists()
    policy = any(
        SERVICE in path.read_text(errors="replace")
        for where in BUS_POLICIES
        if where.is_dir()
        for path in where.glob("*.conf")
    )
    found = "running" if bus and policy else f"running, without a policy for {SERVICE}" if bus else "not running"
    remedy = f"only targetcli needs it: install dbus, and copy config/{SERVICE}.wolun.conf to {BUS_POLICIES[0]}"
    yield Finding(lio, "D-Bus system bus", bus and policy, found, remedy, optional=True)


def _module(name: str) -> tuple[bool, str]:
    """Return whether a kernel module is loaded or can be loaded, and its state as text."""
    if Path("/sys/module", name).exists():
        return True, "loaded"
    modprobe = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if modprobe is None:
        return False, "not loaded, and modprobe is missing (install kmod)"
    done = subprocess.run([modprobe, "--dry-run", "--quiet", name], capture_output=True, check=False)
    if done.returncode == 0:
        return True, "can be loaded"
    return False, f"not available for kernel {platform.release()}"


def _has_capability(number: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
