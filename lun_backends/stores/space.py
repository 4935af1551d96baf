# SPDX-License-Identifier: Apache-2.0
"""The space that a volume's snapshots have taken for pre-images, and may take.

Every chunk that a store hands out counts, even if the file system has not allocated its space yet.  A deletion only
moves chunks from one snapshot to another, and frees as much as it takes.  So the limit does not stop it: see
`unlimited`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Space:
    """A count of the bytes taken, of `limit` bytes (None: no limit).

    Whenever the count passes `warn_percent` of the limit upwards, `on_warning` is called with (used, limit), on the
    thread that took the bytes.  That thread holds locks, so `on_warning` must return at once.
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
        """Whether the limit is reached."""
        limit = self.limit  # another thread may change it
        return limit is not None and self.used >= limit

    def take(self, amount: int) -> bool:
        """Count `amount` more bytes and return True; return False, and count none, if that would pass the limit."""
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
        """Set other bounds from now on; the bytes taken stay."""
        with self._lock:
            self.limit, self.warn_percent = limit, warn_percent

    def add(self, amount: int) -> None:
        """Count bytes that are taken already, or freed (negative)."""
        with self._lock:
            self.used += amount

    @contextlib.contextmanager
    def unlimited(self) -> Iterator[None]:
        """Let this thread take bytes beyond the limit while the context is open."""
        self._free_of_limits.now = True
        try:
            yield
        finally:
            self._free_of_limits.now = False

    def _over(self, used: int) -> bool:
        limit = self.limit
        return limit is not None and used * 100 >= limit * self.warn_percent
