# SPDX-License-Identifier: Apache-2.0
"""The lab's Debian packages: installed if root runs the tests on Debian, otherwise named in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

# package -> a command that only this package has.  The guests use the host's commands, over 9p.
PACKAGES = {
    "qemu-system-x86": "qemu-system-x86_64",
    "busybox-static": "busybox",
    "kmod": "depmod",
    "cpio": "cpio",
    "curl": "curl",
    "iproute2": "ip",
    "open-iscsi": "iscsiadm",
    "sg3-utils": "sg_raw",
    "e2fsprogs": "mkfs.ext4",
    "fio": "fio",
    "targetcli-fb": "targetcli",
    "tcmu-runner": "tcmu-runner",
    "dbus-daemon": "dbus-daemon",
    "dbus-bin": "dbus-send",
    "dmsetup": "dmsetup",
    "udev": "udevadm",
}
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class LabUnavailable(Exception):
    """The lab cannot run here; the text is one line that names the remedy."""


def which(command: str) -> str | None:
    """Return the path of `command`, also from the directories of administrators' programs; None if it is missing."""
    return shutil.which(command, path=SEARCH)


def missing(packages: Mapping[str, str] = PACKAGES) -> list[str]:
    """Return the packages that are missing."""
    return [package for package, command in packages.items() if not _there(package, command)]


def _there(package: str, command: str) -> bool:
    path = which(command)
    # The busybox of Debian's other package needs a C library, and our initial RAM disks have none.
    return path is not None and (package != "busybox-static" or _static(path))


def _static(program: str) -> bool:
    return subprocess.run(["ldd", program], capture_output=True, check=False).returncode != 0


def ensure(packages: Mapping[str, str] = PACKAGES) -> None:
    """Install the missing packages.  Raise LabUnavailable if that fails, or if this is not root on Debian."""
    absent = missing(packages)
    if not absent:
        return
    if os.geteuid() != 0 or which("apt-get") is None:
        raise LabUnavailable(f"the kernel lab needs packages: sudo apt-get install {' '.join(absent)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "--no-install-recommends", *absent]
    for command in (install, ["apt-get", "update", "-qq"], install):
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        if not missing(packages):
            return
    raise LabUnavailable(f"apt-get could not install {' '.join(missing(packages))}")
