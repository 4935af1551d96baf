# SPDX-License-Identifier: Apache-2.0
"""Four machines that share a volume: a storage host, two nodes that write, and one that reads, over disks of open-iscsi.

The storage host has two targets with an address each, so that a test can cut a node's link to one of them: the primary, and
the log with the pool.  Both record (`recorder.py`), so a test knows what was on the medium at each fence, whatever the
views say.  Nodes can stand still at any step of a snapshot (`halting.py`).
"""

from __future__ import annotations

import contextlib
import shlex
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tests.kernel.guest_daemon import GuestDaemon, sys_disk
from tests.kernel.halting import PATIENCE
from tests.kernel.lab import CHECKOUT, Lab
from tests.kernel.machine import COMMAND_TIMEOUT, Completed, Machine

STORAGE = "storage"
WRITERS = ("node1", "node2")
READER = "node3"
NODES = (*WRITERS, READER)
PRIMARY_AT, WRITE_ONCE_AT = "10.9.0.1", "10.9.0.101"
MEDIUM = "/run/medium"
MAX_DELAY = 60  # milliseconds; the longest that a write waits before it reaches the medium
LOAD_TIMEOUT = 3000  # seconds

_PYTHON = f"env PYTHONPATH={CHECKOUT} {CHECKOUT}/.venv/bin/python"
_RECORDING = f"{_PYTHON} -m tests.kernel.recorder"
_HALTING = f"{_PYTHON} -m tests.kernel.halting"
_CELLS = f"python3 -S {CHECKOUT}/tests/kernel/numbered.py"
_STATUS = "/run/cells"
_PRIMARY = f"""
target: iqn.2026-11.io.wolun:storage
portal: {{listen: {PRIMARY_AT}:3260}}
access: {{networks: [10.9.0.0/24]}}
volumes:
  - {{name: vol0, lun: 0, size: %s, primary: {MEDIUM}/image}}
"""
_WRITE_ONCE = f"""
target: iqn.2026-11.io.wolun:archive
portal: {{listen: {WRITE_ONCE_AT}:3260}}
access: {{networks: [10.9.0.0/24]}}
volumes: []
write_once:
  - {{volume: vol0, size: %s, pool: 3}}
"""
_NODE = """
target: iqn.2026-11.io.wolun:{name}
fabric: lio
lio: {{listen: [], loopback: true}}
volumes: []
shared:
  - {{name: vol0, node: {name}, primary: {primary}, lun: 0}}
"""


class Node:
    """A machine with the daemon, its disk of the volume, and its writer."""

    def __init__(self, machine: Machine, writer: int) -> None:
        self.machine, self.writer = machine, writer
        log_in = "iscsiadm -m discovery -t sendtargets -p {0} && iscsiadm -m node -p {0} --login"
        machine.run(f"modprobe -a iscsi_tcp sd_mod sg && iscsid\n{log_in.format(PRIMARY_AT)}")
        self.primary = sys_disk(machine, "/sys/class/iscsi_session/session*/device/target*/*:0/block/*")
        machine.run(log_in.format(WRITE_ONCE_AT))
        configuration = _NODE.format(name=machine.name, primary=self.primary)
        self.daemon = GuestDaemon(machine, configuration, name="node")
        self.daemon.start(program=_HALTING)
        self.disk = self.own_disk(0)
        machine.run(f"echo {PATIENCE:.0f} > /sys/block/{self.disk[5:]}/device/timeout")
        self.load: Future[Completed] | None = None

    def own_disk(self, lun: int) -> str:
        """Return the disk that this machine's daemon serves under that number; the storage host has the same numbers."""
        return sys_disk(self.machine, f"/sys/devices/tcm_loop_0/tcm_loop_adapter_*/host*/target*/*:{lun}/block/*")

    def start_again(self) -> None:
        """Start the daemon again, after it was killed."""
        self.daemon.start(program=_HALTING)

    def write(self) -> None:
        """Begin to write."""
        self.machine.run(f"rm -f {_STATUS}*")
        self.load = self.machine.submit(f"{_CELLS} write {self.disk} {self.writer} {_STATUS}", timeout=LOAD_TIMEOUT)
        self.wait_for_writes()

    def stop(self) -> None:
        """End the writer.  Raise AssertionError if a write failed."""
        assert self.load is not None
        self.machine.run(f"touch {_STATUS}.stop")
        ended = self.load.result(COMMAND_TIMEOUT)
        assert ended.code == 0, ended.output

    @contextlib.contextmanager
    def standing_still(self, what: str) -> Iterator[None]:
        """Stop the `machine` or the `daemon` in the midst of whatever it does, for a while."""
        daemon = f"$(< {self.daemon.state}/pid)"
        if what == "machine":
            self.machine.pause()
        else:
            self.machine.run(f"kill -STOP {daemon}")
        try:
            yield
        finally:
            if what == "machine":
                self.machine.resume()
            else:
                self.machine.run(f"kill -CONT {daemon}")

    def writes(self) -> tuple[int, int]:
        """Return how many writes have begun, and how many have ended."""
        return self._status()[:2]

    def longest_pause(self) -> float:
        """Return the longest time without the end of a write since the last call, in seconds."""
        pause = self._status()[2]
        self.machine.run(f"touch {_STATUS}.reset")
        return pause / 1e6

    def _status(self) -> tuple[int, int, int]:
        shown = bytes.fromhex(self.machine.output(f"od -An -v -tx1 {_STATUS} | tr -d ' \\n'"))
        begun, ended, longest = struct.unpack("<QQQ", shown)
        return begun, ended, longest

    def wait_for_writes(self, count: int = 10) -> None:
        """Return when that many further writes have ended."""
        number = f"$(od -An -j8 -N8 -tu8 {_STATUS} 2> /dev/null || echo 0)"
        self.machine.wait_until(f"[ {number} -ge {count + int(self.machine.output(f'echo {number}'))} ]")

    def await_status(self, words: str = '"state":"armed"') -> None:
        """Return when the status of the node has these words; by default, when it takes part in the volume."""
        self.machine.wait_until(f"{self._ask('status')} | grep -qF {shlex.quote(words)}")

    def snapshot(self, name: str) -> None:
        """Take a snapshot."""
        self.machine.run(self.taking(name))

    def taking(self, name: str) -> str:
        """Return a command that takes a snapshot."""
        return f'{self._ask("volumes/vol0/snapshots")} --json \'{{"name": "{name}"}}\''

    def _ask(self, path: str) -> str:
        # The `wolun` command takes seconds to start on an emulated processor.
        return f"curl -sS --fail-with-body --unix-socket {self.daemon.state}/control.sock http://wolun/v1/{path}"

    def view(self, name: str) -> str:
        """Return the disk of a snapshot's view, once the node serves it."""
        find = f"[print(s['view_lun']) for s in json.load(sys.stdin) if s['name'] == '{name}' and s['view_lun'] is not None]"
        lun = self.machine.wait_until(
            f'{self._ask("volumes/vol0/snapshots")} | python3 -S -c "import json, sys; {find}" | grep .'
        )
        return self.own_disk(int(lun))


