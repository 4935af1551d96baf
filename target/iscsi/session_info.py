# SPDX-License-Identifier: Apache-2.0
"""One session, as the status shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session, for the status.  `since` is in seconds of time.time().

    The kernel's target does not report when its sessions began or how much they did (None).  Sometimes it does not
    report the address of a session either (empty).
    """

    tsih: int
    initiator: str
    alias: str
    address: str
    target: str | None  # None: a discovery session
    since: float | None
    bytes_read: int | None
    bytes_written: int | None
    commands: int | None
    outstanding: int | None
    portal: str = ""  # the HOST:PORT that accepted it
