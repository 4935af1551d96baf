# SPDX-License-Identifier: Apache-2.0
"""Room for sessions and logins, on connections without sockets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from target.iscsi.connection import Connection, State
from target.iscsi.errors import LoginRefused, LoginStatus
from target.portal.room import DISCOVERY_SESSIONS, LOGIN_CONNECTIONS, Room


def connection(
    address: str, *, state: State = State.FULL_FEATURE, discovery: bool = False, heard: float = 0.0
) -> Connection:
    made = SimpleNamespace(
        address=address,
        nexus=object() if state is State.FULL_FEATURE and not discovery else None,
        state=state,
        login=SimpleNamespace(discovery=discovery),
        last_heard=heard,
    )
    return cast(Connection, made)


def test_one_peer_leaves_an_eighth_of_the_sessions_to_others() -> None:
    room = Room(16)
    of_one = [connection("10.0.0.1") for _ in range(14)]
    room.check(connection("10.0.0.1"), of_one[:13])
    with pytest.raises(LoginRefused) as refused:
        room.check(connection("10.0.0.1"), of_one)
    assert refused.value.status is LoginStatus.OUT_OF_RESOURCES
    room.check(connection("10.0.0.2"), of_one)
    assert room.refused == 1
    assert room.refused_at is not None


def test_no_session_is_opened_beyond_the_limit() -> None:
    room = Room(2)
    with pytest.raises(LoginRefused, match="all 2 sessions"):
        room.check(connection("10.0.0.3"), [connection("10.0.0.1"), connection("10.0.0.2")])
    room.check(connection("10.0.0.3"), [connection("10.0.0.1"), connection("10.0.0.2", discovery=True)])


def test_login_that_was_silent_longest_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    room = Room(256)
    logins = [connection("10.0.0.1", state=State.LOGIN, heard=n) for n in range(LOGIN_CONNECTIONS)]
    assert room.login_gives_way([*logins[1:], connection("10.0.0.1")], 0.0) is None
    for _ in range(3):
        assert room.login_gives_way(logins, 0.0) is logins[0]
    assert len(caplog.records) == 1
    room.login_gives_way(logins, 1000.0)
    assert "2 more since" in caplog.records[-1].getMessage()


def test_discovery_sessions_have_a_share_of_their_own() -> None:
    room = Room(1)
    sessions = [connection("10.0.0.1", discovery=True, heard=9.0 - n % 9) for n in range(DISCOVERY_SESSIONS)]
    assert room.discovery_gives_way(sessions[1:]) is None
    assert room.discovery_gives_way([*sessions[1:], connection("10.0.0.1")]) is None
    assert room.discovery_gives_way(sessions) is sessions[8]
