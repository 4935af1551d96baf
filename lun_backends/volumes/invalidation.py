# SPDX-License-Identifier: Apache-2.0
"""The invalidation of snapshots, which the policy demands when a pre-image cannot be preserved; see `policy`.

A snapshot is marked invalid in the superblock of its map, in place, which needs no space.  If the map cannot be
written, a file `<uuid>.invalid` beside it marks the snapshot and holds the reason.  If neither can be made durable, the
snapshot stays valid and the write is refused: no snapshot may look good and not be good.

A snapshot with files that cannot be opened is treated likewise.  If they are damaged or missing, the snapshot
is lost and is marked invalid.  If they are only unreachable (a read-only disk, a permission), they may be good again at
the next start.  Until then the policy decides about writes that would need a copy in them.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from lun_backends import block_device, lost_device, preserving
from lun_backends.files import small_file, storage_io
from lun_backends.preserving import Decision
from lun_backends.volumes import policy
from lun_backends.volumes.snapshot import Snapshot

_PATIENCE = (
    5.0  # seconds for reads of an invalidated snapshot to end; if they take longer, the next start frees the space
)


class Enforcer:
    """The policy's decisions for one volume.  `snapshots` returns all snapshots, oldest first, `path` one's files."""

    def __init__(
        self,
        rules: policy.Policy,
        listener: policy.Listener,
        snapshots: Callable[[], Sequence[Snapshot]],
        path: Callable[[uuid.UUID], Path],
        io: storage_io.StorageIO,
    ) -> None:
        self.rules = rules
        self.listener = listener
        self._snapshots = snapshots
        self._path = path
        self._io = io
        self._lock = threading.Lock()
        self._made_room = float("-inf")  # the last time, by `time.monotonic`

    def copy_failed(
        self, side: preserving.WriteOnceSide, error: block_device.BlockDeviceError, began: float
    ) -> Decision:
        """Decide what to do after a copy into `side` failed with `error`.  `began` is its start by `time.monotonic`."""
        if self.rules.on_error is policy.OnError.FAIL_WRITES:
            self.listener(policy.WriteRefused(error))
            return Decision.REFUSE
        with self._lock:
            if self._made_room > began:
                return Decision.AGAIN
            snapshots = self._snapshots()
            current = next((snapshot for snapshot in snapshots if snapshot.write_once is side), None)
            if current is None:
                return Decision.REFUSE
            # (If this one and all older ones are invalid on disk, another thread invalidated them a moment ago.)
            left = [other for other in snapshots[: snapshots.index(current) + 1] if not other.invalid_on_disk]
            older = [other for other in left if other is not current and not other.deleting and not other.is_invalid]
            makes_room = isinstance(error, block_device.SpaceExhausted) and bool(older)
            if any(victim.hold for victim in ([older[0]] if makes_room else left)):
                self.listener(policy.WriteRefused(error))
                return Decision.REFUSE  # a held snapshot outlives the policy
            try:
                if makes_room:
                    self.invalidate(older[0], f"it was invalidated to make room: {error}")
                    self._make_room(older[0])
                    self._made_room = time.monotonic()
                    return Decision.AGAIN
                # Mark those first that are the hardest to mark.  If that fails, the others are not invalidated in vain.
                for victim in sorted(left, key=lambda other: not other.is_invalid):
                    self.invalidate(victim, f"it was invalidated because a pre-image could not be preserved: {error}")
                if isinstance(error, block_device.SpaceExhausted):
                    for victim in left:
                        self._make_room(victim)  # a sparse primary on the same file system may need the space now
            except (block_device.BlockDeviceError, OSError):
                self.listener(policy.WriteRefused(error))
                return Decision.REFUSE
            return Decision.INVALIDATED

    def invalidate(self, snapshot: Snapshot, reason: str) -> None:
        """Mark a snapshot invalid, durably.  Raises MediumError, OSError."""
        device = snapshot.write_once
        if isinstance(device, lost_device.LostDevice):
            _mark(self._path(snapshot.uuid), device.reason, self._io)
            device.recorded = True
        else:
            try:
                device.invalidate(reason)
            except block_device.MediumError:
                _mark(self._path(snapshot.uuid), device.reason or reason, self._io)
                device.recorded = True
        self.listener(policy.SnapshotInvalidated(snapshot.name, snapshot.invalid_reason))

    @staticmethod
    def _make_room(snapshot: Snapshot) -> None:
        if not isinstance(snapshot.write_once, lost_device.LostDevice):
            with contextlib.suppress(
                block_device.BlockDeviceError
            ):  # the next failed copy then invalidates the next one
                snapshot.write_once.discard(_PATIENCE)


def mark_path(path: Path) -> Path:
    """Return the file that marks the snapshot with the files `path` as invalid."""
    return path.with_name(path.name + ".invalid")


def marked(path: Path) -> str | None:
    """Return why the snapshot with the files `path` is marked invalid; None if it is not marked.  Raises OSError."""
    try:
        return mark_path(path).read_text(encoding="utf-8", errors="replace") or "it was invalidated"
    except FileNotFoundError:
        return None


def mark(path: Path, reason: str, io: storage_io.StorageIO) -> bool:
    """Mark the snapshot with the files `path` invalid.  Return whether that is durable."""
    try:
        _mark(path, reason, io)
    except OSError:
        return False
    return True


def unmark(path: Path, io: storage_io.StorageIO) -> None:
    """Remove the mark, with the rest of the snapshot.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        io.unlink(mark_path(path))


def _mark(path: Path, reason: str, io: storage_io.StorageIO) -> None:
    small_file.replace(mark_path(path), reason.encode(), io=io)
