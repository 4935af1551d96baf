# SPDX-License-Identifier: Apache-2.0
"""The effect of each error on a conversation, row by row of the module's table."""

from __future__ import annotations

import pytest

from target.iscsi import errors
from target.iscsi.connection import State
from target.iscsi.errors import LoginStatus
from target.iscsi.pdu import NO_TAG, Opcode, RejectReason
from tests.target.iscsi.initiator import UNSOLICITED, Connect, FakePortal, Initiator, read10, write10


def test_a_refused_login_is_answered_with_its_status_and_closed(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    names = [("InitiatorName", initiator.name), ("TargetName", "iqn.2026-11.io.wolun:none")]
    (reply,) = initiator.feed(initiator.login_request(0x87, names))
    assert (reply.opcode, reply.words[0]) == (Opcode.LOGIN_RESPONSE, LoginStatus.NOT_FOUND << 16)
    assert initiator.connection.state is State.CLOSING


def test_a_rejected_request_leaves_the_session_alone(connect: Connect) -> None:
    initiator = connect()
    (reply,) = initiator.feed(initiator.command(read10(0, 1), read=512, itt=NO_TAG))
    assert (reply.opcode, reply.response) == (Opcode.REJECT, RejectReason.INVALID_PDU_FIELD)
    assert initiator.connection.state is State.FULL_FEATURE
    assert initiator.feed(initiator.command(bytes(6)))[0].status == 0


def test_a_peers_error_is_rejected_and_closes_the_session(connect: Connect) -> None:
    initiator = connect(UNSOLICITED)
    (reply,) = initiator.feed(initiator.command(write10(0, 1), write=512, data=bytes(1024)))
    assert (reply.opcode, reply.response) == (Opcode.REJECT, RejectReason.PROTOCOL_ERROR)
    assert initiator.connection.state is State.CLOSING


def test_our_own_error_is_not_caught(connect: Connect) -> None:
    initiator = Initiator(connect().host)
    initiator.log_in(discovery=True)
    with pytest.raises(errors.UsageError):
        initiator.connection.tasks._prepare([], nowait=True)
    assert not issubclass(errors.UsageError, errors.IscsiError)


@pytest.mark.parametrize(
    "error",
    [
        errors.PeerError("reason"),
        errors.Rejected(RejectReason.PROTOCOL_ERROR, "reason"),
        errors.LoginRefused(LoginStatus.NOT_FOUND, "reason"),
    ],
)
def test_an_error_reads_as_its_explanation(error: errors.IscsiError) -> None:
    assert str(error) == "reason"
