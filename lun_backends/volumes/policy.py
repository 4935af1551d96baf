# SPDX-License-Identifier: Apache-2.0
"""The policy for a snapshot that cannot be kept (rule 9, lun_backends/README.md), and the events that report it.

| `on_error`      | the copy of a pre-image fails                                                                    |
| --------------- | ------------------------------------------------------------------------------------------------ |
| `fail-writes`   | the write that needed it is refused; every snapshot stays exact                                  |
| `drop-snapshot` | the write is done, after snapshots were marked invalid on disk: if there was no space left, the  |
|                 | oldest, whose space is then free; otherwise, or if that is not enough, all                       |

All are marked because snapshots share their pre-images: a block that the newest snapshot cannot preserve is lost to
each older one, too.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from lun_backends import block_device


class OnError(enum.Enum):
    """The reaction to old data that cannot be kept."""

    FAIL_WRITES = "fail-writes"
    DROP_SNAPSHOT = "drop-snapshot"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules by which a volume keeps its snapshots."""

    on_error: OnError = OnError.FAIL_WRITES
    limit: int | None = None  # bytes of pre-images in all snapshots together
    warn_percent: int = 80  # of the limit
    copy_timeout: float | None = None  # seconds after which a copy counts as failed
    max_snapshots: int | None = None
    verify_reads: bool = True  # compare what views and write-once LUNs read with its checksums


DEFAULT = Policy()


@dataclass(frozen=True, slots=True)
class SpaceLow:
    """The snapshots now take `used` bytes, which is near their limit."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class SnapshotInvalidated:
    """Snapshot `name` was invalidated because of `reason`."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """A write was refused because its pre-image could not be preserved."""

    error: block_device.BlockDeviceError


@dataclass(frozen=True, slots=True)
class StateUnknown:
    """Writes are refused until the manifest can be stored, see `doubt`; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class PrimaryDiffers:
    """The primary may have changed while the volume was closed; the snapshots called `names` are doubtful, see `identity`."""

    names: tuple[str, ...]
    reason: str


Event = PrimaryDiffers | SpaceLow | SnapshotInvalidated | WriteRefused | StateUnknown
Listener = Callable[[Event], None]
"""Called on the thread of a write, so it has to return at once."""


def ignore(_event: Event) -> None:
    """Ignore every event."""
