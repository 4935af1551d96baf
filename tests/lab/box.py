# SPDX-License-Identifier: Apache-2.0
"""A Debian 12 box for Vagrant's libvirt provider, made without a catalogue, a boot loader or a network in the machine.

Debian comes through this host's apt configuration.  The box contains what `vagrant/provision` would fetch otherwise: the
packages, and a `.venv` with this checkout's requirements.  The checkout itself comes with `vagrant up`.  Kernel and
initial RAM disk lie beside the disk image, for a direct boot; apart from the disk driver they are the kernel lab's.

    metadata.json   provider, format and size
    Vagrantfile     how to boot it
    box.img         the root file system, without a partition table, as qcow2
    vmlinux, initrd.img
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests import peers
from tests.kernel import image

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "box"
PUBLIC_KEY = "/usr/share/rubygems-integration/all/gems/vagrant-2*/keys/vagrant.pub"  # the public one of all boxes
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "openssh-server", "sudo", "rsync", "python3-venv"),
    *("open-iscsi", "sg3-utils", "ca-certificates", "procps"),
)
DISK = 2  # GiB
PYTHON = "3.11"  # Debian 12's
NO_USE = (
    "sound",
    "drivers/gpu",
    "drivers/media",
    "drivers/net/wireless",
    "drivers/net/ethernet",
    "drivers/infiniband",
    "drivers/staging",
)
# Every Vagrant box has these: its user, its key, sudo without a password; addresses by DHCP on the first interface
SETUP = """
set -eu
useradd --create-home --shell /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/vagrant
install -d -m 700 -o vagrant -g vagrant /home/vagrant/.ssh
install -m 600 -o vagrant -g vagrant /tmp/lab/vagrant.pub /home/vagrant/.ssh/authorized_keys
printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\nLinkLocalAddressing=no\\n[DHCPv4]\\nClientIdentifier=mac\\n' > /etc/systemd/network/10-eth0.network
echo '/dev/vda / ext4 defaults 0 0' > /etc/fstab
echo 'UseDNS no' > /etc/ssh/sshd_config.d/lab.conf
systemctl enable systemd-networkd ssh
systemctl disable systemd-networkd-wait-online apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer
python3 -m venv /opt/wolun/.venv
pip='/opt/wolun/.venv/bin/pip -q --disable-pip-version-check'
$pip install --no-index --no-deps /tmp/lab/wheels/*.whl
$pip uninstall -y wolun
$pip install --no-index --no-deps --no-build-isolation --editable /opt/wolun
rm -r /tmp/lab
"""


def build(directory: Path, box: Path) -> None:
    """Make `box`, with `directory` for temporary files, or raise CalledProcessError."""
    boot = image.build()
    root, parts, raw = (directory / name for name in ("root", "parts", "raw"))
    _debian(root, directory)
    modules = root / "usr/lib/modules" / boot.release
    no_use = {str(boot.modules / "kernel" / part) for part in NO_USE}
    shutil.copytree(boot.modules, modules, ignore=lambda parent, names: {n for n in names if f"{parent}/{n}" in no_use})
    _run("depmod", "-b", root, boot.release)
    parts.mkdir()
    shutil.copy(HERE / "Vagrantfile", parts)
    shutil.copy(boot.kernel, parts / "vmlinux")
    shutil.copy(image.initrd(boot.release, HERE / "init", BOOT_MODULES), parts / "initrd.img")
    (parts / "metadata.json").write_text(json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": DISK}))
    _run("mkfs.ext4", "-q", "-d", root, raw, f"{DISK}G")
    _run("qemu-img", "convert", "-O", "qcow2", raw, parts / "box.img")
    _run("tar", "-cf", box, "-C", parts, *sorted(path.name for path in parts.iterdir()))
    shutil.rmtree(root)
    raw.unlink()


def _debian(root: Path, directory: Path) -> None:
    """Make the root file system, with Python's packages."""
    bring = directory / "lab"
    bring.mkdir()
    _wheels(bring / "wheels")
    shutil.copy(sorted(Path("/").glob(PUBLIC_KEY.lstrip("/")))[-1], bring)
    (bring / "setup").write_text(SETUP)
    checkout = f"tar -C {CHECKOUT} -c lun_backends target setup.cfg pyproject.toml README.md LICENSE | tar -C {root}/opt/wolun -x"
    hooks = [f"cp -r {bring} {root}/tmp && mkdir {root}/opt/wolun && {checkout}", f"chroot {root} bash /tmp/lab/setup"]
    _run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"),
        *(
            '--aptopt=APT::Install-Recommends "false"',
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
        ),
        *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
        *(f"--customize-hook={hook}" for hook in hooks),
        *("bookworm", root),
    )


def _wheels(directory: Path) -> None:
    """Collect wheels of all requirements for Debian 12's Python, which may differ from the one that runs here."""
    pip = (CHECKOUT / ".venv/bin/python", "-m", "pip", "-q", "--disable-pip-version-check")
    with tempfile.TemporaryDirectory() as built:
        _run(*pip, "wheel", "-w", built, f"{CHECKOUT}[lio]")  # some packages have no wheel
        _run(
            *(*pip, "download", "-d", directory, "--find-links", built),
            *("--python-version", PYTHON, "--only-binary=:all:", "wolun[lio]", "setuptools"),
        )


def _run(*command: str | Path) -> None:
    environment = {**os.environ, "PATH": peers.SEARCH_PATH}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)
