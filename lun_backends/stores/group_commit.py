# SPDX-License-Identifier: Apache-2.0
"""Group commit: many threads wait for stable storage, one of them makes it so for all that came meanwhile.

A thread that wants its batch committed queues it.  If nobody is committing it leads: it takes the whole queue, commits it
without the lock, and wakes everyone.  Threads that come while a leader works queue up, and one of them leads the next group.
So the longer a sync takes the more batches share the next one, and a lone writer never waits for company.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Batch(Protocol):
    """What is committed: `done` once it was, `error` if that failed."""

    done: bool
    error: Exception | None


BatchT = TypeVar("BatchT", bound=Batch)


class GroupCommit(Generic[BatchT]):
    """Runs `commit(group)` for groups of batches, one group at a time, and then, under the lock, `ended(group)`.

    `commit` sets the `error` of batches that fail; should it raise, every batch of the group gets what `failed` makes of that error.
    """

    def __init__(
        self,
        changed: threading.Condition,
        commit: Callable[[list[BatchT]], None],
        ended: Callable[[list[BatchT]], None],
        failed: Callable[[BaseException, BatchT], Exception],
    ) -> None:
        self._changed = changed
        self._commit = commit
        self._ended = ended
        self._failed = failed
        self._queue: list[BatchT] = []
        self._leading = False

    def run(self, batch: BatchT) -> None:
        """Return when `batch` is committed, or raise its error."""
        changed = self._changed
        with changed:
            self._queue.append(batch)
            while self._leading and not batch.done:
                changed.wait()
            group: list[BatchT] = []
            if not batch.done:
                self._leading = True
                group, self._queue = self._queue, []
        if group:
            self._lead(group)
        if batch.error is not None:
            raise batch.error

    def _lead(self, group: list[BatchT]) -> None:
        try:
            self._commit(group)
        except BaseException as error:
            for batch in group:
                batch.error = batch.error or self._failed(error, batch)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._changed:
                for batch in group:
                    batch.done = True
                self._leading = False
                self._ended(group)
                self._changed.notify_all()
