# SPDX-License-Identifier: Apache-2.0
"""The part of a fabric that the service reads: its addresses, its sessions and the logins it refused.

The service is made before the fabric, because the fabric serves the LUNs of the service.  Until the fabric has started,
`NotStarted` stands in for it.  Each fabric of target/fabrics is a `FabricView`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from target.iscsi.errors import LoginStatus
from target.iscsi.load import Load
from target.iscsi.session_info import SessionInfo


class FabricView(Protocol):
    """A fabric, read only."""

    def addresses(self) -> Sequence[str]:
        """Return the addresses that initiators connect to, HOST:PORT each."""

    def unbound(self) -> Mapping[str, str]:
        """Return the addresses that could not be bound and are tried again, each with the reason."""

    def load(self) -> Load | None:
        """Return how much of what there may be is in use; None if the fabric does not know."""

    def sessions(self) -> Sequence[SessionInfo]:
        """Return the sessions that are logged in."""

    def failed_logins(self) -> Mapping[LoginStatus, int]:
        """Return how many logins were refused since the start, by status."""

    def name_clashes(self) -> Mapping[str, tuple[str, str]]:
        """Return the initiators' names that two hosts seem to share, with the addresses of both."""


class NotStarted:
    """A fabric that has not started: it has the configured addresses, and no initiator can be logged in."""

    def __init__(self, listen: Sequence[str]) -> None:
        self._listen = listen

    def addresses(self) -> Sequence[str]:
        """Return the configured addresses."""
        return self._listen

    def unbound(self) -> Mapping[str, str]:
        """Return no address."""
        return {}

    def load(self) -> Load | None:
        """Return nothing."""
        return None

    def sessions(self) -> Sequence[SessionInfo]:
        """Return no session."""
        return ()

    def failed_logins(self) -> Mapping[LoginStatus, int]:
        """Return no refused login."""
        return {}

    def name_clashes(self) -> Mapping[str, tuple[str, str]]:
        """Return no name."""
        return {}
