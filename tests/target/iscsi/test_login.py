# SPDX-License-Identifier: Apache-2.0
"""The login phase, with a connection around it."""

from __future__ import annotations

import pytest

from target.iscsi import login, pdu
from target.iscsi.connection import State
from target.iscsi.errors import LoginRefused, LoginStatus
from target.iscsi.limits import Limits
from target.iscsi.pdu import Opcode
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import INITIATOR, TARGET, FakePortal, Initiator, make_target

NAMES = [("InitiatorName", INITIATOR), ("TargetName", TARGET)]
OPERATIONAL_TO_FULL = 0x87


@pytest.fixture
def portal() -> FakePortal:
    return FakePortal({TARGET: make_target(MemoryDevice())})


def status_of(initiator: Initiator, request: bytes) -> int:
    (reply,) = initiator.feed(request)
    assert reply.opcode == Opcode.LOGIN_RESPONSE
    return reply.words[0] >> 16


def test_a_login_may_take_one_step(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    answers = initiator.log_in(("InitialR2T", "No"), ("MaxBurstLength", "65536"), ("X-what.ever", "1"))
    assert answers == {
        "TargetPortalGroupTag": "1",
        "InitialR2T": "No",
        "MaxBurstLength": "65536",
        "X-what.ever": "NotUnderstood",
        "MaxRecvDataSegmentLength": "262144",
    }
    assert initiator.connection.state is State.FULL_FEATURE
    assert initiator.connection.tsih == 1


def test_a_login_may_go_through_both_stages(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    (first,) = initiator.feed(initiator.login_request(0x81, [*NAMES, ("AuthMethod", "CHAP,None")]))
    assert first.flags == 0x81
    assert b"AuthMethod=None\0" in first.data
    (second,) = initiator.feed(initiator.login_request(0x04, [("ImmediateData", "Yes")]))
    assert second.flags == 0x04
    (third,) = initiator.feed(initiator.login_request(OPERATIONAL_TO_FULL, []))
    assert third.flags == OPERATIONAL_TO_FULL
    assert third.lun & 0xFFFF == 1, "the TSIH comes with the last answer"
    assert first.lun & 0xFFFF == 0
    assert initiator.connection.state is State.FULL_FEATURE


def test_a_login_may_skip_the_operational_stage(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    (reply,) = initiator.feed(initiator.login_request(0x83, [*NAMES, ("AuthMethod", "None")]))
    assert reply.flags == 0x83
    assert initiator.connection.state is State.FULL_FEATURE


def test_login_text_may_take_several_pdus(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    (empty,) = initiator.feed(
        initiator.request(
            Opcode.LOGIN_REQUEST,
            0x44,
            lun=1 << 16,
            itt=0,
            word20=0,
            immediate=True,
            data=b"InitiatorName=iqn.2026-11.io.",
        )
    )
    assert (empty.data, empty.flags) == (b"", 0x04)
    (reply,) = initiator.feed(
        initiator.request(
            Opcode.LOGIN_REQUEST,
            0x87,
            lun=1 << 16,
            itt=0,
            word20=0,
            immediate=True,
            data=f"wolun:initiator\0TargetName={TARGET}\0".encode(),
        )
    )
    assert reply.words[0] == 0
    assert initiator.connection.login.initiator == INITIATOR


@pytest.mark.parametrize(
    ("flags", "pairs", "status"),
    [
        (0x87, NAMES[1:], LoginStatus.MISSING_PARAMETER),
        (0x87, NAMES[:1], LoginStatus.MISSING_PARAMETER),
        (0x87, [NAMES[0], ("TargetName", "iqn.2026-11.io.wolun:none")], LoginStatus.NOT_FOUND),
        (0x87, [("InitiatorName", "me"), NAMES[1]], LoginStatus.INITIATOR_ERROR),
        (0x87, [NAMES[0], ("SessionType", "Odd")], LoginStatus.SESSION_TYPE_NOT_SUPPORTED),
        (0x81, [*NAMES, ("AuthMethod", "KRB5")], LoginStatus.AUTHENTICATION_FAILURE),
        (0x8F, NAMES, LoginStatus.INVALID_DURING_LOGIN),
        (0x86, NAMES, LoginStatus.INVALID_DURING_LOGIN),
        (0x84, NAMES, LoginStatus.INVALID_DURING_LOGIN),
        (0x87, [*NAMES, ("TargetAlias", "x")], LoginStatus.INITIATOR_ERROR),
        (0x87, [*NAMES, *((f"X-a{n}", "1") for n in range(64))], LoginStatus.INITIATOR_ERROR),
    ],
)  # fmt: skip
def test_a_wrong_login_is_refused_with_its_status(
    portal: FakePortal, flags: int, pairs: list[tuple[str, str]], status: LoginStatus
) -> None:
    initiator = Initiator(portal)
    assert status_of(initiator, initiator.login_request(flags, pairs)) == status
    assert initiator.connection.state is State.CLOSING
    assert not portal.connections


def test_a_second_connection_for_a_session_is_refused(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    assert status_of(initiator, initiator.login_request(0x87, NAMES, tsih=1)) == LoginStatus.SESSION_DOES_NOT_EXIST


def test_identity_must_not_change_on_the_way(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    initiator.feed(initiator.login_request(0x04, NAMES))
    assert status_of(initiator, initiator.login_request(0x87, [], isid=2)) == LoginStatus.INVALID_DURING_LOGIN


def test_the_policy_decides_before_any_answer(portal: FakePortal) -> None:
    asked: list[tuple[str, str, str]] = []

    class Nobody(login.OpenAccess):
        def allows(self, initiator: str, address: str, target: str) -> bool:
            asked.append((initiator, address, target))
            return False

    portal.policy = Nobody()
    initiator = Initiator(portal)
    assert status_of(initiator, initiator.login_request(0x87, NAMES)) == LoginStatus.AUTHORIZATION_FAILURE
    assert asked == [(INITIATOR, "192.0.2.1", TARGET)]


class Riddle:
    """An authentication method of one question."""

    methods = ("RDL",)

    def begin(self, method: str) -> Riddle:
        assert method == "RDL"
        self.asked = False
        return self

    def step(self, pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], bool]:
        if not self.asked:
            self.asked = True
            return [("RDL_Q", "6x7")], False
        if pairs != [("RDL_A", "42")]:
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "wrong")
        return [("RDL_OK", "1")], True


class RiddlePolicy(login.OpenAccess):
    def authenticator(self, initiator: str, target: str | None) -> login.Authenticator:
        return Riddle()


def test_a_login_succeeds_after_its_authentication(portal: FakePortal) -> None:
    portal.policy = RiddlePolicy()
    initiator = Initiator(portal)
    (offered,) = initiator.feed(initiator.login_request(0x00, [*NAMES, ("AuthMethod", "RDL,None")]))
    assert b"AuthMethod=RDL\0" in offered.data
    (early,) = initiator.feed(initiator.login_request(0x81, []))
    assert early.flags == 0x00, "no transit before it is authenticated"
    assert early.data == b"RDL_Q=6x7\0"
    (done,) = initiator.feed(initiator.login_request(0x83, [("RDL_A", "42")]))
    assert done.flags == 0x83
    assert done.data == b"RDL_OK=1\0"
    assert initiator.connection.state is State.FULL_FEATURE


def test_authentication_cannot_be_skipped(portal: FakePortal) -> None:
    portal.policy = RiddlePolicy()
    for flags, pairs in ((0x87, NAMES), (0x83, NAMES), (0x81, [*NAMES, ("AuthMethod", "None")])):
        initiator = Initiator(portal)
        assert status_of(initiator, initiator.login_request(flags, pairs)) == LoginStatus.AUTHENTICATION_FAILURE
    initiator = Initiator(portal)
    initiator.feed(initiator.login_request(0x00, [*NAMES, ("AuthMethod", "RDL")]))
    initiator.feed(initiator.login_request(0x00, []))
    assert status_of(initiator, initiator.login_request(0x00, [("RDL_A", "41")])) == LoginStatus.AUTHENTICATION_FAILURE


GONE = [NAMES[0], ("TargetName", "iqn.2026-11.io.wolun:none")]


@pytest.mark.parametrize("pairs", [NAMES, GONE], ids=["there", "not there"])
def test_peer_without_rights_does_not_learn_whether_a_target_exists(
    portal: FakePortal, pairs: list[tuple[str, str]]
) -> None:
    class Nobody(login.OpenAccess):
        def admits(self, initiator: str, address: str) -> bool:
            return False

        def allows(self, initiator: str, address: str, target: str) -> bool:
            return False

    portal.policy = Nobody()
    for flags in (0x00, 0x81, 0x87):
        initiator = Initiator(portal)
        assert status_of(initiator, initiator.login_request(flags, pairs)) == LoginStatus.AUTHORIZATION_FAILURE


@pytest.mark.parametrize(
    ("answer", "there", "not_there"),
    [
        ("41", LoginStatus.AUTHENTICATION_FAILURE, LoginStatus.AUTHENTICATION_FAILURE),
        ("42", LoginStatus.SUCCESS, LoginStatus.NOT_FOUND),
    ],
)
def test_initiator_learns_whether_a_target_exists_once_it_has_proved_its_name(
    portal: FakePortal, answer: str, there: LoginStatus, not_there: LoginStatus
) -> None:
    portal.policy = RiddlePolicy()
    texts = []
    for pairs, status in ((NAMES, there), (GONE, not_there)):
        initiator = Initiator(portal)
        (offered,) = initiator.feed(initiator.login_request(0x00, [*pairs, ("AuthMethod", "RDL")]))
        (asked,) = initiator.feed(initiator.login_request(0x00, []))
        texts.append((offered.data, asked.data))
        assert status_of(initiator, initiator.login_request(0x83, [("RDL_A", answer)])) == status
        for flags in (0x87, 0x83):
            skipping = Initiator(portal)
            request = skipping.login_request(flags, pairs)
            assert status_of(skipping, request) == LoginStatus.AUTHENTICATION_FAILURE
    assert texts[0] == texts[1]


def test_a_pdu_that_is_not_a_login_request_is_cut_off(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    assert initiator.feed(initiator.command(b"\0" * 6)) == []
    assert initiator.connection.state is State.CLOSING


def test_a_login_is_limited_in_time_and_length(portal: FakePortal) -> None:
    portal.limits = Limits(login_pdus=3, login_seconds=10)
    chatty = Initiator(portal)
    chatty.feed(chatty.login_request(0x04, NAMES))
    for _ in range(3):
        chatty.feed(chatty.login_request(0x04, []))
    assert chatty.connection.state is State.CLOSING
    silent = Initiator(portal)
    silent.connection.tick(9.9)
    assert not silent.connection.finished
    silent.connection.tick(10.1)
    assert silent.connection.state is State.CLOSING
    fat = Initiator(portal)
    fat.feed(pdu.REQUEST.pack(0x43, 0x87, 0, 0, 8193, 0, 0, 0, 0, 0))
    assert fat.connection.state is State.CLOSING


def test_names_are_compared_in_their_normal_form(portal: FakePortal) -> None:
    initiator = Initiator(portal)
    names = [("InitiatorName", INITIATOR.upper()), ("TargetName", TARGET.upper())]
    assert status_of(initiator, initiator.login_request(OPERATIONAL_TO_FULL, names)) == LoginStatus.SUCCESS
    assert (initiator.connection.login.initiator, initiator.connection.login.target) == (INITIATOR, TARGET)


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07\x1b[2J", "a b", "\u202ebd", "[/red]", "h\n"])
def test_names_that_no_terminal_should_see_are_refused(
    portal: FakePortal, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    initiator = Initiator(portal)
    names = [("InitiatorName", f"iqn.2026-11.org.example:{name}"), NAMES[1]]
    request = initiator.login_request(OPERATIONAL_TO_FULL, names)
    assert status_of(initiator, request) == LoginStatus.INITIATOR_ERROR
    assert "is not an iSCSI name: it has the character U+" in caplog.text
    assert name not in caplog.text or name.isprintable()
    assert initiator.connection.login.initiator == ""


@pytest.mark.parametrize(
    ("flags", "pairs", "said"),
    [
        (0x87, [NAMES[1]], "the key InitiatorName is missing"),
        (0x87, [NAMES[0]], "the key TargetName is missing"),
        (0x87, [("InitiatorName", "host7"), NAMES[1]], "InitiatorName='host7' is not an iSCSI name"),
        (0x87, [*NAMES, ("SessionType", "Disco\x1bvery")], r"SessionType='Disco\x1bvery' is neither"),
        (0x87, [NAMES[0], ("TargetName", "iqn.2026-11.x:gone")], "there is no target 'iqn.2026-11.x:gone'"),
        (0x81, [*NAMES, ("AuthMethod", "KRB5")], "AuthMethod='KRB5' has none of None"),
        (0x87, [*NAMES, ("AuthMethod", "None")], "AuthMethod='None' outside the security stage"),
        (0x84, NAMES, "from login stage 1 there is no way to stage 0"),
        (0x88, NAMES, "there is no login stage 2"),
    ],
)
def test_log_names_what_was_refused(
    portal: FakePortal, flags: int, pairs: list[tuple[str, str]], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    initiator = Initiator(portal)
    assert status_of(initiator, initiator.login_request(flags, pairs)) != LoginStatus.SUCCESS
    assert said in caplog.text


def test_log_names_an_initiator_that_no_rule_admits_and_its_address(
    portal: FakePortal, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(login.OpenAccess):
        def allows(self, initiator: str, address: str, target: str) -> bool:
            return False

    portal.policy = Closed()
    initiator = Initiator(portal)
    assert (
        status_of(initiator, initiator.login_request(OPERATIONAL_TO_FULL, NAMES)) == LoginStatus.AUTHORIZATION_FAILURE
    )
    assert f"{INITIATOR} from {initiator.connection.address} may not use {TARGET}" in caplog.text
