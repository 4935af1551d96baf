# SPDX-License-Identifier: Apache-2.0
"""Failed logins: counted, logged once per peer and minute, and slowed down.  Time comes in as `now`; there is no clock here.

A peer is an IPv4 address or an IPv6 /64, because a host that has one address of a /64 has all of them.  Its first `FREE`
failures are answered at once.  After that each answer is delayed twice as long as the one before, up to `DELAY_MAXIMUM`.
A peer that hangs up instead of waiting gains nothing: while `PENDING_MAXIMUM` of its answers are due, its new connections
are refused, whether it still waits or not.  So no peer can try more than a few secrets a second, and a correct login is
never delayed.

A peer without failures for `FORGET_SECONDS` starts anew.  At most `PEERS` are remembered; the one that has been quiet
longest is forgotten first.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from target.iscsi.errors import LoginStatus

log = logging.getLogger(__name__)

FREE = 3
DELAY_FIRST = 0.5
DELAY_MAXIMUM = 4.0
PENDING_MAXIMUM = 8
FORGET_SECONDS = 300.0
LOG_SECONDS = 60.0
PEERS = 4096


@dataclass(slots=True)
class _Peer:
    failures: int = 0
    last: float = 0.0
    late: list[float] = field(default_factory=list)  # when each late answer is due; few, and most peers have none
    logged: float | None = None
    unlogged: int = 0


class FailedLogins:
    """The failed logins of one portal.  Belongs to one thread, but any thread may read `counts`."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._counts: Counter[LoginStatus] = Counter()

    @property
    def counts(self) -> Mapping[LoginStatus, int]:
        """The number of logins that failed since the start, by status."""
        return dict(self._counts)

    def may_try(self, address: str, now: float) -> bool:
        """Return whether a connection from this address may begin a login."""
        peer = self._peers.get(peer_of(address))
        if peer is None:
            return True
        while peer.late and peer.late[0] <= now:
            peer.late.pop(0)
        return len(peer.late) < PENDING_MAXIMUM

    def failed(self, address: str, initiator: str, status: LoginStatus, why: str, now: float) -> float:
        """Count a failed login, log it if a message is due, and return in how many seconds to answer it."""
        self._counts[status] += 1
        peer = self._remember(peer_of(address), now)
        peer.failures += 1
        peer.last = now
        if peer.logged is None or now - peer.logged >= LOG_SECONDS:
            more = f" ({peer.unlogged} more since the last message)" if peer.unlogged else ""
            log.warning("%s %s: login refused: %s%s", address, initiator, why, more)
            peer.logged, peer.unlogged = now, 0
        else:
            peer.unlogged += 1
        if peer.failures <= FREE:
            return 0.0
        delay = float(min(DELAY_MAXIMUM, DELAY_FIRST * 2 ** min(peer.failures - FREE - 1, 16)))
        peer.late.append(now + delay)
        return delay

    def _remember(self, key: str, now: float) -> _Peer:
        peer = self._peers.get(key)
        if peer is None or now - peer.last > FORGET_SECONDS:
            peer = self._peers[key] = _Peer()
        self._peers.move_to_end(key)
        while len(self._peers) > PEERS:
            self._peers.popitem(last=False)
        return peer


def peer_of(address: str) -> str:
    """Return the peer that an address belongs to."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
