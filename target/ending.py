# SPDX-License-Identifier: Apache-2.0
"""The ends of the daemon's process: the orderly stop, and those that must not fail.

| cause                                            | end                                                   | status        |
| ------------------------------------------------ | ----------------------------------------------------- | ------------- |
| SIGTERM or SIGINT                                | an orderly stop                                       | 0             |
| the orderly stop takes more than `STOP_SECONDS`  | at once; the log says where each thread was           | `FAILED`      |
| a second signal                                  | at once                                               | 128 + signal  |
| a thread ends with an exception                  | at once: the rest would listen, but serve nothing     | `FAILED`      |

An end "at once" is like a kill -9, after which no acknowledged write and no preserved block is missing.  A service
manager starts the daemon again (`Restart=`).  The kernel's target keeps its commands until then.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
from typing import Final, NoReturn

log = logging.getLogger(__name__)

STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})

FAILED: Final = os.EX_SOFTWARE
"""The exit status of a daemon that could not continue."""

STOP_SECONDS: Final = 170.0
"""The longest orderly stop.  A command that a dead disk does not answer ends after 130 s, and a ring gets 30 s more.
`TimeoutStopSec` of the unit is longer."""


def with_any_thread() -> None:
    """Let the process end when a thread ends with an exception, and show all threads if it ends by a fatal signal."""
    threading.excepthook = _thread_failed
    if not faulthandler.is_enabled():
        with contextlib.suppress(ValueError, OSError):  # standard error is no file
            faulthandler.enable()


def at_once(status: int) -> NoReturn:
    """End the process now."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    try:
        name = failure.thread.name if failure.thread is not None else "an unknown thread"
        value = failure.exc_value if failure.exc_value is not None else failure.exc_type()
        log.critical("%s ended, so the process ends with status %d", name, FAILED, exc_info=value)
    finally:
        at_once(FAILED)


class StopSignals:
    """A thread that waits for `STOP_SIGNALS`.  Make it before any other thread, so that all threads block these signals."""

    def __init__(self, seconds: float = STOP_SECONDS) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._seconds = seconds
        self._came = threading.Event()
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def wait(self) -> None:
        """Return once a signal has come: the caller stops now, and has `seconds` for it."""
        self._came.wait()

    def _run(self) -> None:
        number = signal.sigwait(STOP_SIGNALS)
        log.info("%s: stopping", signal.Signals(number).name)
        self._came.set()
        again = signal.sigtimedwait(STOP_SIGNALS, self._seconds)
        if again is not None:
            log.warning("%s again: the process ends at once", signal.Signals(again.si_signo).name)
            at_once(128 + again.si_signo)
        log.critical("not stopped after %g s: the process ends with status %d", self._seconds, FAILED)
        with contextlib.suppress(ValueError, OSError):
            faulthandler.dump_traceback()
        at_once(FAILED)
