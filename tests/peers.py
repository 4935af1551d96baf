# SPDX-License-Identifier: Apache-2.0
"""The foreign programs that tests use: found on this machine, installed, or named for installation.

`require` never skips a test.  On Debian as root it installs the missing package; anywhere else it fails with one line
that names the package.  `make test` calls `python -m tests.peers` first, so that one `apt-get` fetches everything at
once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PEERS: Mapping[str, str] = {
    "ceph": "ceph-common",
    "ceph-mgr": "ceph-mgr",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "corosync": "corosync",
    "curl": "curl",
    "dbus-daemon": "dbus-daemon",
    "e2fsck": "e2fsprogs",
    "fsfreeze": "util-linux",
    "gcc": "gcc",
    "ip": "iproute2",
    "iscsi-inq": "libiscsi-bin",
    "iscsi-ls": "libiscsi-bin",
    "iscsi-perf": "libiscsi-bin",
    "iscsi-test-cu": "libiscsi-bin",
    "iscsiadm": "open-iscsi",
    "make": "make",
    "mke2fs": "e2fsprogs",
    "mount": "mount",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-x86",
    "qemu-system-x86_64": "qemu-system-x86",
    "promtool": "prometheus",
    "sg_inq": "sg3-utils",
    "radosgw": "radosgw",
    "shellcheck": "shellcheck",
    "spin": "spin",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "tgtd": "tgt",
    "unshare": "util-linux",
    "vagrant": "vagrant",
    "zsh": "zsh",
}
"""Programs, and the Debian package of each."""

LIBRARIES: Mapping[str, str] = {
    "qemu/block-iscsi.so": "qemu-block-extra",
}
"""Files under /usr/lib/<triplet>, and the Debian package of each."""

# Administrators' programs live in sbin, which is not on every user's PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class PeerMissing(Exception):
    """A program that the tests need is missing, and could not be installed."""


def find(program: str) -> str | None:
    """Return the path of `program`; None if it is not installed."""
    return shutil.which(program, path=SEARCH_PATH)


def require(program: str, package: str | None = None) -> str:
    """Return the path of `program`.  If it is missing, install Debian's `package` first, if possible.

    With a program of QEMU, install QEMU's iSCSI support, too.  Raise PeerMissing, with one line that names the package
    to install.
    """
    found = find(program)
    if found is None:
        install([package or PEERS.get(program, program)])
        found = find(program)
    if found is None:
        raise PeerMissing(f"{program} is missing although its package {package or PEERS.get(program)} is installed")
    if PEERS.get(program) == "qemu-utils":
        libraries = [package for file, package in LIBRARIES.items() if not _library(file)]
        if libraries:
            install(libraries)
    return found


def need_root(what: str) -> None:
    """Raise PeerMissing, with one line, unless this is root, whom `what` needs."""
    if os.geteuid() != 0:
        raise PeerMissing(f"{what} needs root: sudo make test")


def missing_packages() -> list[str]:
    """Return the Debian packages of all missing peers, sorted, each once."""
    packages = {package for program, package in PEERS.items() if find(program) is None}
    packages |= {package for file, package in LIBRARIES.items() if not _library(file)}
    return sorted(packages)


def install(packages: list[str]) -> None:
    """Install these packages with apt-get, one process at a time.  Fetch the package lists only if the first try fails.

    Raise PeerMissing if apt-get cannot install them, or if this is not root on Debian.
    """
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PeerMissing(f"the tests need these packages, please install them: sudo apt-get install {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    with (Path(tempfile.gettempdir()) / f"wolun-peers-{os.geteuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerMissing(f"apt-get could not install {names}: {reason}")


def _library(file: str) -> bool:
    return any(Path("/usr/lib").glob(f"*/{file}")) or Path("/usr/lib", file).exists()


def main() -> int:
    """Install all missing packages, and return the exit status."""
    packages = missing_packages()
    if packages:
        try:
            install(packages)
        except PeerMissing as problem:
            sys.stderr.write(f"{problem}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
