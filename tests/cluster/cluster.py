# SPDX-License-Identifier: Apache-2.0
"""A storage host and three nodes, each a `wolun serve` in a network namespace of its own.

The storage host serves the primary as LUN 0, and beside it the volume's log and pool.  Each node reaches all of them by
libiscsi, and serves the volume to its own initiators as LUN 0, on its loopback address.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.client
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from target import messages, places
from target.control import client
from tests import daemon, libiscsi
from tests.cluster.network import Network

STORAGE = "storage"
NODES = ("alpha", "beta", "gamma")
LATE = "delta"
VOLUME = "archive"
SIZE = 8 << 20
POOL = 4
SECONDS = 60.0  # in which a state must be reached that the cluster reaches by itself


class Cluster:
    """The hosts, from `with Cluster(directory) as cluster` to its end; the nodes run from the start."""

    nodes: Sequence[str] = NODES

    def __init__(self, directory: Path) -> None:
        self._closing = contextlib.ExitStack()
        self._directory = directory
        self.network = Network([STORAGE, *self.nodes, LATE])
        self._closing.callback(self.network.close)
        self.hosts: dict[str, daemon.Daemon] = {}

    def __enter__(self) -> Self:
        try:
            # All at once, because most of their time goes into imports.  Nodes wait for their storage.
            with concurrent.futures.ThreadPoolExecutor() as pool:
                starting = [pool.submit(self.start_storage), *(pool.submit(self.start, name) for name in self.nodes)]
                for one in starting:
                    one.result()
            for name in self.nodes:
                self.wait_for_state(name, "armed")
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def start_storage(self) -> None:
        """Start the storage host, the first time or again."""
        volumes = f"  - {{name: {VOLUME}, lun: 0, size: {SIZE}}}\n"
        extra = f"write_once:\n  - {{volume: {VOLUME}, size: {SIZE}, pool: {POOL}}}\n"
        self._start(STORAGE, volumes, extra, "  networks: [10.99.0.0/24]\n", f"{self.network.address(STORAGE)}:3260")

    @property
    def primary(self) -> str:
        """The address of the primary."""
        return f"iscsi://{self.network.address(STORAGE)}:3260/{daemon.IQN}/0"

    def start(self, name: str) -> None:
        """Start a node, the first time or again."""
        extra = f"shared:\n  - {{name: {VOLUME}, node: {name}, primary: '{self.primary}', lun: 0}}\n"
        self._start(name, "", extra, "  networks: [127.0.0.0/8]\n", "127.0.0.1:3260")

    def start_alone(self, name: str) -> None:
        """Start a host that is no node yet."""
        self._start(name, "", "", "  networks: [127.0.0.0/8]\n", "127.0.0.1:3260")

    def _start(self, name: str, volumes: str, extra: str, access: str, portal: str) -> None:
        if name not in self.hosts:
            directory = self._directory / name
            directory.mkdir(exist_ok=True)
            host = daemon.Daemon(directory, volumes or "  []\n", extra=extra, access=access)
            host.program = [*self.network.command(name), daemon.PROGRAM]
            host.portal = portal
            self.hosts[name] = host
            self._closing.callback(_end, host)
        self.hosts[name].extra = extra
        self.hosts[name].start()

    def session(self, name: str) -> libiscsi.Session:
        """Return a session with a node, from an initiator on that node; the caller closes it."""
        with self.network.on(name):
            return self.hosts[name].session()

    def run(self, name: str, *words: str) -> Any:
        """Run a command of the command line against a host, and return its decoded output."""
        return self.hosts[name].json(*words)

    def ask(self, name: str) -> client.Client:
        """Return a client of a host's control socket: a command line takes a second to start."""
        return client.Client(self.hosts[name].state)

    def take(self, node: str, name: str) -> None:
        """Take a snapshot on a node."""
        self.ask(node).create_snapshot(VOLUME, name, {})

    def names(self, host: str) -> list[str]:
        """Return the names of the snapshots that a host lists, and that can be read."""
        return [found.name for found in self.ask(host).snapshots(VOLUME) if found.state == "active"]

    def sharing(self, node: str) -> messages.Sharing:
        """Return the part of a node in the volume."""
        found = self.ask(node).volume(VOLUME).sharing
        assert found is not None
        return found

    def wait_for_state(self, node: str, state: str) -> None:
        """Return when a node is in that state."""
        wait(lambda: self.sharing(node).state == state, f"{node} is not {state}")

    def wait_for_epoch(self) -> None:
        """Return when all nodes take part in the newest epoch."""
        newest = max(self.sharing(node).epoch or 0 for node in self.nodes)
        for node in self.nodes:
            armed = messages.Sharing(node, "armed", "", newest, None, None, 0, 0)
            wait(
                lambda node=node, armed=armed: (  # type: ignore[misc]
                    dataclasses.replace(self.sharing(node), pool=None, copies=0, futile_copies=0) == armed
                ),
                f"{node} is not in epoch {newest}",
            )

    def wait_for_names(self, names: Sequence[str], hosts: Sequence[str] = ()) -> None:
        """Return when each host lists these snapshots; without `hosts`, each node."""
        for host in hosts or self.nodes:
            wait(lambda host=host: self.names(host) == list(names), f"{host} does not list {names}")  # type: ignore[misc]

    def view(self, node: str, name: str) -> bytes:
        """Return the content of a snapshot, read from its view on a node."""

        def lun() -> int | None:
            served = {unit.unit: unit.lun for unit in self.ask(node).luns()}
            return served.get(f"{VOLUME}@{name}")

        wait(lambda: lun() is not None, f"{node} has no view of {name}")
        number = lun()
        assert number is not None
        with self.session(node) as session:
            return read(session, number, SIZE)

    def commands(self) -> dict[str, int]:
        """Return how many commands each unit of the storage host has had, by its name."""
        connection = _Local(self.hosts[STORAGE].state / places.SOCKET)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.findall(r'^wolun_commands_total\{lun="\d+",unit="([^"]*)"\} (\S+)$', text, re.MULTILINE)
        return {unit: int(float(number)) for unit, number in found}


class _Local(http.client.HTTPConnection):
    """A connection to a control socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("wolun")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def _end(host: daemon.Daemon) -> None:
    if host.process is not None:
        host.kill()


def wait(condition: Callable[[], bool], what: str) -> None:
    """Return when a condition is true that comes true by itself; a refused command counts as not yet."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            if condition():
                return
        except client.Failed as failed:
            what = f"{what.partition(' (')[0]} ({failed.refusal.message})"
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def read(session: libiscsi.Session, lun: int, length: int) -> bytes:
    """Return the first bytes of a LUN."""
    step, data = 1 << 20, bytearray()
    for offset in range(0, length, step):
        cdb = bytes([0x88, 0]) + (offset // 512).to_bytes(8) + (step // 512).to_bytes(4) + bytes(2)
        while True:
            answer = session.command(lun, cdb, read=step)
            if answer.status == 2 and answer.key == 6:
                continue
            assert answer.status == 0, (lun, answer.status, answer.sense.hex())
            break
        data += answer.data
    return bytes(data)
