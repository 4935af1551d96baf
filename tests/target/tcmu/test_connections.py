# SPDX-License-Identifier: Apache-2.0
"""TCP connections by their portal, on the sockets of this machine."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from target.tcmu import connections
from tests import peers


@contextlib.contextmanager
def connected(host: str, number: int = 1, *, listen: str | None = None) -> Iterator[tuple[int, list[socket.socket]]]:
    """Yield the port of a server, and its ends of that many connections to `host`."""
    family = socket.AF_INET6 if ":" in (listen or host) else socket.AF_INET
    with contextlib.ExitStack() as stack:
        dual = (listen or host) == "::"
        server = stack.enter_context(socket.create_server((listen or host, 0), family=family, dualstack_ipv6=dual))
        port = server.getsockname()[1]
        ends = []
        for _ in range(number):
            stack.enter_context(socket.create_connection((host, port), timeout=30))
            end, _ = server.accept()
            end.settimeout(30)
            ends.append(stack.enter_context(end))
        yield port, ends


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::1", "::1")])
def test_connections_to_a_portal_have_their_peers(host: str, address: str) -> None:
    with connected(host, 2) as (port, _):
        assert [connection.peer for connection in connections.established(address, port)] == [host, host]
        assert connections.established(address, port + 1 if port < 65535 else port - 1) == []


def test_connection_to_another_address_of_the_same_port_is_left_out() -> None:
    with connected("127.0.0.2", listen="0.0.0.0") as (port, _):
        assert connections.established("127.0.0.1", port) == []
        assert len(connections.established("127.0.0.2", port)) == 1
        assert len(connections.established("0.0.0.0", port)) == 1


def test_ipv4_peer_of_an_ipv6_portal_has_its_ipv4_address() -> None:
    with connected("127.0.0.1", listen="::") as (port, _):
        assert [connection.peer for connection in connections.established("[::]", port)] == ["127.0.0.1"]


def test_name_is_not_an_address() -> None:
    with pytest.raises(ValueError, match="localhost"):
        connections.established("localhost", 3260)


def test_ended_connection_breaks_and_may_be_ended_again() -> None:
    peers.need_root("ending a connection")
    with connected("127.0.0.1", 2) as (port, ends):
        first, second = ends
        by_peer_port = {
            int.from_bytes(connection.identity[2:4]): connection
            for connection in connections.established("127.0.0.1", port)
        }
        doomed = by_peer_port[first.getpeername()[1]]
        try:
            connections.end(doomed)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("this kernel is built without CONFIG_INET_DIAG_DESTROY")
            raise
        with pytest.raises(OSError, match="abort"):
            first.recv(1)
        connections.end(doomed)
        assert len(connections.established("127.0.0.1", port)) == 1
        second.sendall(b"x")
