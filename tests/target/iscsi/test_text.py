# SPDX-License-Identifier: Apache-2.0
"""Text requests: SendTargets in discovery and normal sessions, and answers in several PDUs."""

from __future__ import annotations

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
