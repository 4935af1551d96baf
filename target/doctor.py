# SPDX-License-Identifier: Apache-2.0
"""`wolun doctor`: what this machine can run, and what to do about what is missing.

Looks only: nothing is loaded, mounted or changed.  Needs no daemon and no configuration.

| fabric   | what is looked at                                                                                |
| -------- | ------------------------------------------------------------------------------------------------ |
| both     | the state directory                                                                              |
| `portal` | whether its address can be listened on                                                           |
| `lio`    | rights, kernel modules, configfs, the kernel target's database directory, the D-Bus system bus   |
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from target.configuration import fabric_kind

MODULES = ("target_core_user", "iscsi_target_mod", "tcm_loop")
CONFIGFS = Path("/sys/kernel/config")
SYSTEM_BUS = Path("/run/dbus/system_bus_socket")
BUS_POLICIES = (Path("/etc/dbus-1/system.d"), Path("/usr/share/dbus-1/system.d"))
SERVICE = "org.kernel.TCMUService1"
CAP_SYS_ADMIN = 21


@dataclass(frozen=True)
class Finding:
    """One thing looked at; without it `fabric` (or with None: either) does not run, unless it is `optional`."""

    fabric: fabric_kind.Fabric | None
    what: str
    good: bool
    found: str
    remedy: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Report:
    """All that was found."""

    findings: tuple[Finding, ...]

    def can_run(self, fabric: fabric_kind.Fabric) -> bool:
        """Whether nothing that the fabric needs is missing."""
        return all(each.good or each.optional for each in self.findings if each.fabric in (None, fabric))


def examine(state_dir: Path, listen: Iterable[str]) -> Report:
    """Look at this machine; `listen` is where the portal accepts initiators, HOST:PORT each."""
    return Report((_state(state_dir), *map(_port, listen), *_kernel()))


def show(report: Report) -> str:
    """The report for people."""
    lines = []
    for fabric, title in (
        (None, "for everything"),
        (fabric_kind.Fabric.PORTAL, "fabric: portal, our own iSCSI portal"),
        (fabric_kind.Fabric.LIO, "fabric: lio, the kernel's target"),
    ):
        verdict = "" if fabric is None else (": can run" if report.can_run(fabric) else ": CANNOT RUN")
        lines.append(f"{title}{verdict}")
        for each in report.findings:
            if each.fabric is fabric:
                mark = "ok     " if each.good else ("-      " if each.optional else "MISSING")
                lines.append(f"  {mark} {each.what}: {each.found}")
                if not each.good and each.remedy:
                    lines.append(f"          {each.remedy}")
    return "\n".join(lines)


def _state(directory: Path) -> Finding:
    there = next(path for path in (directory, *directory.parents) if path.exists())
    good = os.access(there, os.W_OK | os.X_OK)
    found = f"{directory} {'is there' if there == directory else 'can be made' if good else 'cannot be made'}"
    if there == directory and not good:
        found = f"{directory} is not writable"
    return Finding(None, "state directory", good, found, "make it writable, or name another with --state-dir")


def _port(listen: str) -> Finding:
    host, port = fabric_kind.host_and_port(listen)
    fabric = fabric_kind.Fabric.PORTAL
    what = f"listening on {listen}"
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        remedy = "stop what uses it (a running wolun is fine), or listen elsewhere: portal.listen"
        return Finding(fabric, what, False, error.strerror or str(error), remedy)
    return Finding(fabric, what, True, "free")


def _kernel() -> Iterator[Finding]:
    lio = fabric_kind.Fabric.LIO
    privileged = os.geteuid() == 0 and _has_capability(CAP_SYS_ADMIN)
    who = "root" if privileged else "root without CAP_SYS_ADMIN" if os.geteuid() == 0 else f"user {os.geteuid()}"
    yield Finding(
        lio, "rights", privileged, who, "run as root; in a container: privileged, with the host's /sys and /dev"
    )
    for module in MODULES:
        good, found = _module(module)
        remedy = (
            f"boot a kernel that has it (Debian: linux-image-amd64), or load it on the host of this container: "
            f"modprobe {module}"
        )
        yield Finding(lio, f"module {module}", good, found, remedy)
    mounted = os.path.ismount(CONFIGFS)
    known = "configfs" in Path("/proc/filesystems").read_text() or _module("configfs")[0]
    found = "mounted" if mounted else "not mounted yet; `wolun serve` does it" if known else "unknown to this kernel"
    yield Finding(lio, "configfs", mounted or known, found, "boot a kernel with CONFIG_CONFIGFS_FS")
    database = Path("/etc/target")
    good = database.is_dir() or os.access(database.parent, os.W_OK)
    found = "there" if database.is_dir() else "can be made" if good else "missing, and /etc is read-only"
    yield Finding(lio, str(database), good, found, f"make it: mkdir {database}")
    bus = SYSTEM_BUS.exists()
    policy = any(
        SERVICE in path.read_text(errors="replace")
        for where in BUS_POLICIES
        if where.is_dir()
        for path in where.glob("*.conf")
    )
    found = "there" if bus and policy else f"there, without a policy for {SERVICE}" if bus else "not running"
    remedy = f"only targetcli needs it: install dbus, and config/{SERVICE}.wolun.conf in {BUS_POLICIES[0]}"
    yield Finding(lio, "D-Bus system bus", bus and policy, found, remedy, optional=True)


def _module(name: str) -> tuple[bool, str]:
    """Whether a kernel module is or can be loaded, and how it stands."""
    if Path("/sys/module", name).exists():
        return True, "loaded"
    modprobe = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if modprobe is None:
        return False, "not loaded, and modprobe is missing (install kmod)"
    done = subprocess.run([modprobe, "--dry-run", "--quiet", name], capture_output=True, check=False)
    if done.returncode == 0:
        return True, "can be loaded"
    return False, f"not there for kernel {platform.release()}"


def _has_capability(number: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
