# SPDX-License-Identifier: Apache-2.0
"""The load of a portal, as the status shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """The sessions and the memory of a portal, with the use and the limit of each."""

    sessions: int  # without those for discovery
    most_sessions: int
    refused_sessions: int  # logins that found no session left, since the start
    refused_ago: float | None  # seconds since the last of them; None: there was none
    memory: int  # bytes
    most_memory: int
    full: int  # commands that ended with TASK SET FULL, since the start
