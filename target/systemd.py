# SPDX-License-Identifier: Apache-2.0
"""Messages to systemd, if it started this process as `Type=notify` (sd_notify(3))."""

from __future__ import annotations

import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notify(state: str) -> None:
    """Send a message.  Do nothing if systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            return  # the manager is being replaced, or is gone, so no process listens


def watchdog_seconds() -> float | None:
    """Return the seconds after which systemd ends this process unless it gets `ALIVE`; None if systemd does not watch.

    They are `WatchdogSec` of the unit (sd_watchdog_enabled(3)).
    """
    period, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not period.isdecimal() or not int(period) or process not in ("", str(os.getpid())):
        return None
    return int(period) / 1e6
