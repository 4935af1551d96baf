# SPDX-License-Identifier: Apache-2.0
"""The bounds on the time and memory that one peer may take from the portal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The seconds, bytes and commands that one peer may use."""

    login_seconds: float = 15.0  # from the connection to the full feature phase
    login_pdus: int = 64
    discovery_seconds: float = 60.0  # of a discovery session: it only asks for targets
    text_requests: int = 64  # of a discovery session
    turn_pdus: int = 128  # requests, but for plain commands, that a session may have handled before it is others' turn
    login_segment: int = 8192  # bytes; RFC 7143 13.12: the default holds during login
    queue_depth: int = 128  # commands that a session may have outstanding
    # answers that wait for a slow reader; beyond this no request is read.  If memory is short (memory.py), it is less
    output_bytes: int = 8 << 20
    data_bytes: int = 32 << 20  # solicited data-out of one session
    transfer_bytes: int = 64 << 20  # of one command
    held_bytes: int = 4 << 20  # requests that arrived ahead of their CmdSN
    managed: int = 64  # task management functions of a session that wait for commands to end
    # for the rest of a PDU, for the next piece of a command's data, and for the peer to take an answer
    stall_seconds: float = 60.0
    idle_seconds: float = 30.0  # then the initiator is sent a NOP-In
    ping_seconds: float = 15.0  # to answer that NOP-In
    linger_seconds: float = 5.0  # for the peer to take the last answers
