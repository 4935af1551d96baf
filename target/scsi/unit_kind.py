# SPDX-License-Identifier: Apache-2.0
"""The kinds of logical unit: they decide which commands a unit knows and what it reports about itself."""

from __future__ import annotations

import enum


class UnitKind(enum.Enum):
    """The three kinds of LUN; all are direct access block devices (type 00h), because Linux binds type 04h to `sr`."""

    PRIMARY = "primary"
    WRITE_ONCE = "write-once"
    SNAPSHOT_VIEW = "snapshot-view"
