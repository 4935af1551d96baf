# SPDX-License-Identifier: Apache-2.0
"""`make lab`: the whole run from a new box to the last step of vagrant/README.md.

The run makes a box, brings the lab of `vagrant/` up with it, walks through the README and takes everything down.

It needs root, for mmdebstrap and libvirtd.  It works in namespaces of its own and leaves nothing behind.  The machines
are emulated, because an existing /dev/kvm may still not work; `WOLUN_LAB_DRIVER=kvm` uses it.  WOLUN_LAB_BOX names a
box file and saves the time to make one.
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

ERASED = "\x1b[K"  # the terminal drops the text before it
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
    """Install what the lab needs on this host, or raise PeerMissing or LabUnavailable."""
    wanted = {package for program, package in PEERS.items() if peers.find(program) is None}
    if not list(Path("/").glob(PLUGIN[1].lstrip("/"))):
        wanted.add(PLUGIN[0])
    if wanted:
        peers.install(sorted(wanted))
    packages.ensure()


class Vagrant:
    """Vagrant, with all its files in `directory`."""

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
        """Run a step and return what it prints, or raise CalledProcessError."""
        if step.machine == walkthrough.HOST:
            # A reader begins in the checkout, types `cd vagrant` and stays there; here each block has its own shell.
            directory = CHECKOUT if step.commands.startswith("cd ") else CHECKOUT / "vagrant"
            return self._run(["bash", "-euo", "pipefail", "-c", step.commands], directory)
        typed = f"sudo bash -euo pipefail -c {shlex.quote(step.commands)}"
        return self._run(["vagrant", "ssh", step.machine, "--no-tty", "-c", typed], CHECKOUT / "vagrant")

    def _run(self, command: list[str], directory: Path) -> str:
        """Run a command, show its standard output at once, and return it."""
        printed: list[str] = []
        with subprocess.Popen(
            command, cwd=directory, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                line = line.rpartition(ERASED)[2]
                if line.startswith("Progress:"):  # there are hundreds of such lines
                    continue
                print(line, end="", flush=True)
                printed.append(line)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return "".join(printed)

    def consoles(self) -> str:
        """Return the ends of the output of the machines' serial ports."""
        return "".join(
            f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-2000:]}\n" for path in self._consoles.iterdir()
        )

    def add(self, file: Path) -> None:
        """Add a box file to Vagrant's boxes."""
        self._run(["vagrant", "box", "add", "--name", BOX, str(file)], CHECKOUT)


def outside() -> int:
    """Prepare everything outside of the namespaces, wait for the run inside, and return the exit code."""
    if os.geteuid() != 0:
        sys.stderr.write(
            "the lab makes a machine's root file system and runs libvirtd: run it as root, like `sudo make lab`\n"
        )
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
    """Run the lab in its own namespaces, and return the exit code."""
    vagrant = Vagrant(directory)
    try:
        hypervisor.start(directory / "host")
        vagrant.add(file)
        note("bringing the machines up, and walking through")
        ran = walkthrough.walk(vagrant.type_on, show)
        note(f"{ran} steps of vagrant/README.md are true")
    except (hypervisor.CannotStart, walkthrough.NotTrue) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    except subprocess.CalledProcessError as failed:
        sys.stderr.write(f"{failed}\n{vagrant.consoles()}")
        return 1
    return 0


def show(step: walkthrough.Step) -> None:
    """Show a step's commands as a reader of the README types them; their output follows."""
    print("\n".join(f"{step.machine}# {line}" for line in step.commands.splitlines()), flush=True)


def note(what: str) -> None:
    """Print the time and what comes next."""
    print(f"--- {time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(inside(*map(Path, sys.argv[1:])) if len(sys.argv) > 1 else outside())
