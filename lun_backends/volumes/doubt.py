# SPDX-License-Identifier: Apache-2.0
"""The refusal of writes to a volume while it is unknown which manifest the next start would read.

A change of a volume is a new manifest.  If it cannot be stored, the old manifest is stored again, because the new one
may be on the disk all the same.  If that fails, too, the next start may read either, and could lose data written
meanwhile:

| change neither recorded nor taken back     | harm that the next start could do                                        |
| ------------------------------------------ | ------------------------------------------------------------------------ |
| a rollback                                 | roll back data that was written later                                    |
| a new snapshot whose files still exist     | show data that was written later as if it had been there before          |

So no data is written meanwhile.  From the barrier in which the change failed, every write is refused (`StateInDoubt`).
About once a second, a write first tries to store the manifest.  Any other change that stores a manifest ends the doubt,
too, and so does a restart.  (After all other changes - deleting, growing, labels - either manifest fits all data that
is written later.)
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
    """The doubt about a volume's manifest on disk.  Call `begin` and `end` only while holding `changing`."""

    def __init__(
        self,
        device: copy_on_write.CopyOnWrite,
        changing: threading.Lock,
        store: Callable[[], None],
        clean_up: Callable[[], None],
        listener: policy.Listener,
    ) -> None:
        """Start without a doubt.

        `store` stores the manifest in force, or raises OSError.  `clean_up` then removes what the failed change left.
        Both are called under `changing`.
        """
        self.reason = ""
        self._device = device
        self._changing = changing
        self._store = store
        self._clean_up = clean_up
        self._listener = listener
        self._next = 0.0

    def begin(self, reason: str) -> None:
        """Refuse writes from now on.  Call it only while writes are held."""
        self.reason = reason
        self._next = time.monotonic() + PATIENCE
        self._device.bar(self._refuse)
        self._listener(policy.StateUnknown(reason))

    def end(self) -> None:
        """Let writes go on, because a manifest is durable now."""
        if self.reason:
            self._clean_up()
            self.reason = ""
            self._device.bar(None)

    def resolve(self) -> None:
        """Store the manifest again, if there is a doubt.  Call it only under `changing`.  Raises OSError."""
        if self.reason:
            self._store()
            self.end()

    def _refuse(self) -> None:
        """Raise StateInDoubt, unless the manifest could be stored at last.  Every write calls this."""
        if self._changing.acquire(blocking=False):  # the lock's holder may be waiting for this write
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