@dataclass(frozen=True)
class Bounds:
    """The writes that a snapshot must show, of each writer: at least those that had ended, at most those that had begun."""

    least: dict[str, int]
    most: dict[str, int]


class Cluster:
    """The machines, and what each snapshot must show."""

    def __init__(self, lab: Lab, *, size: str = "8MiB", delay: int = MAX_DELAY) -> None:
        self.lab = lab
        self.machine = machine = lab[STORAGE]
        machine.run(
            f"ip address add {WRITE_ONCE_AT}/24 dev eth0; mkdir {MEDIUM}; echo {delay} > {MEDIUM}/delay\n"
            f"truncate -s {size.removesuffix('iB')} {MEDIUM}/image"
        )
        self.primary = GuestDaemon(machine, _PRIMARY % size, name="primary")
        self.write_once = GuestDaemon(machine, _WRITE_ONCE % size, name="archive")
        for daemon in (self.primary, self.write_once):
            daemon.start(program=_RECORDING)
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda pair: Node(lab[pair[1]], pair[0]), enumerate(NODES))
            self.nodes = dict(zip(NODES, made, strict=True))
        self.bounds: dict[str, Bounds] = {}

    def restart_storage(self) -> None:
        """Kill both daemons of the storage host and start them again."""
        for daemon in (self.primary, self.write_once):
            daemon.kill()
        for daemon in (self.primary, self.write_once):
            daemon.start(program=_RECORDING)

    def boot(self, name: str) -> Node:
        """Boot a node's machine, whose plug was pulled."""
        machine = self.lab[name]
        machine.power_on()
        machine.wait_ready()
        self.nodes[name] = Node(machine, NODES.index(name))
        return self.nodes[name]

    def take(self, node: str, name: str) -> None:
        """Take a snapshot on a node."""
        least = self.ended()
        self.nodes[node].snapshot(name)
        self.bounds[name] = Bounds(least, self.begun())

    def ended(self) -> dict[str, int]:
        """Return how many writes of each writer have ended."""
        return {writer: self.nodes[writer].writes()[1] for writer in WRITERS}

    def begun(self) -> dict[str, int]:
        """Return how many writes of each writer have begun."""
        return {writer: self.nodes[writer].writes()[0] for writer in WRITERS}

    def check(self, name: str, *nodes: str) -> None:
        """Check that a snapshot shows the recorder's medium, bit for bit, and a moment of each writer within its bounds."""
        recorded = f"{MEDIUM}/fences/{name}"
        assert not self.machine.output(f"ls {MEDIUM}/in-flight"), "a fence did not wait for a write"
        expected = self.machine.output(f"sha256sum < {recorded}")
        bounds = self.bounds.get(name, Bounds({}, {}))
        for writer in bounds.least:
            number = self.nodes[writer].writer
            self.machine.run(f"{_CELLS} check {recorded} {number} {bounds.least[writer]} {bounds.most[writer]}")
        for node in nodes or (READER,):
            disk = self.nodes[node].view(name)
            shown = self.lab[node].output(f"dd if={disk} bs=1M iflag=direct status=none | sha256sum")
            assert shown == expected, f"{node} shows {name} otherwise than it was on the medium at the fence"
