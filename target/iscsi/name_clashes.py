# SPDX-License-Identifier: Apache-2.0
"""Initiator names that two hosts share: a cloned machine keeps the name, and often the ISID, of its original.

To the target the two are one initiator port.  Each login ends the session of the other, which logs in again, and both lose
commands on the way.  One sign of it is a session that a login from another address ends.  A host that has changed its
address does that once.  Two hosts do it again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)

WITHIN_SECONDS = 3600.0
"""For how long a change of the address is remembered."""
NAMES = 1024
"""The names that are remembered at most."""


@dataclass(slots=True)
class _Change:
    addresses: tuple[str, str]
    at: float
    again: bool = False


class NameClashes:
    """The names whose sessions came from changing addresses.  One thread notes them, any thread may read them."""

    def __init__(self) -> None:
        self._changes: dict[str, _Change] = {}

    def replaced(self, initiator: str, before: str, after: str, now: float) -> None:
        """Note that a login from the address `after` ended a session of the same port that came from `before`."""
        if before == after:
            return
        log.warning(
            "%s logged in from %s, and that ended its session from %s: if these are two hosts, give each a name of its own",
            initiator, after, before,
        )  # fmt: skip
        changes = dict(self._changes)
        known = changes.pop(initiator, None)
        again = known is not None and now - known.at < WITHIN_SECONDS
        first, second = sorted((before, after))
        changes[initiator] = _Change((first, second), now, again)
        if len(changes) > NAMES:
            del changes[next(iter(changes))]
        self._changes = changes  # as a whole: other threads may read the old one

    def current(self, now: float) -> Mapping[str, tuple[str, str]]:
        """Return the names that changed their address more than once, and between which addresses."""
        return {
            name: change.addresses
            for name, change in self._changes.items()
            if change.again and now - change.at < WITHIN_SECONDS
        }
