# SPDX-License-Identifier: Apache-2.0
"""The errors of a conversation: `UsageError` is our own caller's fault, the others are the peer's.

| error          | fault       | effect on the connection                                       |
| -------------- | ----------- | -------------------------------------------------------------- |
| `UsageError`   | ours        | a bug; it is not caught                                        |
| `LoginRefused` | the peer's  | a Login Response with this status, then the end                |
| `Rejected`     | the peer's  | a Reject PDU with this reason; the connection continues        |
| `PeerError`    | the peer's  | a Reject or Login Response if the phase has one, then the end  |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from target.iscsi.pdu import RejectReason


class LoginStatus(enum.IntEnum):
    """Status-Class and Status-Detail of a Login Response as one number (RFC 7143 11.13.5)."""

    SUCCESS = 0x0000
    TARGET_MOVED_TEMPORARILY = 0x0101
    TARGET_MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    TARGET_REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


class UsageError(Exception):
    """Our own side called a method that it must not call now."""


class IscsiError(Exception):
    """The peer did something it must not do."""


@dataclass(eq=False)
class PeerError(IscsiError):
    """A mistake after which the conversation cannot continue."""

    explanation: str
    reason: RejectReason = RejectReason.PROTOCOL_ERROR

    def __str__(self) -> str:
        return self.explanation


@dataclass(eq=False)
class Rejected(IscsiError):
    """One PDU is refused; the conversation continues."""

    reason: RejectReason
    explanation: str

    def __str__(self) -> str:
        return self.explanation


@dataclass(eq=False)
class LoginRefused(IscsiError):
    """The login fails with `status`."""

    status: LoginStatus
    explanation: str

    def __str__(self) -> str:
        return self.explanation
