# SPDX-License-Identifier: Apache-2.0
"""Text requests in the full feature phase: SendTargets, and parameters negotiated once more (RFC 7143 11.10, 11.11)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from target import iscsi_name
from target.iscsi import keys, login, pdu
from target.iscsi.errors import PeerError
from target.iscsi.pdu import NO_TAG, Opcode
from target.iscsi.sender import Sender

TEXT_TTT = 0x7FFFFFFF
"""The tag of a text exchange that continues; a session has only one at a time."""


class Host(Protocol):
    """The parts of the portal that have the answers."""

    @property
    def targets(self) -> Iterable[str]:
        """The names of all targets."""

    @property
    def policy(self) -> login.AccessPolicy:
        """The access policy."""

    @property
    def parameters(self) -> keys.Parameters:
        """Our own side of a negotiation."""

    def portals(self, reached: str) -> Iterable[str]:
        """Return every address that accepts initiators, HOST:PORT, beginning with `reached`."""


class Session(Protocol):
    """The parts of a session that text requests work on."""

    sender: Sender
    login: login.Login
    address: str
    portal_address: str

    @property
    def host(self) -> Host:
        """The portal that the session belongs to."""


class TextExchange:
    """The text exchange of one session: a request and an answer, each of which may take several PDUs."""

    __slots__ = ("_answer", "_request")

    def __init__(self) -> None:
        self._request = bytearray()
        self._answer = b""

    def take(self, session: Session, request: pdu.Pdu) -> None:
        """Take one Text Request and answer it.  Raises PeerError."""
        _, flags, _, _, _, _, itt, ttt, _, _ = pdu.REQUEST.unpack(request.bhs)
        if ttt == NO_TAG:
            self._request.clear()
            self._answer = b""
        self._request += request.data
        if len(self._request) > login.MAX_TEXT_LENGTH:
            raise PeerError("a text request too long")
        sender = session.sender
        if flags & pdu.TEXT_CONTINUE:
            sender.send(Opcode.TEXT_RESPONSE, 0, itt=itt, word20=TEXT_TTT)
            return
        if self._request:
            pairs = keys.parse(bytes(self._request))
            if len(pairs) > login.MAX_PAIRS:
                raise PeerError(f"more than {login.MAX_PAIRS} text keys at once")
            self._answer = keys.serialise(_answers(session, pairs))
            self._request.clear()
        piece = self._answer[: sender.max_segment]
        self._answer = self._answer[len(piece) :]
        more = bool(self._answer)
        sender.send(
            Opcode.TEXT_RESPONSE,
            pdu.TEXT_CONTINUE if more else pdu.FINAL,
            itt=itt,
            word20=TEXT_TTT if more else NO_TAG,
            data=(piece,) if piece else (),
        )


def _answers(session: Session, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    answers: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for key, value in pairs:
        if key == "SendTargets":
            answers += _send_targets(session, value)
        else:
            rest.append((key, value))
    agreed, negotiated = keys.negotiate(rest, session.login.agreed, session.host.parameters, full_feature=True)
    session.login.agreed = agreed
    session.sender.max_segment = agreed.max_recv_data_segment_length
    return answers + negotiated


def _send_targets(session: Session, requested: str) -> list[tuple[str, str]]:
    """Return the answer to SendTargets=`requested` (RFC 7143 appendix C)."""
    host = session.host
    if requested == "All":
        if not session.login.discovery:
            return [("SendTargets", keys.REJECT)]
        names = list(host.targets)
    else:
        found = iscsi_name.find(requested, host.targets) if requested else session.login.target
        names = [name for name in host.targets if name == found]
    answers: list[tuple[str, str]] = []
    for name in names:
        if host.policy.allows(session.login.initiator, session.address, name):
            answers.append(("TargetName", name))
            for address in host.portals(session.portal_address):
                answers.append(("TargetAddress", f"{address},{login.PORTAL_GROUP_TAG}"))
    return answers
