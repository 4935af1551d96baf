# SPDX-License-Identifier: Apache-2.0
"""The lab of `vagrant/`, without Vagrant: its provisioning scripts and its walk-through on the kernel lab's machines.

The machines have no systemd; `guest/systemctl` stands in for the few commands that the lab uses.  Their `/opt/wolun` is
this checkout.  Everything else is as after `vagrant up`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel import image
from tests.kernel.lab import CHECKOUT, Lab
from tests.kernel.machine import Machine
from tests.lab import walkthrough

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]

GUEST = Path(__file__).resolve().parent / "guest"
PROVISION = "/opt/wolun/vagrant/provision"
MACHINES = ("storage", "node1", "node2", "backup")
AS_AFTER_VAGRANT_UP = f"""
set -e
[ -e /opt/wolun ] || ln -s {CHECKOUT} /opt/wolun
install -m 755 {GUEST}/systemctl /usr/local/sbin/systemctl
for directory in /etc/wolun /var/lib/wolun /etc/systemd/system; do
    mkdir -p $directory; mount -t tmpfs tmpfs $directory
done
/lib/systemd/systemd-udevd --daemon
"""


class Walker:
    """A reader of the walk-through, who types its steps on the machines; it also carries out Vagrant's commands."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.on_host: list[str] = []
        """The commands that were typed where Vagrant runs."""

    def up(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._provision, MACHINES))

    def _provision(self, name: str) -> None:
        machine = self.lab[name]
        hosts = " ".join(f"{host}={self.lab[host].address}" for host in MACHINES)
        role = re.sub(r"\d+$", "", name)
        machine.run(AS_AFTER_VAGRANT_UP)
        machine.run(f"bash {PROVISION}/common.sh {name} {hosts} && bash {PROVISION}/{role}.sh", timeout=600)

    def type_on(self, step: walkthrough.Step) -> str | None:
        if step.machine == walkthrough.HOST:
            for command in filter(None, step.commands.splitlines()):
                self._on_host(command)
            return None  # the output would be Vagrant's
        machine: Machine = self.lab[step.machine]
        return machine.output(f"set -euo pipefail\n{step.commands}", timeout=600)

    def _on_host(self, command: str) -> None:
        self.on_host.append(command)
        if command == "vagrant up":
            self.up()
        elif halted := re.fullmatch(r"vagrant halt --force (\w+)", command):
            self.lab[halted[1]].power_off()
        else:
            assert command in ("cd vagrant", "vagrant destroy --force"), command


@pytest.fixture(scope="module")
def walker(boot_image: image.Image) -> Iterator[Walker]:
    with Lab(boot_image, MACHINES, memory=512) as lab:
        yield Walker(lab)


def test_walk_through_works_as_written(walker: Walker) -> None:
    ran = walkthrough.walk(walker.type_on, lambda step: None)
    assert ran >= 15
    assert "vagrant up" in walker.on_host
