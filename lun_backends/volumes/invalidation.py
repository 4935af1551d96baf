# SPDX-License-Identifier: Apache-2.0
"""Carries out the policy when a pre-image cannot be preserved; see `policy`.

A snapshot is given up by marking it invalid in its map's superblock, in place: that needs no space.  Where the map cannot
be written, a file `<uuid>.invalid` beside it, with the reason in it, says the same.  Where neither can be made durable the
snapshot is not given up and the write is refused: nothing may look good and not be so.

The same goes for a snapshot whose files cannot be opened.  If they are damaged or missing it is lost and marked so.  If they
only cannot be reached (a read-only disk, a permission) they may be good again at the next start: until then writes that
would need a copy in them are what the policy makes of them.
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
from lun_backends.volumes import policy, snapshot

_PATIENCE = 5.0  # seconds for reads of a dropped snapshot to end; without it the space comes back at the next start


class Enforcer:
    """Decides for one volume.  `snapshots` gives those that there are, oldest first; `path` where one's files are."""

    def __init__(
        self,
        rules: policy.Policy,
        listener: policy.Listener,
        snapshots: Callable[[], Sequence[snapshot.Snapshot]],
        path: Callable[[uuid.UUID], Path],
        io: storage_io.StorageIO,
    ) -> None:
        self.rules = rules
        self.listener = listener
        self._snapshots = snapshots
        self._path = path
        self._io = io
        self._lock = threading.Lock()
        self._made_room = float("-inf")  # when, by `time.monotonic`

    def copy_failed(
        self, side: preserving.WriteOnceSide, error: block_device.BlockDeviceError, began: float
    ) -> Decision:
        """A copy into `side`, which began at `time.monotonic()` `began`, met `error`: what now?"""
        if self.rules.on_error is policy.OnError.FAIL_WRITES:
            self.listener(policy.WriteRefused(error))
            return Decision.REFUSE
        with self._lock:
            if self._made_room > began:
                return Decision.AGAIN
            every = self._snapshots()
            current = next((each for each in every if each.write_once is side), None)
            if current is None:
                return Decision.REFUSE
            # (If it is gone, and all that need it, then somebody else gave them up a moment ago.)
            there = [each for each in every[: every.index(current) + 1] if not each.invalid_on_disk]
            older = [each for each in there if each is not current and not each.deleting and not each.is_invalid]
            try:
                if isinstance(error, block_device.SpaceExhausted) and older:
                    self.invalidate(older[0], f"it was invalidated to make room: {error}")
                    self._make_room(older[0])
                    self._made_room = time.monotonic()
                    return Decision.AGAIN
                # Those first that are the hardest to mark: if that fails, the others were not given up for nothing.
                for each in sorted(there, key=lambda each: not each.is_invalid):
                    self.invalidate(each, f"it was invalidated because a pre-image could not be preserved: {error}")
                if isinstance(error, block_device.SpaceExhausted):
                    for each in there:
                        self._make_room(each)  # a sparse primary beside it may need that now
            except (block_device.BlockDeviceError, OSError):
                self.listener(policy.WriteRefused(error))
                return Decision.REFUSE
            return Decision.GIVE_UP

    def invalidate(self, dropped: snapshot.Snapshot, reason: str) -> None:
        """Mark it invalid, durably.  Raises MediumError, OSError."""
        device = dropped.write_once
        if isinstance(device, lost_device.LostDevice):
            _mark(self._path(dropped.uuid), device.reason, self._io)
            device.recorded = True
        else:
            try:
                device.invalidate(reason)
            except block_device.MediumError:
                _mark(self._path(dropped.uuid), device.reason or reason, self._io)
                device.recorded = True
        self.listener(policy.SnapshotInvalidated(dropped.name, dropped.invalid_reason))

    @staticmethod
    def _make_room(dropped: snapshot.Snapshot) -> None:
        if not isinstance(dropped.write_once, lost_device.LostDevice):
            with contextlib.suppress(block_device.BlockDeviceError):  # then the next turn drops the next one
                dropped.write_once.discard(_PATIENCE)


def mark_path(path: Path) -> Path:
    """The file that says that the snapshot with the files `path` is invalid, if it exists."""
    return path.with_name(path.name + ".invalid")


def marked(path: Path) -> str | None:
    """Why the snapshot with the files `path` is marked invalid; None if it is not.  Raises OSError."""
    try:
        return mark_path(path).read_text(encoding="utf-8", errors="replace") or "it was invalidated"
    except FileNotFoundError:
        return None


def mark(path: Path, reason: str, io: storage_io.StorageIO) -> bool:
    """Mark the snapshot with the files `path` invalid; gives whether that is durable."""
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
