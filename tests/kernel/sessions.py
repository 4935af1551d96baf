# SPDX-License-Identifier: Apache-2.0
"""Sessions of open-iscsi under names of their own, several on one machine: each one is an initiator."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from tests.kernel.guest_daemon import sys_disk
from tests.kernel.machine import Completed, Machine

_STATE = "cat /sys/class/iscsi_session/session{}/state"


@dataclass
class Session:
    """A session on the machine `node`, under a name of its own."""

    node: Machine
    name: str
    number: str
    disk: str

    @classmethod
    def open(cls, node: Machine, name: str, at: str) -> Session:
        """Log in under that name at HOST:PORT, and wait for the disk of LUN 0."""
        interface = name.rpartition(":")[2]
        node.run(
            f"iscsiadm -m iface -I {interface} -o new\n"
            f"iscsiadm -m iface -I {interface} -o update -n iface.initiatorname -v {name}\n"
            f"iscsiadm -m discovery -t sendtargets -p {at} -I {interface}\n"
            f"for timeout in interval timeout; do iscsiadm -m node -I {interface} -o update "
            "-n node.conn[0].timeo.noop_out_$timeout -v 1; done\n"
            f"iscsiadm -m node -I {interface} --login"
        )
        number = node.output(f"grep -lx {name} /sys/class/iscsi_session/*/initiatorname | tr -dc '0-9\\n'")
        disk = sys_disk(node, f"/sys/class/iscsi_session/session{number}/device/target*/*:0/block/*")
        return cls(node, name, number, disk)

    def close(self) -> None:
        """Log out, and forget the name."""
        interface = self.name.rpartition(":")[2]
        self.node.run(
            f"iscsiadm -m node -I {interface} --logout; iscsiadm -m node -I {interface} -o delete", check=False
        )
        self.node.run(f"iscsiadm -m iface -I {interface} -o delete", check=False)

    def await_state(self, state: str) -> None:
        """Wait until the kernel says that the session is in that state."""
        self.node.wait_until(f"[ $({_STATE.format(self.number)}) = {state} ]")

    def write(self, letter: str) -> Future[Completed]:
        """Begin to fill block 0 with a letter, and to force it to the medium."""
        data = f"head -c 4096 /dev/zero | tr '\\0' {letter}"
        return self.node.submit(f"{data} | dd of={self.disk} bs=4096 count=1 iflag=fullblock oflag=direct,dsync")

    def reserve_out(self, *words: str) -> str:
        """Return a command for PERSISTENT RESERVE OUT; it tries twice, because the first one may meet a unit attention."""
        command = f"sg_persist --no-inquiry --out {' '.join(words)} {self.disk}"
        return f"{{ {command} || {command}; }}"
