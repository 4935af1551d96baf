# SPDX-License-Identifier: Apache-2.0
"""Sockets that accept initiators: added, left, stopped and closed."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from target.portal.listeners import Listeners, spell


@pytest.fixture
def later() -> list[Callable[[], None]]:
    """Return the functions that shall run on the loop."""
    return []


@pytest.fixture
def listeners(later: list[Callable[[], None]]) -> Iterator[Listeners]:
    with contextlib.closing(select.epoll()) as epoll:
        made = Listeners(epoll, later.append)
        yield made
        made.close()


def sock_of(listeners: Listeners, address: str) -> socket.socket:
    (sock,) = [sock for sock, known in listeners.by_descriptor.values() if known == address]
    return sock


def test_connection_is_accepted_once(listeners: Listeners) -> None:
    host, port = listeners.listen("127.0.0.1", 0)
    sock = sock_of(listeners, f"{host}:{port}")
    assert listeners.accept(sock, 0.0) is None
    with socket.create_connection((host, port), source_address=("127.0.0.7", 0)):
        accepted = listeners.accept(sock, 0.0)
        assert accepted is not None
        assert accepted[1] == "127.0.0.7"
        accepted[0].close()
        assert listeners.accept(sock, 0.0) is None


def test_connections_to_an_address_that_is_left_fail_at_once(
    listeners: Listeners, later: list[Callable[[], None]]
) -> None:
    left, kept = listeners.listen("127.0.0.1", 0), listeners.listen("127.0.0.1", 0)
    assert listeners.addresses == [spell(*left), spell(*kept)]
    listeners.unlisten(spell(*left))
    assert listeners.addresses == [spell(*kept)]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(left)
    socket.create_connection(kept).close()
    (forget,) = later
    forget()
    with socket.create_server(left):
        pass


def test_address_that_is_taken_is_refused(listeners: Listeners) -> None:
    taken = listeners.listen("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        listeners.listen(*taken)
    assert listeners.addresses == [spell(*taken)]


def test_stopped_listeners_keep_their_addresses(listeners: Listeners) -> None:
    taken = listeners.listen("127.0.0.1", 0)
    listeners.stop()
    listeners.stop()
    with pytest.raises(OSError, match="in use"):
        socket.create_server(taken)


def test_addresses_of_version_6_have_brackets() -> None:
    assert spell("::1", 3260) == "[::1]:3260"
    assert spell("127.0.0.1", 3260) == "127.0.0.1:3260"
