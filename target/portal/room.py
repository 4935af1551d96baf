# SPDX-License-Identifier: Apache-2.0
"""The room for sessions and logins: how many there may be, and how many of one peer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Final

from target.iscsi.connection import Connection, State
from target.iscsi.errors import LoginRefused, LoginStatus
from target.iscsi.failed_logins import LOG_SECONDS
from target.portal import crowd

log = logging.getLogger(__name__)

LOGIN_CONNECTIONS: Final = 64
"""Connections that may be logging in at once: they cost memory before their initiators are known."""
DISCOVERY_SESSIONS: Final = 32
"""Discovery sessions at once.  They need no secret by default, so they have a share of their own."""
PEER_SHARE: Final = 8
"""One part in so many of all sessions is kept for other peers than the one that has the most."""


class Room:
    """The places for connections: `sessions` for sessions with a target, and shares for logins and discovery.

    Its methods run on the portal's loop.  `connections` are those that the portal has now.
    """

    def __init__(self, sessions: int) -> None:
        self.sessions = sessions
        self.refused = 0
        """The logins that found no session left."""
        self.refused_at: float | None = None
        """When that happened last, on the monotonic clock."""
        self._logged = float("-inf")
        self._unlogged = 0

    def check(self, newcomer: Connection, connections: Iterable[Connection]) -> None:
        """Raise LoginRefused if there is no room for another session, or none for its peer."""
        others = [connection for connection in connections if connection.nexus is not None]
        kept = self.sessions // PEER_SHARE
        if len(others) >= self.sessions:
            why = f"all {self.sessions} sessions are in use"
        elif crowd.sessions_of(newcomer.address, others) >= self.sessions - kept:
            why = f"{self.sessions - kept} sessions from there are in use, the last {kept} are kept for others"
        else:
            return
        self.refused += 1
        self.refused_at = time.monotonic()
        raise LoginRefused(LoginStatus.OUT_OF_RESOURCES, why)

    def discovery_gives_way(self, connections: Iterable[Connection]) -> Connection | None:
        """Return the discovery session that ends for another one; None if there is room."""
        discovering = [
            connection
            for connection in connections
            if connection.login.discovery and connection.state is State.FULL_FEATURE
        ]
        return crowd.gives_way(discovering) if len(discovering) >= DISCOVERY_SESSIONS else None

    def login_gives_way(self, connections: Iterable[Connection], now: float) -> Connection | None:
        """Return the login that ends for another one; None if there is room.

        The log has one message a minute, since a flood of logins goes on.
        """
        logging_in = [connection for connection in connections if connection.state is State.LOGIN]
        if len(logging_in) < LOGIN_CONNECTIONS:
            return None
        loser = crowd.gives_way(logging_in)
        if now - self._logged >= LOG_SECONDS:
            more = f" ({self._unlogged} more since the last message)" if self._unlogged else ""
            log.warning("%s: too many logins at once, the one silent longest is dropped%s", loser.address, more)
            self._logged, self._unlogged = now, 0
        else:
            self._unlogged += 1
        return loser
