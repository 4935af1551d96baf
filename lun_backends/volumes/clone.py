# SPDX-License-Identifier: Apache-2.0
"""A clone of an open volume as its users see it: name, snapshot, device.  `clones` makes and deletes it."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass

from lun_backends.volumes import clone_device
from lun_backends.volumes.snapshot import Snapshot


@dataclass(eq=False)
class Clone:
    """A clone of an open volume.  `device` is None if it cannot be opened; `reason` says why."""

    name: str
    uuid: uuid.UUID
    snapshot: Snapshot
    made_at: datetime.datetime
    limit: int | None
    device: clone_device.CloneDevice | None
    reason: str = ""

    @property
    def trouble(self) -> str:
        """Return why it cannot be used as it should be; empty if it can."""
        if self.device is not None and self.device.broken:
            return f"a flush failed: {self.device.broken}"
        return self.reason or self.snapshot.unreadable
