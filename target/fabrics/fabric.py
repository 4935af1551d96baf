# SPDX-License-Identifier: Apache-2.0
"""The interface of a fabric as the daemon runs it.

| `fabric:`  | module    | who listens                       | what it needs                                        |
| ---------- | --------- | --------------------------------- | ---------------------------------------------------- |
| `portal`   | portal.py | this process                      | nothing                                              |
| `lio`      | kernel.py | the kernel; SCSI comes by TCMU    | root, and the modules target_core_user,              |
|            |           |                                   | iscsi_target_mod and tcm_loop                        |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from target.fabrics import access
from target.iscsi import errors
from target.iscsi.session_info import SessionInfo


class CannotStart(Exception):
    """The fabric cannot be started; says why and what to do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


class CannotListen(CannotStart):
    """Initiators cannot be let in at an address; says why and what to do."""


class Fabric(Protocol):
    """Lets initiators reach the LUNs of a SCSI target."""

    def addresses(self) -> Sequence[str]:
        """Where initiators connect, HOST:PORT each."""

    def listen(self, address: str) -> None:
        """Let initiators connect there, too.  Raises CannotListen."""

    def unlisten(self, address: str) -> None:
        """Let them connect there no more, and end the sessions of those who did.  Raises CannotStart."""

    def users(self, address: str) -> Sequence[str]:
        """Who came by way of an address and is logged in, for people."""

    def sessions(self) -> Sequence[SessionInfo]:
        """Who is logged in."""

    def failed_logins(self) -> Mapping[errors.LoginStatus, int]:
        """How many logins were refused since the start, by status."""

    def end_session(self, tsih: int) -> None:
        """Drop a session."""

    def admit(self, rules: access.Rules) -> None:
        """Other initiators may log in from now on, or see other LUNs.  Raises CannotStart."""

    def start(self) -> None:
        """Let initiators in.  Raises CannotStart."""

    def close(self, drain: float) -> None:
        """Let nobody in any more, and end what is under way, within about `drain` seconds."""
