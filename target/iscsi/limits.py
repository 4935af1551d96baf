# SPDX-License-Identifier: Apache-2.0
"""The bounds on what one peer may make the portal spend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may make us spend."""

    login_seconds: float = 15.0  # from the connection to the full feature phase
    login_pdus: int = 64
    login_segment: int = 8192  # bytes; RFC 7143 13.12: the default holds during login
    queue_depth: int = 128  # commands a session may have outstanding
    output_bytes: int = 8 << 20  # answers waiting for a slow reader; no request is read beyond
    data_bytes: int = 32 << 20  # solicited data-out and blocked reads of one session
    transfer_bytes: int = 64 << 20  # of one command
    held_bytes: int = 4 << 20  # requests that came ahead of their CmdSN
    managed: int = 64  # task management functions of a session that wait for commands to end
    stall_seconds: float = (
        60.0  # for a PDU that was begun to be whole, the next of a command's data, an answer to be taken
    )
    idle_seconds: float = 30.0  # then the initiator is asked whether it lives
    ping_seconds: float = 15.0  # then it is held for dead
    linger_seconds: float = 5.0  # for the last answers to be taken
