# SPDX-License-Identifier: Apache-2.0
"""A limit for the bytes that a job reads or writes each second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from lun_backends.backups.pieces import ExportPiece
from target.service import jobs

_BURST = 0.1  # seconds of the limit that may pass at once
_LONGEST_SLEEP = 0.1  # seconds between looks for a request to stop


class Throttle:
    """A token bucket: `spend` returns when so many bytes may pass.  `limit` is in bytes a second; None is no limit."""

    def __init__(
        self,
        limit: int | None,
        cancelled: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit = limit
        self._cancelled = cancelled
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    def spend(self, count: int) -> None:
        """Wait until `count` bytes may pass.  Raises jobs.Cancelled."""
        if self._limit is None:
            return
        self._free_at = max(self._free_at, self._clock() - _BURST) + count / self._limit
        while (wait := self._free_at - self._clock()) > 0:
            if self._cancelled():
                raise jobs.Cancelled
            self._sleep(min(wait, _LONGEST_SLEEP))


def slowed(content: Iterable[ExportPiece], throttle: Throttle) -> Iterator[ExportPiece]:
    """Yield the content, its data no quicker than the throttle lets it pass."""
    for piece in content:
        if piece.data is not None:
            throttle.spend(piece.length)
        yield piece
