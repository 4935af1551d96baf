# SPDX-License-Identifier: Apache-2.0
"""Three machines, each a network namespace with a corosync and a member of the group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import peers

PATIENCE = 60.0
_ROOT = Path(__file__).parents[3]

_CONFIGURATION = """
totem {{
    version: 2
    cluster_name: wolun
    transport: udpu
    token: 1000
}}
nodelist {{
{nodes}}}
quorum {{
    provider: corosync_votequorum
}}
system {{
    sched_rr: no
}}
logging {{
    to_stderr: yes
    to_syslog: no
}}
"""
_NODE = """    node {{
        ring0_addr: 10.77.0.{number}
        nodeid: {number}
        name: n{number}
    }}
"""


class Machine:
    """A machine with the number 1, 2 or 3."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number
        self._directory = directory
        # Each sees its own sockets and its own /run, so that corosync does not meet its neighbours there.
        self._holder = subprocess.Popen(
            [peers.require("unshare"), "--net", "--mount", "sh", "-c",
             "for at in /run /dev/shm /var/lib/corosync; do mount -t tmpfs none $at; done; echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.pid = self._holder.pid
        self.corosync: subprocess.Popen[bytes] | None = None
        self.member: subprocess.Popen[str] | None = None

    def inside(self, *command: str) -> list[str]:
        return [peers.require("nsenter"), "-t", str(self.pid), "--net", "--mount", *command]

    def start_corosync(self) -> None:
        log = (self._directory / f"corosync{self.number}.log").open("ab")
        configuration = str(self._directory / "corosync.conf")
        self.corosync = subprocess.Popen(
            self.inside(peers.require("corosync"), "-f", "-c", configuration), stdout=log, stderr=log
        )

    def kill_corosync(self) -> None:
        assert self.corosync is not None
        self.corosync.kill()
        self.corosync.wait()

    def start_member(self) -> None:
        command = self.inside(sys.executable, "-m", "tests.lun_backends.corosync.member", f"node{self.number}")
        self.member = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )

    def say(self, line: str) -> dict[str, Any]:
        assert self.member is not None
        assert self.member.stdin is not None
        assert self.member.stdout is not None
        self.member.stdin.write(line + "\n")
        self.member.stdin.flush()
        answer: dict[str, Any] = json.loads(self.member.stdout.readline())
        return answer

    def link(self, state: str) -> None:
        run(*self.inside("ip", "link", "set", "eth0", state))

    def stop(self) -> None:
        for process in (self.member, self.corosync, self._holder):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    peers.need_root("network namespaces")
    peers.require("corosync")
    peers.require("ip")
    directory = tmp_path_factory.mktemp("corosync")
    nodes = "".join(_NODE.format(number=number) for number in (1, 2, 3))
    (directory / "corosync.conf").write_text(_CONFIGURATION.format(nodes=nodes))
    switch = Machine(0, directory)
    started = [switch]
    try:
        run(*switch.inside("ip", "link", "add", "br0", "type", "bridge"))
        run(*switch.inside("ip", "link", "set", "br0", "up"))
        for number in (1, 2, 3):
            machine = Machine(number, directory)
            started.append(machine)
            ends = ("type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
            run(*switch.inside("ip", "link", "add", f"port{number}", *ends))
            run(*switch.inside("ip", "link", "set", f"port{number}", "master", "br0", "up"))
            run(*machine.inside("ip", "addr", "add", f"10.77.0.{number}/24", "dev", "eth0"))
            machine.link("up")
            run(*machine.inside("ip", "link", "set", "lo", "up"))
            machine.start_corosync()
            machine.start_member()
        wait(lambda: all(machine.say("look")["members"] == 3 for machine in started[1:]))
        yield started[1:]
    finally:
        for machine in started:
            machine.stop()
