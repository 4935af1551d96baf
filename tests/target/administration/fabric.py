# SPDX-License-Identifier: Apache-2.0
"""A fabric without a network: it records its addresses, and tests log initiators in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from target import liveness
from target.fabrics import access, fabric
from target.iscsi import errors
from target.iscsi.load import Load
from target.iscsi.session_info import SessionInfo

REFUSED_PORT = ":99"
"""The end of an address on which it refuses to listen."""


class BookFabric:
    """A fabric that listens on `listening`; `came_by` has the users of each address; `logged_in` has the sessions."""

    def __init__(self, *listen: str) -> None:
        self.listening = list(listen)
        self.came_by: dict[str, list[str]] = {}
        self.logged_in: list[SessionInfo] = []
        self.admitted: list[access.Rules] = []
        self.refuses_to_admit = False
        self.not_bound: dict[str, str] = {}
        self.loaded: Load | None = None

    def log_in(self, initiator: str, address: str, target: str | None) -> None:
        """Add a session, as if the initiator had logged in."""
        number = len(self.logged_in) + 1
        self.logged_in.append(SessionInfo(number, initiator, "", address, target, None, None, None, None, None))

    def addresses(self) -> Sequence[str]:
        return tuple(self.listening)

    def unbound(self) -> Mapping[str, str]:
        return self.not_bound

    def load(self) -> Load | None:
        return self.loaded

    def listen(self, address: str) -> None:
        if address.endswith(REFUSED_PORT):
            raise fabric.CannotListen("the kernel said no")
        self.listening.append(address)

    def unlisten(self, address: str) -> None:
        self.listening.remove(address)

    def users(self, address: str) -> Sequence[str]:
        return self.came_by.get(address, [])

    def sessions(self) -> Sequence[SessionInfo]:
        return tuple(self.logged_in)

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        return {}

    def name_clashes(self) -> Mapping[str, tuple[str, str]]:
        return {}

    def end_session(self, tsih: int) -> None:
        self.logged_in = [session for session in self.logged_in if session.tsih != tsih]

    def admit(self, rules: access.Rules) -> None:
        if self.refuses_to_admit:
            raise fabric.CannotStart("the kernel said no")
        self.admitted.append(rules)

    def start(self) -> None:
        pass

    def pulses(self) -> Sequence[liveness.Pulse]:
        return ()

    def close(self, drain: float) -> None:
        pass
