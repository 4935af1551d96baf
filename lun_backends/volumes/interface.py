# SPDX-License-Identifier: Apache-2.0
"""A volume and its snapshots as those who serve, show and export them see them, wherever the snapshots are kept.

`volume.Volume` keeps its snapshots on this host.  Those of a shared volume are in write-once LUNs of another host.  The
errors are the same, and so is what each method promises; `volume` and `snapshot` have the details.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from uuid import UUID

import pyroaring

from lun_backends.block_device import BlockDevice
from lun_backends.damage import OnDamage
from lun_backends.stores import contract
from lun_backends.tracking import BitMap
from lun_backends.volumes import errors, manifest, outside, policy
from lun_backends.volumes.manifest import Consistency


class Snapshot(Protocol):
    """A snapshot of an open volume."""

    @property
    def name(self) -> str: ...

    @property
    def uuid(self) -> UUID: ...

    @property
    def taken_at(self) -> datetime.datetime:
        """The time by the clock of the host that took it."""

    @property
    def write_once(self) -> BlockDevice:
        """Its pre-images; blank where it has none."""

    @property
    def view(self) -> BlockDevice:
        """The volume as it was then."""

    @property
    def deleting(self) -> bool:
        """Whether its deletion has begun."""

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def scheduled(self) -> bool:
        """Whether a schedule took it, and may delete it."""

    @property
    def hold(self) -> str:
        """Why nobody may delete it; empty if it is not held."""

    @property
    def expires(self) -> datetime.datetime | None:
        """From when on a schedule may delete it; None means never."""

    @property
    def consistency(self) -> Consistency:
        """Who was quiet when it was taken."""

    @property
    def doubt(self) -> str:
        """Why it may not be true; empty if nothing speaks against it."""

    @property
    def held_seconds(self) -> float | None:
        """How long this host's writes were held to take it, if this process took it."""

    @property
    def size(self) -> int:
        """Bytes of the volume at that moment."""

    @property
    def state(self) -> enum.Enum: ...

    @property
    def is_invalid(self) -> bool:
        """Whether it is lost, or cannot be reached at present."""

    @property
    def invalid_reason(self) -> str:
        """Why it is invalid; empty if it is not."""

    @property
    def invalid_on_disk(self) -> bool:
        """Whether it is invalid for good."""

    @property
    def reason(self) -> str:
        """The reason of its state."""

    @property
    def unreadable(self) -> str:
        """Why its view cannot be read; empty if it can."""

    @property
    def damaged_chunks(self) -> int:
        """How many of its chunks were found damaged since it was opened."""

    @property
    def used_bytes(self) -> int:
        """How many bytes it takes on disk."""

    @property
    def preserved_bytes(self) -> int:
        """How many bytes of the volume are preserved in it."""

    def verify(self, passed_over: pyroaring.BitMap) -> Iterator[contract.ChunkReport]:
        """Read all its pre-images, except the chunks `passed_over`, and compare them with their checksums."""

    def check_headers(self) -> list[str]:
        """Return the faults of headers that do no harm yet, a phrase each."""


class Counters(Protocol):
    """The counts of copy-on-write since the volume was opened."""

    copies: int
    futile_copies: int
    copied_bytes: int
    commits: int
    failures: int
    waits: int


class Space(Protocol):
    """The space of all pre-images of a volume, in bytes."""

    @property
    def used(self) -> int: ...

    @property
    def limit(self) -> int | None: ...

    @property
    def low(self) -> bool:
        """Whether the warning threshold is passed."""


class Volume(Protocol):
    """An open volume."""

    name: str
    uuid: UUID
    chunk_size: int
    directory: Path
    """The directory for what this host keeps of the volume."""

    @property
    def device(self) -> BlockDevice:
        """The volume as initiators use it: copy-on-write in front of the primary."""

    @property
    def counters(self) -> Counters: ...

    @property
    def space(self) -> Space: ...

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        """The snapshots, oldest first."""

    def refresh(self) -> None:
        """Learn what other hosts did to the snapshots."""

    @property
    def doubt(self) -> str: ...

    @property
    def in_doubt(self) -> str:
        """Why writes are refused; empty if they are not."""

    @property
    def rolling_back_to(self) -> Snapshot | None: ...

    @property
    def rollback_stopped(self) -> errors.RollbackStalled | None: ...

    @property
    def unsettled(self) -> BitMap: ...

    def rollback_may_go_on(self) -> bool: ...

    def snapshot(self, name: str, identity: UUID | None = None) -> Snapshot: ...

    def written_outside(self, name: str) -> list[outside.Written]: ...

    def changed_map(self, name: str, buckets: int) -> list[float]: ...

    def create_snapshot(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        scheduled: bool = False,
        notes: manifest.Notes = manifest.NOTHING,
    ) -> Snapshot: ...

    def label_snapshot(self, name: str, changes: Mapping[str, str | None]) -> Snapshot: ...

    def hold_snapshot(self, name: str, reason: str) -> Snapshot: ...

    def expire_snapshot(self, name: str, moment: datetime.datetime | None) -> Snapshot: ...

    def rename_snapshot(self, name: str, new: str) -> Snapshot: ...

    def delete_snapshot(
        self,
        name: str,
        identity: UUID | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_damage: OnDamage | None = None,
        accept_loss: bool = False,
    ) -> None: ...

    def resume_deletions(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_damage: OnDamage | None = None,
    ) -> None: ...

    def begin_rollback(
        self,
        name: str,
        identity: UUID | None = None,
        *,
        cancelled: Callable[[], bool] | None = None,
        on_damage: OnDamage | None = None,
        accept_outside: bool = False,
    ) -> None: ...

    def accept_damage(self) -> None: ...

    def continue_rollback(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> bool: ...

    def resize(self, size: int) -> None: ...

    def accept_primary(self) -> list[str]: ...

    def keep_by(self, rules: policy.Policy) -> None: ...

    def close(self) -> None: ...
