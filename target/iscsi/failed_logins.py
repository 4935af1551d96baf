# SPDX-License-Identifier: Apache-2.0
"""Failed logins: counted, logged once per peer and minute, and wrong secrets slowed down.  Time comes in as `now`.

A peer is an IPv4 address or an IPv6 /64, because a host that has one address of a /64 has all of them.  Only a failed
*authentication* is slowed: a stale record that names a target or an initiator of yesterday is answered at once.  The
first `FREE` failures of a peer are answered at once, too.  After that each answer is delayed twice as long as the one
before, up to `DELAY_MAXIMUM`.

A peer that hangs up instead of waiting gains nothing: while too many answers about one name are due, the name cannot be
tried from there.  The bound is `PENDING_MAXIMUM` for an address, and `PENDING_SHARED` for all of a /64 and for an
address from which that name has logged in rightly.  So no peer can try more than a few secrets a second, a right login
is never delayed, and a neighbour that tries other names keeps no initiator out.

A peer without failures for `FORGET_SECONDS` starts anew.  The portal remembers at most `PEERS` peers, and forgets the
one first that has been quiet longest.
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
PENDING_SHARED = 64
FORGET_SECONDS = 300.0
LOG_SECONDS = 60.0
PEERS = 4096

Tried = tuple[str, str]
"""A peer or an address, and the initiator's name that was tried from there."""


@dataclass(slots=True)
class _Peer:
    failures: int = 0  # of authentications
    last: float = 0.0
    logged: float | None = None
    unlogged: int = 0


@dataclass(slots=True)
class _Late:
    due: list[float] = field(default_factory=list)  # when each late answer is due; few

    def pending(self, now: float) -> int:
        while self.due and self.due[0] <= now:
            self.due.pop(0)
        return len(self.due)


class FailedLogins:
    """The failed logins of one portal.  Belongs to one thread, but any thread may read `counts`."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._late: OrderedDict[Tried, _Late] = OrderedDict()
        self._good: OrderedDict[Tried, None] = OrderedDict()
        self._counts: Counter[LoginStatus] = Counter()

    @property
    def counts(self) -> Mapping[LoginStatus, int]:
        """The number of logins that failed since the start, by status."""
        return dict(self._counts)

    def may_try(self, address: str, initiator: str, now: float) -> bool:
        """Return whether an initiator of that name may try a secret from this address."""
        alone = PENDING_SHARED if (address, initiator) in self._good else PENDING_MAXIMUM
        peer = peer_of(address)
        return self._pending(address, initiator, now) < alone and (
            peer == address or self._pending(peer, initiator, now) < PENDING_SHARED
        )

    def _pending(self, place: str, initiator: str, now: float) -> int:
        late = self._late.get((place, initiator))
        return 0 if late is None else late.pending(now)

    def succeeded(self, address: str, initiator: str) -> None:
        """Note that an initiator has proved its name from this address."""
        self._good[address, initiator] = None
        self._good.move_to_end((address, initiator))
        if len(self._good) > PEERS:
            self._good.popitem(last=False)

    def failed(self, address: str, initiator: str, status: LoginStatus, why: str, now: float) -> float:
        """Count a failed login, log it if a message is due, and return the delay of its answer in seconds."""
        self._counts[status] += 1
        key = peer_of(address)
        peer = self._remember(key, now)
        peer.last = now
        if peer.logged is None or now - peer.logged >= LOG_SECONDS:
            more = f" ({peer.unlogged} more since the last message)" if peer.unlogged else ""
            log.warning("%s %s: login refused: %s%s", address, initiator, why, more)
            peer.logged, peer.unlogged = now, 0
        else:
            peer.unlogged += 1
        if status is not LoginStatus.AUTHENTICATION_FAILURE:
            return 0.0
        peer.failures += 1
        if peer.failures <= FREE:
            return 0.0
        delay = float(min(DELAY_MAXIMUM, DELAY_FIRST * 2 ** min(peer.failures - FREE - 1, 16)))
        for place in {address, key}:
            late = self._late.setdefault((place, initiator), _Late())
            late.due.append(now + delay)
            self._late.move_to_end((place, initiator))
        while len(self._late) > 2 * PEERS:
            self._late.popitem(last=False)
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
