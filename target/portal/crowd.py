# SPDX-License-Identifier: Apache-2.0
"""The choice of the connection that gives way when there are too many of a kind.

The portal never refuses a newcomer in favour of earlier connections, because these may be silent on purpose, and the
newcomer may be the one that logs in rightly.  The connection that gives way belongs to the peer that has the most
connections.  Among these it belongs to the address that has the most, and among those it has been silent longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

from target.iscsi.failed_logins import peer_of


class Connection(Protocol):
    """The parts of a connection that the choice looks at (`iscsi.connection.Connection`)."""

    @property
    def address(self) -> str: ...
    @property
    def last_heard(self) -> float: ...


C = TypeVar("C", bound=Connection)


def gives_way(connections: Sequence[C]) -> C:
    """Return the connection that gives way; there is at least one."""
    addresses = Counter(connection.address for connection in connections)
    peer = {address: peer_of(address) for address in addresses}
    peers = Counter(peer[connection.address] for connection in connections)
    return min(
        connections,
        key=lambda connection: (
            -peers[peer[connection.address]],
            -addresses[connection.address],
            connection.last_heard,
        ),
    )


def sessions_of(address: str, connections: Sequence[C]) -> int:
    """Return how many of the connections come from the peer of that address."""
    peer = peer_of(address)
    return sum(peer_of(connection.address) == peer for connection in connections)
