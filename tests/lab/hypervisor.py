# SPDX-License-Identifier: Apache-2.0
"""libvirtd without systemd, in namespaces of its own.  Its files and processes vanish with the namespaces.

`start` runs inside the namespaces.  It mounts directories of this run over the directories that libvirt writes to, and
starts virtlogd and libvirtd.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests import peers

QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
"""
LIBVIRTD_CONF = 'auth_unix_rw = "none"\n'
COVERED = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/root/.ssh")


class CannotStart(Exception):
    """libvirtd did not start; the message is its own."""


def namespaces(command: Sequence[str]) -> list[str]:
    """Return the same command in new mount, network and PID namespaces.

    When the command or its caller ends, all its processes end.
    """
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    return ["setpriv", "--pdeathsig", "KILL", "--", *unshare, *command]


def start(directory: Path) -> None:
    """Make this namespace a host of virtual machines, with its files in `directory`, or raise CannotStart."""
    for covered in COVERED:
        ours = directory / covered.strip("/").replace("/", "-")
        ours.mkdir(parents=True)
        Path(covered).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", ours, covered], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)  # shows the interfaces of this namespace
    subprocess.run([peers.require("ip"), "link", "set", "lo", "up"], check=True)
    for path in (
        "/run/libvirt",
        "/run/lock",
        "/var/lib/libvirt/images",
        "/var/log/libvirt/qemu",
        "/var/lib/libvirt/dnsmasq",
    ):
        Path(path).mkdir(parents=True, exist_ok=True)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
    for daemon in ("virtlogd", "libvirtd"):
        subprocess.run([peers.require(daemon), "-d"], check=True)
    deadline = time.monotonic() + 60
    while True:
        listed = subprocess.run(["virsh", "-c", "qemu:///system", "list"], capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise CannotStart(f"libvirtd does not answer: {listed.stderr.strip()}")
        time.sleep(0.2)
