# SPDX-License-Identifier: Apache-2.0
"""How much space a volume's snapshots have taken for pre-images, and may take.

Counted is what stores hand out, a chunk at a time, whether or not the file system has found room for it already.  What
only moves from one snapshot to another (a deletion) frees as much as it takes, so it is let through: see `unlimited`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Space:
    """Bytes taken, of `limit` (None: as many as there are); `on_warning` is called with (used, limit) whenever `warn_percent` of
    it is passed upwards, on the thread that did it, which holds locks: it must return at once.
    """

    def __init__(
        self,
        limit: int | None = None,
        warn_percent: int = 100,
        on_warning: Callable[[int, int], None] = lambda _used, _limit: None,
    ) -> None:
        self.limit = limit
        self.warn_percent = warn_percent
        self.on_warning = on_warning
        self.used = 0
        self._lock = threading.Lock()
        self._free_of_limits = threading.local()

    @property
    def low(self) -> bool:
        """Whether the warning threshold is passed."""
        return self._over(self.used)

    @property
    def full(self) -> bool:
        """Whether nothing more may be taken."""
        limit = self.limit  # which another thread may change
        return limit is not None and self.used >= limit

    def take(self, amount: int) -> bool:
        """Count `amount` more bytes, unless that would pass the limit; gives whether it did not."""
        with self._lock:
            limit = self.limit
            if limit is not None and self.used + amount > limit and not getattr(self._free_of_limits, "now", False):
                return False
            warn = not self.low
            self.used += amount
            warn = warn and self.low
        if warn and limit is not None:
            self.on_warning(self.used, limit)
        return True

    def allow(self, limit: int | None, warn_percent: int) -> None:
        """Have other bounds from now on; what is taken stays."""
        with self._lock:
            self.limit, self.warn_percent = limit, warn_percent

    def add(self, amount: int) -> None:
        """Count bytes that are taken already; negative: bytes given back."""
        with self._lock:
            self.used += amount

    @contextlib.contextmanager
    def unlimited(self) -> Iterator[None]:
        """Let this thread take what it needs."""
        self._free_of_limits.now = True
        try:
            yield
        finally:
            self._free_of_limits.now = False

    def _over(self, used: int) -> bool:
        limit = self.limit
        return limit is not None and used * 100 >= limit * self.warn_percent
