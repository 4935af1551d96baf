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


def fail(failed: FailedLogins, now: float, address: str = ONE, name: str = "iqn.a") -> float:
    return failed.failed(address, name, WRONG, "wrong secret", now)


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
    assert failed.may_try(TWO, "iqn.a", 0)


def test_hanging_up_gains_nothing() -> None:
    failed = FailedLogins()
    tried = now = 0
    for now in range(100):  # new connections, a hundred a second
        while failed.may_try(ONE, "iqn.a", now / 100):
            fail(failed, now / 100)
            tried += 1
    assert tried <= failed_logins.FREE + failed_logins.PENDING_MAXIMUM + 2
    assert failed.may_try(ONE, "iqn.a", now / 100 + failed_logins.DELAY_MAXIMUM)


def test_only_a_failed_authentication_is_slowed() -> None:
    failed = FailedLogins()
    for now in range(100):
        for status in LoginStatus:
            if status is not WRONG:
                assert failed.failed(ONE, "iqn.stale", status, "it is gone", now / 100) == 0
    assert failed.may_try(ONE, "iqn.stale", 1)
    assert fail(failed, 1) == 0


def test_one_name_tried_wrongly_keeps_no_other_name_out() -> None:
    failed = FailedLogins()
    for _ in range(20):
        fail(failed, 0)
    assert not failed.may_try(ONE, "iqn.a", 0)
    assert failed.may_try(ONE, "iqn.b", 0)


def test_a_neighbour_in_the_same_network_is_not_kept_out_until_many_tried() -> None:
    failed = FailedLogins()
    bad, good = "2001:db8::bad", "2001:db8::1"
    for _ in range(20):
        fail(failed, 0, bad)
    assert not failed.may_try(bad, "iqn.a", 0)
    assert failed.may_try(good, "iqn.a", 0)
    for number in range(failed_logins.PENDING_SHARED):
        fail(failed, 0, f"2001:db8::{number:x}")
    assert not failed.may_try(good, "iqn.a", 0), "a /64 has any number of addresses, so it has a bound as well"


def test_an_address_that_proved_its_name_may_fail_more_often() -> None:
    failed = FailedLogins()
    failed.succeeded(ONE, "iqn.a")
    for _ in range(failed_logins.PENDING_SHARED - 1):
        fail(failed, 0)
    assert failed.may_try(ONE, "iqn.a", 0)
    for _ in range(failed_logins.FREE + 1):
        fail(failed, 0)
    assert not failed.may_try(ONE, "iqn.a", 0)


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


def test_names_that_are_tried_take_bounded_memory() -> None:
    failed = FailedLogins()
    for number in range(3 * failed_logins.PEERS):
        fail(failed, 0, name=f"iqn.{number}")
        failed.succeeded(ONE, f"iqn.{number}")
    assert len(failed._late) <= 2 * failed_logins.PEERS
    assert len(failed._good) <= failed_logins.PEERS
