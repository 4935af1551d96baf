# SPDX-License-Identifier: Apache-2.0
"""One session as status displays show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session, for status displays.  `since` is in seconds of time.time().  Of the kernel's sessions it is not known when
    they began, nor how much they did: None; nor, sometimes, where they came from: an empty address.
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
    portal: str = ""  # HOST:PORT that was listened on when it came
