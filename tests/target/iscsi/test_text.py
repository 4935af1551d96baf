# SPDX-License-Identifier: Apache-2.0
"""Text requests: SendTargets in discovery and normal sessions, and answers in several PDUs."""

from __future__ import annotations

import pytest

from target.iscsi import login
from target.iscsi.connection import State
from target.iscsi.pdu import NO_TAG, Opcode
from tests.target.iscsi.initiator import (
    TARGET,
    FakePortal,
    Initiator,
    make_target,
)


def test_discovery_lists_the_visible_targets(portal: FakePortal) -> None:
    other = "iqn.2026-11.io.wolun:other"
    hidden = "iqn.2026-11.io.wolun:hidden"
    portal.targets = {TARGET: make_target(), other: make_target(name=other), hidden: make_target(name=hidden)}

    class Hides(login.OpenAccess):
        def allows(self, initiator: str, address: str, target: str) -> bool:
            return target != hidden

    portal.policy = Hides()
    initiator = Initiator(portal)
    initiator.log_in(discovery=True)
    (reply,) = initiator.feed(initiator.request(Opcode.TEXT_REQUEST, itt=7, data=b"SendTargets=All\0"))
    address = "TargetAddress=192.0.2.2:3260,1\0"
    assert reply.data.decode() == f"TargetName={TARGET}\0{address}TargetName={other}\0{address}"
    assert (reply.itt, reply.word20, reply.flags) == (7, NO_TAG, 0x80)
    assert initiator.feed(initiator.command(b"\0" * 6))[0].opcode == Opcode.REJECT
    assert initiator.connection.state is State.CLOSING


def test_send_targets_knows_a_target_in_any_spelling(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    initiator.log_in(discovery=True)
    (reply,) = initiator.feed(
        initiator.request(Opcode.TEXT_REQUEST, itt=7, data=f"SendTargets={TARGET.upper()}\0".encode())
    )
    assert reply.data.startswith(f"TargetName={TARGET}\0".encode())


def test_a_long_list_of_targets_comes_in_pieces(portal: FakePortal) -> None:
    names = [f"iqn.2026-11.io.wolun:{number:03}" for number in range(50)]
    portal.targets = {name: make_target(name=name) for name in names}
    initiator = Initiator(portal)
    initiator.log_in(("MaxRecvDataSegmentLength", "512"), discovery=True)
    text, request = b"", initiator.request(Opcode.TEXT_REQUEST, itt=7, data=b"SendTargets=All\0")
    while True:
        (reply,) = initiator.feed(request)
        assert len(reply.data) <= 512
        text += reply.data
        if reply.flags & 0x80:
            break
        assert reply.flags == 0x40
        request = initiator.request(Opcode.TEXT_REQUEST, itt=7, word20=reply.word20)
    assert [pair[11:] for pair in text.decode().split("\0") if pair.startswith("TargetName=")] == names


def test_send_targets_in_a_normal_session_names_its_own_target(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    initiator.log_in()
    (own,) = initiator.feed(initiator.request(Opcode.TEXT_REQUEST, itt=7, data=b"SendTargets=\0"))
    assert own.data.startswith(f"TargetName={TARGET}\0".encode())
    (everything,) = initiator.feed(initiator.request(Opcode.TEXT_REQUEST, itt=7, data=b"SendTargets=All\0"))
    assert everything.data == b"SendTargets=Reject\0"


@pytest.mark.parametrize("discovery", [False, True])
def test_the_keys_of_a_text_request_are_bounded(portal: FakePortal, discovery: bool) -> None:
    initiator = Initiator(portal)
    initiator.log_in(discovery=discovery)
    text = b"".join(b"X-a%d=1\0" % number for number in range(login.MAX_PAIRS + 1))
    (reply,) = initiator.feed(initiator.request(Opcode.TEXT_REQUEST, itt=7, data=text))
    assert reply.opcode == Opcode.REJECT
    assert initiator.connection.state is State.CLOSING


def test_the_text_requests_of_a_discovery_session_are_bounded(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    initiator.log_in(discovery=True)
    requests = [initiator.request(Opcode.TEXT_REQUEST, itt=n, data=b"SendTargets=All\0") for n in range(100)]
    replies = [reply for request in requests for reply in initiator.feed(request)]
    assert [reply.opcode for reply in replies] == [Opcode.TEXT_RESPONSE] * portal.limits.text_requests + [Opcode.REJECT]
    assert initiator.connection.state is State.CLOSING


def test_a_discovery_session_has_a_lifetime_even_if_it_is_busy(portal: FakePortal) -> None:
    initiator, normal = Initiator(portal), Initiator(portal)
    initiator.log_in(discovery=True)
    normal.log_in()
    lifetime = int(portal.limits.discovery_seconds)
    for second in range(2, lifetime + 4):
        assert initiator.connection.finished is (second > lifetime + 1)
        for one in (initiator, normal):
            one.now = second
            one.feed(one.request(Opcode.NOP_OUT, immediate=True))
            one.connection.tick(second)
            one.take()
    assert initiator.connection.finished
    assert normal.connection.state is State.FULL_FEATURE
