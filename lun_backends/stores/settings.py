# SPDX-License-Identifier: Apache-2.0
"""The kinds of stores, and where the stores of a volume are; a module of its own because settings need no store."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """The kind of the stores of a volume's snapshots."""

    MAP = "map"
    SPARSE = "sparse"


@dataclass(frozen=True, slots=True)
class Settings:
    """The stores of a volume."""

    kind: Kind = Kind.MAP


DEFAULT = Settings()
