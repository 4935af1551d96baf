# SPDX-License-Identifier: Apache-2.0
"""The watcher of a loop's thread: it relieves a thread in a long call, and no other."""

from __future__ import annotations

import threading
import time

from lun_backends import in_place
from target import shift


class Call:
    """A call in place of a disk that notes whether it is still trusted."""

    executes = True

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.trusted = True

    def distrust(self) -> None:
        self.trusted = False


def test_thread_in_a_long_call_is_relieved_on_the_thread_of_the_watcher() -> None:
    reliefs: list[tuple[str, in_place.Caller]] = []
    relieved = threading.Event()

    def relieve(ended: shift.Shift, caller: in_place.Caller) -> None:
        reliefs.append((threading.current_thread().name, caller))
        relieved.set()

    ran: list[tuple[bool, str, bool]] = []
    call = Call()

    def loop() -> None:
        mine = shift.Shift("loop", relieve)
        name = threading.current_thread().name
        mine.loop.enter(call)
        assert relieved.wait(60)
        mine.loop.leave()
        ran.append((mine.loop.relieved, name, threading.get_ident() in in_place.LOOPS))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join(60)
    assert ran == [(True, "loop", False)]
    assert reliefs == [("loop relief", call)]
    assert not call.trusted
    assert thread.name == "loop relieved"


def test_quick_calls_relieve_nobody_and_the_watcher_wakes_for_them_again() -> None:
    reliefs: list[shift.Shift] = []

    def loop() -> None:
        mine = shift.Shift("loop", lambda ended, _: reliefs.append(ended))
        for _ in range(2):
            until = time.monotonic() + 3 * shift.LIMIT_SECONDS
            while time.monotonic() < until:
                mine.loop.enter(Call())
                mine.loop.leave()
            mine.loop.asleep = True  # as after a second without calls
        mine.end()

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join(60)
    assert not reliefs
    assert thread.ident not in in_place.LOOPS
    until = time.monotonic() + 60
    while any(other.name == "loop relief" for other in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
