# SPDX-License-Identifier: Apache-2.0
"""The failures that an acknowledged write survives; a module of its own because settings need no store."""

from __future__ import annotations

import enum


class Durability(enum.Enum):
    """The failures that an acknowledged write survives."""

    POWER_LOSS = "power-loss"
    PROCESS_CRASH = "process-crash"
