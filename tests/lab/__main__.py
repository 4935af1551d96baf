# SPDX-License-Identifier: Apache-2.0
"""`make lab`: makes a box, brings the lab of `vagrant/` up with it, walks through vagrant/README.md, takes everything down.

Needs root, for mmdebstrap and libvirtd, which runs in namespaces of its own; nothing is left.  Machines are emulated: a /dev/kvm that
is there may still not run them; `WOLUN_LAB_DRIVER=kvm` uses it.  WOLUN_LAB_BOX, a file, saves making the box.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import peers
from tests.kernel import packages
from tests.lab import box, hypervisor, walkthrough

ERASED = "\x1b[K"  # what was on the line before
CHECKOUT = Path(__file__).resolve().parents[2]
BOX = "wolun-lab"
PEERS = {
    "vagrant": "vagrant",
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "dnsmasq": "dnsmasq-base",
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "rsync": "rsync",
    "ip": "iproute2",
}
PLUGIN = ("vagrant-libvirt", "/usr/share/rubygems-integration/all/gems/vagrant-libvirt-*")


def install() -> None:
    """What the lab needs on this host.  Raises PeerMissing, LabUnavailable."""
    wanted = {package for program, package in PEERS.items() if peers.find(program) is None}
    if not list(Path("/").glob(PLUGIN[1].lstrip("/"))):
        wanted.add(PLUGIN[0])
    if wanted:
        peers.install(sorted(wanted))
    packages.ensure()


class Vagrant:
    """Vagrant, with all that it keeps in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._consoles = directory / "consoles"
        self._consoles.mkdir()
        self._environment = {
            **os.environ,
            "PATH": peers.SEARCH_PATH,
            "VAGRANT_HOME": str(directory / "vagrant"),
            "VAGRANT_DOTFILE_PATH": str(directory / "dotfile"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_BOX_UPDATE_CHECK_DISABLE": "1",
            "WOLUN_LAB_BOX": BOX,
            "WOLUN_LAB_CONSOLES": str(directory / "consoles"),
            "WOLUN_LAB_DRIVER": os.environ.get("WOLUN_LAB_DRIVER", "qemu"),
        }

    def type_on(self, step: walkthrough.Step) -> str:
        """What a step prints; raises CalledProcessError."""
        if step.machine == walkthrough.HOST:
            # whoever follows begins in the checkout, says `cd vagrant` and stays there; here each block has its own shell
            directory = CHECKOUT if step.commands.startswith("cd ") else CHECKOUT / "vagrant"
            return self._run(["bash", "-euo", "pipefail", "-c", step.commands], directory)
        typed = f"sudo bash -euo pipefail -c {shlex.quote(step.commands)}"
        return self._run(["vagrant", "ssh", step.machine, "--no-tty", "-c", typed], CHECKOUT / "vagrant")

    def _run(self, command: list[str], directory: Path) -> str:
        """What a command prints on standard output, which is shown while it does."""
        printed: list[str] = []
        with subprocess.Popen(
            command, cwd=directory, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                line = line.rpartition(ERASED)[2]
                if line.startswith("Progress:"):  # hundreds of them
                    continue
                print(line, end="", flush=True)
                printed.append(line)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return "".join(printed)

    def consoles(self) -> str:
        """The ends of what the machines said on their serial ports."""
        return "".join(
            f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-2000:]}\n" for path in self._consoles.iterdir()
        )

    def add(self, file: Path) -> None:
        """Make a box known."""
        self._run(["vagrant", "box", "add", "--name", BOX, str(file)], CHECKOUT)


def outside() -> int:
    """Make what is needed outside of the namespaces, and wait for what happens in them; the exit code."""
    if os.geteuid() != 0:
        sys.stderr.write("the lab makes a machine's root and runs libvirtd: be root, as with `sudo make lab`\n")
        return 1
    try:
        install()
    except (peers.PeerMissing, packages.LabUnavailable) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="wolun-vagrant-") as scratch:
        file = os.environ.get("WOLUN_LAB_BOX")
        if file is None:
            note("making a box")
            file = f"{scratch}/lab.box"
            directory = Path(scratch, "box")
            directory.mkdir()
            box.build(directory, Path(file))
        return subprocess.run(
            hypervisor.namespaces([sys.executable, "-m", "tests.lab", scratch, file]), check=False
        ).returncode


def inside(directory: Path, file: Path) -> int:
    """What happens in namespaces of its own; the exit code."""
    vagrant = Vagrant(directory)
    try:
        hypervisor.start(directory / "host")
        vagrant.add(file)
        note("bringing the machines up, and walking through")
        ran = walkthrough.walk(vagrant.type_on, tell)
        note(f"{ran} steps of vagrant/README.md are true")
    except (hypervisor.CannotStart, walkthrough.NotTrue) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    except subprocess.CalledProcessError as failed:
        sys.stderr.write(f"{failed}\n{vagrant.consoles()}")
        return 1
    return 0


def tell(step: walkthrough.Step) -> None:
    """Show what is typed, as one sees it who follows the README; what it prints comes then."""
    print("\n".join(f"{step.machine}# {line}" for line in step.commands.splitlines()), flush=True)


def note(what: str) -> None:
    """Say what comes, and when that was."""
    print(f"--- {time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(inside(*map(Path, sys.argv[1:])) if len(sys.argv) > 1 else outside())
