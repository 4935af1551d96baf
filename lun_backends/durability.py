# SPDX-License-Identifier: Apache-2.0
"""What an acknowledged write survives.  A module of its own because settings need the word and not the store."""

from __future__ import annotations

import enum


class Durability(enum.Enum):
    """What an acknowledged write survives."""

    POWER_LOSS = "power-loss"
    PROCESS_CRASH = "process-crash"
