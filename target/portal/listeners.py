# SPDX-License-Identifier: Apache-2.0
"""The sockets on which a portal accepts initiators.

The portal's loop watches them with its epoll.  If there are no descriptors left for another connection, the listeners
pause: connections wait in the kernel, and the loop does not spin.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import select
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from lun_backends.files import os_error
from target.iscsi.failed_logins import LOG_SECONDS

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
"""Connections that the kernel keeps until they are accepted.  When there are more, it makes initiators wait a second."""
_EXHAUSTED: Final = os_error.NO_DESCRIPTORS | {errno.ENOBUFS, errno.ENOMEM}


class Listener(NamedTuple):
    """A listening socket and its address, HOST:PORT."""

    sock: socket.socket
    address: str


class Listeners:
    """The listening sockets, by descriptor.

    `listen`, `unlisten` and `addresses` may be called from any thread, the rest on the loop.  `on_loop` runs a function
    on the loop soon.
    """

    def __init__(self, epoll: select.epoll, on_loop: Callable[[Callable[[], None]], None]) -> None:
        self.by_descriptor: dict[int, Listener] = {}
        self._epoll = epoll
        self._on_loop = on_loop
        self._paused = False
        self._pause_logged = float("-inf")

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept initiators on one more address, and return it (`port` 0: any free one).  Raises OSError."""
        sock = socket.create_server((host, port), family=_family(host, port), backlog=BACKLOG)
        sock.setblocking(False)
        name = sock.getsockname()
        self.by_descriptor[sock.fileno()] = Listener(sock, spell(name[0], name[1]))
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return name[0], name[1]

    @property
    def addresses(self) -> list[str]:
        """The addresses that accept initiators, HOST:PORT each, oldest first."""
        return [listener.address for listener in list(self.by_descriptor.values())]

    def unlisten(self, address: str) -> None:
        """Stop accepting initiators on an address.  Return once connections to it fail."""
        for fd, (sock, known) in list(self.by_descriptor.items()):
            if known == address:
                del self.by_descriptor[fd]  # before the loop is woken by its end
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                self._on_loop(functools.partial(self._forget, sock))

    def accept(self, sock: socket.socket, now: float) -> tuple[socket.socket, str] | None:
        """Accept a connection, and return its socket and its peer's address; None if there was none."""
        try:
            accepted, peer = sock.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause(error, now)
            else:  # it hung up
                log.info("a connection could not be accepted: %s", error)
            return None
        return accepted, peer[0]

    def resume(self) -> None:
        """Accept connections again, if the listeners pause."""
        if self._paused:
            self._paused = False
            self._watch(select.EPOLLIN)

    def stop(self) -> None:
        """Accept no connection any more; the addresses stay taken."""
        for fd in list(self.by_descriptor):
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Close the sockets."""
        for sock, _ in self.by_descriptor.values():
            sock.close()

    def _pause(self, error: OSError, now: float) -> None:
        self._paused = True
        self._watch(0)
        if now - self._pause_logged >= LOG_SECONDS:
            self._pause_logged = now
            log.error(
                "no connection can be accepted, so they wait: %s.  %s",
                os_error.reason(error),
                os_error.remedy(error, "end other programs"),
            )

    def _watch(self, events: int) -> None:
        for fd in list(self.by_descriptor):
            with contextlib.suppress(FileNotFoundError, ValueError):  # the portal closes, or leaves that address
                self._epoll.modify(fd, events)

    def _forget(self, sock: socket.socket) -> None:
        self._epoll.unregister(sock.fileno())
        sock.close()


def spell(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
