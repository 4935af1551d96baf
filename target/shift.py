# SPDX-License-Identifier: Apache-2.0
"""Shifts: the threads that run a fabric's loop, one after the other, because a call in place may wait.

`lun_backends.in_place` has the reason.  Each shift has a watcher.  While calls in place come, it looks at them every
`LOOK_SECONDS`; otherwise it sleeps.  A call that takes longer than `LIMIT_SECONDS` ends the shift, and the watcher's
thread begins the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from lun_backends import in_place

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.01
LIMIT_SECONDS: Final = 0.05
"""The longest call in place.  A copy into the page cache takes microseconds, and a commit of a journal some milliseconds."""
QUIET_LOOKS: Final = 100
"""Looks without a call in place, after which the watcher sleeps."""


class Shift:
    """The calling thread's time as the loop, until `end`, or until it is relieved.

    The thread is called `name` meanwhile.  `relieve` is called on the watcher's thread, with the shift and the caller
    that waits.  It sets `handed_over`, and continues as the loop.
    """

    def __init__(self, name: str, relieve: Callable[[Shift, in_place.Caller], None]) -> None:
        self.loop = in_place.begin()
        self.handed_over = threading.Event()
        """Set once the relieved thread may look at the work that is left to it."""
        self.finished = threading.Event()
        """Set once the relieved thread has no work left."""
        self._name = name
        self._thread = threading.current_thread()
        self._thread.name = name
        self._relieve = relieve
        self._ended = False
        threading.Thread(target=self._watch, name=f"{name} relief", daemon=True).start()

    def end(self) -> None:
        """End the shift, because the loop has ended."""
        in_place.end(self._thread.ident or 0)
        self._ended = True
        self.loop.stirred.set()

    def _watch(self) -> None:
        loop = self.loop
        calls = loop.calls
        while not self._ended:
            loop.stirred.clear()
            loop.asleep = True
            if not calls and not self._ended:
                loop.stirred.wait()
            loop.asleep = False
            quiet = 0
            while quiet < QUIET_LOOKS and not self._ended:
                time.sleep(LOOK_SECONDS)
                quiet += 1
                for call in tuple(calls):
                    quiet = 0
                    if time.monotonic() - call.began > LIMIT_SECONDS and (caller := loop.take_over()) is not None:
                        in_place.end(self._thread.ident or 0)
                        self._thread.name = f"{self._name} relieved"
                        caller.distrust()
                        log.warning(
                            "a disk made %s wait for %d ms: another thread goes on", self._name, LIMIT_SECONDS * 1000
                        )
                        self._relieve(self, caller)
                        return
