# SPDX-License-Identifier: Apache-2.0
"""Hosts on one Ethernet, each a network namespace of this machine, behind a bridge in a namespace of its own.

Every host can reach every other, so a message between two nodes would get through and be counted.  It takes root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from tests import peers

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800
_OUTGOING = 4  # the packet type of frames that this namespace itself sends
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """The hosts `names`, from the construction until `close`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._ip = peers.require("ip")
        if os.geteuid() != 0:
            raise peers.PeerMissing("network namespaces take root: run these tests as root")
        self._prefix = f"wolun-{os.getpid()}"
        self._names = list(names)
        self._closing = contextlib.ExitStack()
        try:
            self._make()
        except BaseException:
            self._closing.close()
            raise

    def _make(self) -> None:
        for name in ("switch", *self._names):
            self._run("netns", "add", self.namespace(name))
            self._closing.callback(self._run, "netns", "del", self.namespace(name))
            self._within(name, "link", "set", "lo", "up")
            for setting in ("all", "default"):
                # Neighbour discovery would be messages that no node sends on purpose.
                self._exec(name, "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{setting}/disable_ipv6")
        self._within("switch", "link", "add", "bridge", "type", "bridge")
        self._within("switch", "link", "set", "bridge", "up")
        for name in self._names:
            self._within(
                "switch",
                "link",
                "add",
                "name",
                f"to-{name}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                self.namespace(name),
            )
            self._within("switch", "link", "set", f"to-{name}", "master", "bridge", "up")
            self._within(name, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            self._within(name, "link", "set", "eth0", "up")

    def namespace(self, name: str) -> str:
        """Return the name of a host's namespace."""
        return f"{self._prefix}-{name}"

    def address(self, name: str) -> str:
        """Return the IPv4 address of a host."""
        return f"10.99.0.{self._names.index(name) + 1}"

    def command(self, name: str) -> list[str]:
        """Return the beginning of a command line that runs a program on a host."""
        return [self._ip, "netns", "exec", self.namespace(name)]

    def cut(self, name: str) -> None:
        """Cut a host off: every frame to it and from it is lost."""
        self._within("switch", "link", "set", f"to-{name}", "down")

    def heal(self, name: str) -> None:
        """Connect a host again."""
        self._within("switch", "link", "set", f"to-{name}", "up")

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Let this thread be on a host while the context is open: sockets that it opens then stay there."""
        with (
            Path("/proc/thread-self/ns/net").open("rb") as home,
            Path(f"/run/netns/{self.namespace(name)}").open("rb") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def traffic(self) -> Traffic:
        """Begin to count the packets between hosts."""
        with self.on("switch"):
            return Traffic({self.address(name): name for name in self._names})

    def close(self) -> None:
        """Remove all hosts; programs that run there must have ended."""
        self._closing.close()

    def _within(self, name: str, *words: str) -> None:
        self._run("-netns", self.namespace(name), *words)

    def _exec(self, name: str, *words: str) -> None:
        self._run("netns", "exec", self.namespace(name), *words)

    def _run(self, *words: str) -> None:
        done = subprocess.run([self._ip, *words], capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Traffic:
    """A count of the IPv4 packets that passed the switch, by (sender, receiver); an address that is no host's stays as it is.

    `close` ends it and returns the count.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.settimeout(0.1)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, name="traffic", daemon=True)
        self._thread.start()

    def _count(self) -> None:
        frame = bytearray(64)
        while not self._stop.is_set():
            try:
                length, where = self._socket.recvfrom_into(frame)
            except TimeoutError:
                continue
            _, protocol, kind, _, _ = where
            if protocol == _ETH_P_IP and kind != _OUTGOING and length >= 34:
                sender, receiver = (socket.inet_ntoa(bytes(frame[at : at + 4])) for at in (26, 30))
                self._counts[self._names.get(sender, sender), self._names.get(receiver, receiver)] += 1

    def close(self) -> Counter[tuple[str, str]]:
        """End the count, and return it."""
        self._stop.set()
        self._thread.join()
        self._socket.close()
        return self._counts


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
