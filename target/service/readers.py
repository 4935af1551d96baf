# SPDX-License-Identifier: Apache-2.0
"""The units of snapshots that are being read, found from counters that only grow.

A host that is logged in looks at every LUN once, at its partitions and at the signature of a file system.  So an
initiator that reached a unit need not use it.  A unit counts as read for `RECENT_SECONDS` after its counter of bytes
grew.  This adds nothing to the path of a command.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable

from target.scsi.logical_unit import LogicalUnit

RECENT_SECONDS = 60.0
"""Longer than the pauses of a copy that is slow on purpose."""


class Readers:
    """The samples of the counters.  Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: weakref.WeakKeyDictionary[LogicalUnit, tuple[int, float]] = weakref.WeakKeyDictionary()

    def look(self, units: Iterable[LogicalUnit]) -> None:
        """Note which units were read since the last look."""
        now = self._clock()
        for unit in units:
            count = unit.counters.bytes_read
            if count and (unit not in self._samples or self._samples[unit][0] != count):
                self._samples[unit] = (count, now)

    def reads(self, unit: LogicalUnit) -> bool:
        """Return whether an initiator reads the unit."""
        self.look((unit,))
        _, at = self._samples.get(unit, (0, -RECENT_SECONDS))
        return self._clock() - at < RECENT_SECONDS
