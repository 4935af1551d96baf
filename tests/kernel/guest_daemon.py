# SPDX-License-Identifier: Apache-2.0
"""`wolun serve` in a guest, as a user runs it: a configuration file, a state directory, signals."""

from __future__ import annotations

import json
import shlex
from typing import Any

from tests.kernel.lab import CHECKOUT
from tests.kernel.machine import Machine

WOLUN = CHECKOUT / ".venv/bin/wolun"
TCMU_SERVICE_IS_THERE = (
    "dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner "
    "string:org.kernel.TCMUService1 | grep -q true"
)
"""Succeeds when somebody owns the name under which targetcli looks for handlers."""
START_TIMEOUT = 400  # seconds; 10 where nothing else runs


class GuestDaemon:
    """One daemon, named for its log in the guest's /run/log; `configuration` is YAML."""

    def __init__(self, machine: Machine, configuration: str, *, name: str = "wolun") -> None:
        self.machine = machine
        self.name = name
        self.state = f"/run/{name}"
        self.log = f"/run/log/{name}.log"
        self.command = f"{WOLUN} --state-dir {self.state}"
        self.runs = False
        """Whether it was started, and not ended since."""
        machine.run(f"mkdir -p -m 700 {self.state}")
        self.put("config.yaml", configuration)

    def put(self, name: str, content: str) -> None:
        """Make a file in the state directory, for the daemon's eyes only."""
        self.machine.run(f"(umask 077; printf %s {shlex.quote(content)} > {self.state}/{name})")

    def start(self, until: str = "^ready:", *, program: str = str(WOLUN)) -> None:
        """Start it, and wait for a line of its output; raises CommandFailed with what it said if it does not get there."""
        serve = f"{program} serve --config {self.state}/config.yaml --state-dir {self.state}"
        # not in a loop of grep and sleep: on one emulated processor that took two seconds of every five from the daemon
        self.machine.run(
            f"cd /; : > {self.log}; {serve} >> {self.log} 2>&1 & echo $! > {self.state}/pid\n"
            f"grep -qm 1 {shlex.quote(until)} < <(exec tail --pid=$! -n +1 -f {self.log}) || {{ cat {self.log}; exit 1; }}",
            timeout=START_TIMEOUT,
        )
        self.runs = True

    def kill(self) -> None:
        """Kill -9; when it returns nothing of it is left, its locks neither."""
        self.runs = False
        self.machine.end(f"{self.state}/pid", signal="KILL")

    def stop(self) -> None:
        """SIGTERM, and wait for the end; raises CommandFailed if it does not say that it stopped."""
        self.runs = False
        self.machine.end(f"{self.state}/pid")
        self.machine.run(f"tail -n 1 {self.log} | grep -q 'stopped$' || {{ cat {self.log}; exit 1; }}")

    def wolun(self, *arguments: str) -> str:
        """Run a command against it; what it prints."""
        return self.machine.output(f"{self.command} {shlex.join(arguments)}")

    def snapshot(self, volume: str, name: str) -> dict[str, Any]:
        """Take a snapshot; what `--json` says of it."""
        taken: dict[str, Any] = json.loads(self.wolun("--json", "snapshot", "create", volume, name))
        return taken


def loopback_disk(machine: Machine, lun: int) -> str:
    """Return the disk that tcm_loop makes of a LUN, once it is there."""
    pattern = f"/sys/class/scsi_disk/*:{lun}/device/block/*"
    return sys_disk(machine, pattern)


def sys_disk(machine: Machine, pattern: str) -> str:
    """Return the disk whose directory in /sys matches, once it can be opened."""
    return machine.wait_until(f"set -- {pattern}; disk=/dev/${{1##*/}}; [ -b $disk ] && echo $disk")


def wait_for_writes(machine: Machine, disk: str, count: int = 20) -> None:
    """Return when the disk has done that many more writes."""
    done = f"read -a done < /sys/block/{disk[5:]}/stat"
    before = int(machine.output(f"{done}; echo ${{done[4]}}"))
    machine.wait_until(f"{done}; [ ${{done[4]}} -ge {before + count} ]")
