# SPDX-License-Identifier: Apache-2.0
"""The interface of a fabric, as the daemon uses it.

| `fabric:`  | module    | listens                           | needs                                                |
| ---------- | --------- | --------------------------------- | ---------------------------------------------------- |
| `portal`   | portal.py | this process                      | nothing                                              |
| `lio`      | kernel.py | the kernel; SCSI comes by TCMU    | root, and the modules target_core_user,              |
|            |           |                                   | iscsi_target_mod and tcm_loop                        |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from target import liveness
from target.fabrics import access
from target.iscsi import errors
from target.iscsi.load import Load
from target.iscsi.session_info import SessionInfo

RETRY_SECONDS = 5.0
"""An address that could not be bound is tried again that often: its network may come up late, or its link."""


class CannotStart(Exception):
    """The fabric cannot be started, with the reason and the remedy."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


class CannotListen(CannotStart):
    """The fabric cannot listen on an address, with the reason and the remedy."""


def cannot_listen(address: str, reason: str) -> str:
    """Return the sentence for an address that cannot be bound."""
    return f"cannot listen for initiators on {address} ({reason})"


class Fabric(Protocol):
    """The part of the daemon through which initiators reach the LUNs of a SCSI target."""

    def addresses(self) -> Sequence[str]:
        """Return the addresses that initiators connect to, HOST:PORT each."""

    def unbound(self) -> Mapping[str, str]:
        """Return the addresses that could not be bound and are tried again, each with the reason."""

    def load(self) -> Load | None:
        """Return how much of what there may be is in use; None if the fabric does not know."""

    def listen(self, address: str) -> None:
        """Listen on another address.  Raises CannotListen."""

    def unlisten(self, address: str) -> None:
        """Stop listening on an address, and end the sessions that came there.  Raises CannotStart."""

    def users(self, address: str) -> Sequence[str]:
        """Return the initiators that came by an address and are logged in, as text for administrators."""

    def sessions(self) -> Sequence[SessionInfo]:
        """Return the sessions that are logged in."""

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        """Return how many logins were refused since the start, by status."""

    def name_clashes(self) -> Mapping[str, tuple[str, str]]:
        """Return the initiators' names that two hosts seem to share, with the addresses of both."""

    def end_session(self, tsih: int) -> None:
        """End a session."""

    def admit(self, rules: access.Rules) -> None:
        """Put other rules in force: who may log in, and the LUNs that they see.  Raises CannotStart."""

    def start(self) -> None:
        """Let initiators log in.  Raises CannotStart."""

    def pulses(self) -> Sequence[liveness.Pulse]:
        """Return the signs of life of the loops that `start` has started."""

    def close(self, drain: float) -> None:
        """Refuse further logins, and end the commands that run, within about `drain` seconds."""
