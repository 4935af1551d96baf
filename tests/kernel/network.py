# SPDX-License-Identifier: Apache-2.0
"""A learning Ethernet switch over Unix datagram sockets, one pair per machine.

The switch needs neither root nor a namespace, and a test can cut its links.  Each machine's QEMU sends its frames from
`<name>.machine` to `<name>.switch`, and the switch sends frames for the machine the other way.  The switch drops frames
that a machine does not take in time, as on any Ethernet.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

FRAME = 1 << 17  # larger than any frame with segmentation offload
MULTICAST = 1
IPV4 = b"\x08\x00"  # the type of an Ethernet frame


class Switch:
    """A switch that runs on a thread of its own, from its construction until `close`."""

    def __init__(self, directory: Path, names: Iterable[str]) -> None:
        self._directory = directory
        self._ports: dict[str, socket.socket] = {}
        self._where: dict[bytes, str] = {}  # MAC address -> machine
        self._cut: frozenset[tuple[frozenset[str], bytes]] = frozenset()  # two machines, and an IPv4 address if not all
        self._wake, self._woken = os.pipe()[::-1]
        for name in names:
            port = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            port.setblocking(False)
            port.bind(str(self.switch_path(name)))
            self._ports[name] = port
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def switch_path(self, name: str) -> Path:
        """Return the path of the socket to which machine `name` sends its frames."""
        return self._directory / f"{name}.switch"

    def machine_path(self, name: str) -> Path:
        """Return the path of the socket from which machine `name` receives its frames."""
        return self._directory / f"{name}.machine"

    def cut(self, one: str, other: str, address: str = "") -> None:
        """Drop every frame between two machines from now on; with an IPv4 `address` of one of them, those from and to it."""
        self._cut |= {_link(one, other, address)}

    def heal(self, one: str, other: str, address: str = "") -> None:
        """Forward frames between two machines again, after `cut` with the same words."""
        self._cut -= {_link(one, other, address)}

    @contextlib.contextmanager
    def without(self, one: str, other: str, address: str = "") -> Iterator[None]:
        """Cut a link as `cut` says, for a while."""
        self.cut(one, other, address)
        try:
            yield
        finally:
            self.heal(one, other, address)

    def close(self) -> None:
        """Stop the thread and remove the sockets."""
        os.write(self._wake, b"\0")
        self._thread.join()
        for name, port in self._ports.items():
            port.close()
            self.switch_path(name).unlink(missing_ok=True)
            self.machine_path(name).unlink(missing_ok=True)
        os.close(self._wake)
        os.close(self._woken)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for name, port in self._ports.items():
                selector.register(port, selectors.EVENT_READ, name)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    # Forward a whole burst per select: one frame per select would cost two more system calls.
                    with contextlib.suppress(BlockingIOError):
                        for _ in range(64):
                            self._forward(key.data, self._ports[key.data].recv(FRAME))

    def _forward(self, source: str, frame: bytes) -> None:
        destination, sender = frame[:6], frame[6:12]
        self._where[sender] = source
        known = self._where.get(destination)
        targets = [known] if known and not destination[0] & MULTICAST else list(self._ports)
        for target in targets:
            if target != source and not (self._cut and self._drops(source, target, frame)):
                with contextlib.suppress(OSError):  # the machine is off, not up yet, or too slow: drop the frame
                    self._ports[target].sendto(frame, str(self.machine_path(target)))

    def _drops(self, source: str, target: str, frame: bytes) -> bool:
        addresses = {b"", frame[26:30], frame[30:34]} if frame[12:14] == IPV4 else {b""}
        return any((frozenset((source, target)), address) in self._cut for address in addresses)


def _link(one: str, other: str, address: str) -> tuple[frozenset[str], bytes]:
    return frozenset((one, other)), socket.inet_aton(address) if address else b""
