# SPDX-License-Identifier: Apache-2.0
"""Failed logins are counted, logged once per peer and minute, and slowed down; correct ones are not."""

from __future__ import annotations

import logging

import pytest

from target.iscsi import failed_logins
from target.iscsi.errors import LoginStatus
from target.iscsi.failed_logins import FailedLogins

WRONG = LoginStatus.AUTHENTICATION_FAILURE
ONE, TWO = "192.0.2.1", "192.0.2.2"


def fail(failed: FailedLogins, now: float, address: str = ONE) -> float:
    return failed.failed(address, "iqn.a", WRONG, "wrong secret", now)


def test_failures_are_counted_by_status() -> None:
    failed = FailedLogins()
    fail(failed, 0)
    fail(failed, 0, TWO)
    failed.failed(ONE, "", LoginStatus.NOT_FOUND, "no target", 0)
    assert failed.counts == {WRONG: 2, LoginStatus.NOT_FOUND: 1}


def test_each_peer_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    failed = FailedLogins()
    with caplog.at_level(logging.INFO):
        for now in range(60):
            fail(failed, now)
        assert [record.message for record in caplog.records] == [f"{ONE} iqn.a: login refused: wrong secret"]
        fail(failed, 30, TWO)
        assert len(caplog.records) == 2
        fail(failed, 60)
    assert caplog.records[-1].message == f"{ONE} iqn.a: login refused: wrong secret (59 more since the last message)"
    assert len(caplog.records) == 3


def test_the_first_failures_are_answered_at_once_and_later_ones_ever_later() -> None:
    failed = FailedLogins()
    delays = [fail(failed, 10.0 * number) for number in range(9)]
    assert delays == [0, 0, 0, 0.5, 1, 2, 4, 4, 4]


def test_a_peer_is_not_slowed_by_another() -> None:
    failed = FailedLogins()
    for _ in range(20):
        fail(failed, 0)
    assert fail(failed, 0, TWO) == 0
    assert failed.may_try(TWO, 0)


def test_hanging_up_gains_nothing() -> None:
    failed = FailedLogins()
    tried = now = 0
    for now in range(100):  # new connections, a hundred a second
        while failed.may_try(ONE, now / 100):
            fail(failed, now / 100)
            tried += 1
    assert tried <= failed_logins.FREE + failed_logins.PENDING_MAXIMUM + 2
    assert failed.may_try(ONE, now / 100 + failed_logins.DELAY_MAXIMUM)


def test_a_quiet_peer_starts_anew() -> None:
    failed = FailedLogins()
    for _ in range(8):
        fail(failed, 0)
    assert fail(failed, failed_logins.FORGET_SECONDS - 1) > 0
    assert fail(failed, 2 * failed_logins.FORGET_SECONDS) == 0


def test_memory_is_bounded_and_busy_peers_are_remembered() -> None:
    failed = FailedLogins()
    for number in range(3 * failed_logins.PEERS):
        fail(failed, number / 1000, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        if not number % (failed_logins.PEERS // 2):
            fail(failed, number / 1000)
    assert len(failed._peers) == failed_logins.PEERS
    assert fail(failed, 3 * failed_logins.PEERS / 1000) == failed_logins.DELAY_MAXIMUM  # its seventh failure


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_addresses_are_grouped_into_peers(address: str, peer: str) -> None:
    assert failed_logins.peer_of(address) == peer
