# SPDX-License-Identifier: Apache-2.0
"""Refuses writes to a volume while nobody can know which manifest the next start would find.

A change of a volume is its manifest.  When storing it fails the old one is stored again, for the new one may be on the disk
all the same.  When that fails, too, the next start may find either, and what was written meanwhile could be lost:

| what could not be recorded, nor taken back | what the next start could make of it                                     |
| ------------------------------------------ | ------------------------------------------------------------------------ |
| a rollback                                 | roll back what was written since                                         |
| a new snapshot, its files still there      | show what was written since as if it had been there before               |

So nothing is written since: from within the barrier in which it failed on, every write is refused (`StateInDoubt`), and tries
first, now and then, to store the manifest.  Whoever else stores one ends it, too, and so does a restart.  (With all other
changes - deleting, growing, labels - either manifest is true to all that is written later.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lun_backends import block_device, copy_on_write
from lun_backends.volumes import policy

PATIENCE = 1.0
"""Seconds between two attempts to store the manifest."""


class Doubt:
    """Of one volume; `begin` and `end` are called by the holder of `changing` only."""

    def __init__(
        self,
        device: copy_on_write.CopyOnWrite,
        changing: threading.Lock,
        store: Callable[[], None],
        clean_up: Callable[[], None],
        listener: policy.Listener,
    ) -> None:
        """`store` stores the manifest in force, or raises OSError; `clean_up` then removes what is left of the change that
        failed.  Both are called under `changing`.
        """
        self.reason = ""
        self._device = device
        self._changing = changing
        self._store = store
        self._clean_up = clean_up
        self._listener = listener
        self._next = 0.0

    def begin(self, reason: str) -> None:
        """Refuse writes from now on; only while they are held."""
        self.reason = reason
        self._next = time.monotonic() + PATIENCE
        self._device.bar(self._refuse)
        self._listener(policy.StateUnknown(reason))

    def end(self) -> None:
        """A manifest is durable: let writes go on."""
        if self.reason:
            self._clean_up()
            self.reason = ""
            self._device.bar(None)

    def resolve(self) -> None:
        """Store the manifest again, if there is a doubt.  Only under `changing`.  Raises OSError."""
        if self.reason:
            self._store()
            self.end()

    def _refuse(self) -> None:
        """Called by every write.  Raises StateInDoubt, unless the manifest could be stored at last."""
        if self._changing.acquire(blocking=False):  # whoever has it may be waiting for this write
            try:
                if self.reason and time.monotonic() >= self._next:
                    self._next = time.monotonic() + PATIENCE
                    self.resolve()
            except OSError as error:
                raise block_device.StateInDoubt(self.reason) from error
            finally:
                self._changing.release()
        if reason := self.reason:
            raise block_device.StateInDoubt(reason)
