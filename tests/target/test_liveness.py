# SPDX-License-Identifier: Apache-2.0
"""Signs of life: systemd gets them for as long as every loop moves."""

from __future__ import annotations

import threading
import time

import pytest

from target import liveness, systemd


def test_sign_of_life_is_sent_only_while_all_loops_move(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    sent: list[str] = []
    moving, standing = liveness.Pulse("moving", 1), liveness.Pulse("standing", 1)
    watchdog = liveness.Watchdog([moving, standing], 10, sent.append)
    began = time.monotonic()
    assert watchdog.look(began + 5)
    moving._last = began + 10
    assert not watchdog.look(began + 10)
    assert not watchdog.look(began + 11)
    assert sent == [systemd.ALIVE]
    standing._last = began + 12
    assert watchdog.look(began + 12)
    assert sent == [systemd.ALIVE] * 2
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the loop of standing stands still",
        "the loop of standing moves again",
    ]


def test_rarely_beating_loop_has_its_period(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = liveness.Watchdog([liveness.Pulse("rare", 15)], 10, lambda state: None)
    assert watchdog.look(time.monotonic() + 19)
    assert not watchdog.look(time.monotonic() + 21)


def test_log_says_where_a_loop_stands_still(caplog: pytest.LogCaptureFixture) -> None:
    stands, go = threading.Event(), threading.Event()

    def waits_for_ever() -> None:
        stands.set()
        go.wait(60)

    thread = threading.Thread(target=waits_for_ever, name="stuck")
    thread.start()
    stands.wait(60)
    liveness.Watchdog([liveness.Pulse("stuck")], None, lambda state: None).look(time.monotonic() + 1000)
    go.set()
    thread.join()
    assert "waits_for_ever (test_liveness.py:" in caplog.text


def test_loops_that_end_because_the_daemon_stops_do_not_stand_still() -> None:
    sent: list[str] = []
    watchdog = liveness.Watchdog([liveness.Pulse("ended")], 10, sent.append)
    watchdog.stopping()
    assert watchdog.look(time.monotonic() + 1000)
    assert sent == [systemd.ALIVE]


def test_thread_looks_from_start_to_close() -> None:
    looked = threading.Event()
    watchdog = liveness.Watchdog([liveness.Pulse("moving", 1000)], 0.01, lambda state: looked.set())
    watchdog.start()
    assert looked.wait(60)
    looked.clear()
    assert looked.wait(60)
    watchdog.close()
