# SPDX-License-Identifier: Apache-2.0
"""`wolun serve` in a guest, used as a user does: with a configuration file, a state directory and signals."""

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
"""A command that succeeds once a process owns the name under which targetcli looks for handlers."""
START_TIMEOUT = 400  # seconds; a start takes 10 if nothing else runs


class GuestDaemon:
    """One daemon; its log is `name`.log in the guest's /run/log, and `configuration` is YAML."""

    def __init__(self, machine: Machine, configuration: str, *, name: str = "wolun") -> None:
        self.machine = machine
        self.name = name
        self.state = f"/run/{name}"
        self.log = f"/run/log/{name}.log"
        self.command = f"{WOLUN} --state-dir {self.state}"
        self.runs = False
        """Whether the daemon was started and has not ended since."""
        machine.run(f"mkdir -p -m 700 {self.state}")
        self.put("config.yaml", configuration)

    def put(self, name: str, content: str) -> None:
        """Make a file in the state directory that only the daemon's user can read."""
        self.machine.run(f"(umask 077; printf %s {shlex.quote(content)} > {self.state}/{name})")

    def start(self, until: str = "^ready:", *, program: str = str(WOLUN)) -> None:
        """Start the daemon and wait for a line of its output that matches `until`.

        Raise CommandFailed, with the daemon's output, if the daemon ends or prints no such line in time.
        """
        serve = f"{program} serve --config {self.state}/config.yaml --state-dir {self.state}"
        # No loop of grep and sleep: on one emulated processor, such a loop took two of every five seconds from the
        # daemon.
        self.machine.run(
            f"cd /; : > {self.log}; {serve} >> {self.log} 2>&1 & echo $! > {self.state}/pid\n"
            f"grep -qm 1 {shlex.quote(until)} < <(exec tail --pid=$! -n +1 -f {self.log}) || {{ cat {self.log}; exit 1; }}",
            timeout=START_TIMEOUT,
        )
        self.runs = True

    def kill(self) -> None:
        """Send SIGKILL and wait until the process is gone, and with it its locks."""
        self.runs = False
        self.machine.end(f"{self.state}/pid", signal="KILL")

    def stop(self) -> None:
        """Send SIGTERM and wait for the end.

        Raise CommandFailed if the daemon's last line of output does not say that it stopped.
        """
        self.runs = False
        self.machine.end(f"{self.state}/pid")
        self.machine.run(f"tail -n 1 {self.log} | grep -q 'stopped$' || {{ cat {self.log}; exit 1; }}")

    def wolun(self, *arguments: str) -> str:
        """Run a `wolun` command against the daemon and return the output."""
        return self.machine.output(f"{self.command} {shlex.join(arguments)}")

    def snapshot(self, volume: str, name: str) -> dict[str, Any]:
        """Take a snapshot and return the object that `--json` prints."""
        taken: dict[str, Any] = json.loads(self.wolun("--json", "snapshot", "create", volume, name))
        return taken


def loopback_disk(machine: Machine, lun: int) -> str:
    """Wait for the disk that tcm_loop makes of a LUN, and return its path."""
    pattern = f"/sys/class/scsi_disk/*:{lun}/device/block/*"
    return sys_disk(machine, pattern)


def sys_disk(machine: Machine, pattern: str) -> str:
    """Wait until a directory in /sys matches `pattern` and its disk can be opened, and return the disk's path."""
    return machine.wait_until(f"set -- {pattern}; disk=/dev/${{1##*/}}; [ -b $disk ] && echo $disk")


def wait_for_writes(machine: Machine, disk: str, count: int = 20) -> None:
    """Wait until the disk has done `count` more writes."""
    done = f"read -a done < /sys/block/{disk[5:]}/stat"
    before = int(machine.output(f"{done}; echo ${{done[4]}}"))
    machine.wait_until(f"{done}; [ ${{done[4]}} -ge {before + count} ]")
