# SPDX-License-Identifier: Apache-2.0
"""The overlay that gives a volume a snapshot's content while its primary is still being rolled back.

The volume goes back at one instant, when the manifest that names the snapshot (`restoring`) is durable.  Before that
instant, it is unchanged.  From then on it has the snapshot's content, although no grain is copied yet:

| grain       | where it reads from  | a write to it                      | a crash                                            |
| ----------- | -------------------- | ---------------------------------- | -------------------------------------------------- |
| pending     | the snapshot's view  | settles it first                   | it is still pending, and settled again              |
| not pending | the primary          | like any other                     | -                                                  |

To settle a grain is to write through copy-on-write, so that newer snapshots stay true (rule 8, lun_backends/README.md).
The overlay preserves the grain in the newest snapshot, writes the view's content to the primary and makes that durable.
Then it takes the grain out of the pending ones, durably.  Only then may an initiator write to it.  So a grain that is
pending after a crash never has newer data than the snapshot's.  Grains that have the right content already are only
taken out.

It is right because:

* At first, the grains that this snapshot or any newer one has are pending: all grains that changed since.  Blocks by
  which the volume has grown since are pending, too, and read as zeroes.
* During a rollback no snapshot is taken, deleted or invalidated, and the volume is not resized.  So the newest snapshot
  is the same throughout, and the view has every snapshot that it needs.
* All of this is durable whatever the volume's `durability` is.  During a rollback the volume is made of its snapshots,
  so they must be as good as the primary.
* Only the thread that settles a pending grain writes to it.  One thread settles at a time, for all that wait.  It needs
  no gate, so the holder of the gate may settle.
* Data is compared with its checksums just before it is settled.  Damaged data is never settled, unless the
  administrator accepted it.
* A read may see that a grain is pending, and the grain may be settled and overwritten before the read asks the view.
  The view still has the snapshot's content (rule 3), and the read began before that write ended.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from lun_backends import block_device, tracking
from lun_backends.block_device import BlockDevice, Buffers, Extent, ExtentKind
from lun_backends.damage import Damage, OnDamage
from lun_backends.files import os_error
from lun_backends.volumes import pending_grains

ROUND = 8 << 20
"""Bytes settled with one commit."""
_STEP = 1 << 20  # bytes compared at a time


class Moment:
    """The content that the volume is to have: a snapshot's view, followed by zeroes up to `size`."""

    def __init__(self, view: BlockDevice, size: int) -> None:
        self._view = view
        self._size = size

    def readv(self, offset: int, buffers: Buffers) -> None:
        length = block_device.total_length(buffers)
        inside = self._inside(offset, length)
        if inside:
            self._view.readv(offset, block_device.slice_buffers(buffers, 0, inside))
        _zero(block_device.slice_buffers(buffers, inside, length - inside))

    def read_checked(self, offset: int, buffers: Buffers, on_damage: OnDamage | None) -> None:
        """Read as `BlockDevice.read_checked`."""
        length = block_device.total_length(buffers)
        inside = self._inside(offset, length)
        if inside:
            self._view.read_checked(offset, block_device.slice_buffers(buffers, 0, inside), on_damage)
        _zero(block_device.slice_buffers(buffers, inside, length - inside))

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        inside = self._inside(offset, length)
        if inside and not self._view.read_now(offset, inside, block_device.slice_buffers(buffers, 0, inside)):
            return False
        _zero(block_device.slice_buffers(buffers, inside, length - inside))
        return True

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        inside = self._inside(offset, length)
        if inside:
            yield from self._view.extents(offset, inside)
        if inside < length:
            yield Extent(offset + inside, length - inside, ExtentKind.HOLE)

    def _inside(self, offset: int, length: int) -> int:
        """Return how many bytes of the range the view has."""
        return max(0, min(length, self._view.size - offset))


def _accept(_damage: Damage) -> None:
    """Take damaged blocks as they are: `rollback.begin` reported them."""


def _zero(buffers: Buffers) -> None:
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))


def to_settle(
    changed: tracking.BitMap, view: BlockDevice, newest: BlockDevice, primary: BlockDevice
) -> tracking.BitMap:
    """Return the grains to settle.

    They are the grains in `changed` that the newest snapshot covers, plus all grains, except holes, by which the volume
    has grown since the snapshot of `view`.
    """
    pending: tracking.BitMap = changed.copy()
    pending.remove_range(tracking.count(newest.size), 1 << 62)
    if primary.size > view.size:
        for extent in primary.extents(view.size, primary.size - view.size):
            if extent.kind is not ExtentKind.HOLE:
                end = extent.offset + extent.length
                pending.add_range(extent.offset >> tracking.SHIFT, tracking.count(end))
    return pending


def steps(ranges: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) ranges in parts of at most `most` bytes."""
    for begin, length in ranges:
        for offset in range(begin, begin + length, most):
            yield offset, min(most, begin + length - offset)


class RollbackOverlay:
    """A rollback under way: the overlay over a volume's primary, which also brings the primary to its content."""

    def __init__(
        self,
        primary: BlockDevice,
        view: BlockDevice,
        record: pending_grains.PendingGrains,
        preserve: Callable[[Sequence[tuple[int, int]]], None],
    ) -> None:
        """Take over an open record.  `preserve` makes the newest snapshot preserve (offset, length) ranges."""
        self.record = record
        self.pending = record.grains
        self.total = len(record.grains)
        self.accept_damage = False
        """Whether damaged blocks of the snapshot are taken as they are; if not, reading and settling them fails."""
        self._primary = primary
        self._moment = Moment(view, primary.size)
        self._preserve = preserve
        self._settling = threading.Lock()
        self._wanted = tracking.BitMap()
        self._wanting = threading.Lock()
        self._round = ROUND >> tracking.SHIFT
        self._buffer = memoryview(mmap.mmap(-1, ROUND))  # page-aligned, for O_DIRECT
        self._there = memoryview(mmap.mmap(-1, _STEP))

    def readv(self, offset: int, buffers: Buffers) -> None:
        """See the contract in `block_device`."""
        length = block_device.total_length(buffers)
        if offset + length > self._primary.size or self._is_settled(offset, length):
            self._primary.readv(offset, buffers)
            return
        try:
            for start, count, waiting in self._runs(offset, length):
                part = block_device.slice_buffers(buffers, start - offset, count)
                if not waiting:
                    self._primary.readv(start, part)
                elif self.accept_damage:
                    self._moment.read_checked(start, part, _accept)
                else:
                    self._moment.readv(start, part)
        except block_device.DeviceClosed:
            # The rollback ended meanwhile, and the snapshot was deleted: the primary has everything now.
            if not self._is_settled(offset, length):
                raise
            self._primary.readv(offset, buffers)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        """See the contract in `block_device`."""
        if offset + length > self._primary.size or self._is_settled(offset, length):
            return self._primary.read_now(offset, length, buffers)
        try:
            for start, count, waiting in self._runs(offset, length):
                source = self._moment if waiting else self._primary
                if not source.read_now(start, count, block_device.slice_buffers(buffers, start - offset, count)):
                    return False
        except block_device.DeviceClosed:
            return False  # `readv` tells whether the snapshot was deleted after the end of the rollback
        return True

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See the contract in `block_device`."""
        if offset + length > self._primary.size or self._is_settled(offset, length):
            yield from self._primary.extents(offset, length)
            return
        for start, count, waiting in self._runs(offset, length):
            at, end = start, start + count
            try:
                for extent in (self._moment if waiting else self._primary).extents(start, count):
                    yield extent
                    at = extent.offset + extent.length
            except block_device.DeviceClosed:
                if not self._is_settled(at, end - at):
                    raise
                yield from self._primary.extents(at, end - at)

    def settle(self, spans: Sequence[tuple[int, int]]) -> None:
        """Return when no grain of the (first, last) `spans` is pending any longer.

        Raise PreserveFailed, and the errors of reading and writing.
        """
        for first, last in spans:
            at = first
            while (grain := self._next(at)) is not None and grain <= last:
                # A round at a time, so that a huge write does not make all others wait for all of it.
                batch = [pending for pending in self._first(grain, self._round) if pending <= last]
                with self._wanting:
                    self._wanted.update(batch)
                with self._settling:
                    self._settle_wanted()
                at = grain  # still pending if another thread tried for us and failed

    def settle_all(
        self, progress: Callable[[int, int], None] | None = None, cancelled: Callable[[], bool] | None = None
    ) -> bool:
        """Settle all grains.  Return False if `cancelled` stopped it.  `progress` gets (bytes settled, bytes in all)."""
        while (grain := self._next(0)) is not None:
            if cancelled is not None and cancelled():
                return False
            batch = self._first(grain, self._round)
            self.settle([(batch[0], batch[-1])])
            if progress is not None:
                progress((self.total - len(self.pending)) << tracking.SHIFT, self.total << tracking.SHIFT)
        return True

    def _is_settled(self, offset: int, length: int) -> bool:
        return not self.pending.range_cardinality(offset >> tracking.SHIFT, tracking.count(offset + length))

    def _next(self, at: int) -> int | None:
        """Return the first pending grain from `at` on."""
        with self._wanting:  # `pending` must not change under an iterator
            return next(self.pending.iter_equal_or_larger(at), None)

    def _first(self, at: int, count: int) -> list[int]:
        """Return up to `count` pending grains from `at` on; at least `at` itself, which may have been settled meanwhile."""
        with self._wanting:
            return list(itertools.islice(self.pending.iter_equal_or_larger(at), count)) or [at]

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, whether pending) for the parts of a range."""
        end = offset + length
        waiting = tracking.BitMap()
        waiting.add_range(offset >> tracking.SHIFT, tracking.count(end))
        waiting &= self.pending
        for start, count in tracking.bytes_of(waiting, end):
            begin, stop = max(offset, start), start + count
            if begin > offset:
                yield offset, begin - offset, False
            yield begin, stop - begin, True
            offset = stop
        if offset < end:
            yield offset, end - offset, False

    def _settle_wanted(self) -> None:
        """Settle the grains that any thread waits for, a round at a time."""
        while True:
            with self._wanting:
                self._wanted.intersection_update(self.pending)
                batch = list(itertools.islice(self._wanted, self._round))
                self._wanted.difference_update(tracking.BitMap(batch))
            if not batch:
                return
            self._settle_round(batch)

    def _settle_round(self, grains: list[int]) -> None:
        """Bring the content of some grains to the primary, durably.  One thread at a time does this."""
        changed: list[tuple[int, memoryview]] = []
        at = 0
        places = tracking.bytes_of(tracking.BitMap(grains), self._primary.size)
        for offset, length in steps(places, _STEP):
            piece, there = self._buffer[at : at + length], self._there[:length]
            at += length
            self._moment.read_checked(offset, [piece], _accept if self.accept_damage else None)
            self._primary.readv(offset, [there])
            changed += _differing(offset, piece, there)
        if changed:
            self._preserve([(offset, len(piece)) for offset, piece in changed])
            for offset, piece in changed:
                self._primary.writev(offset, [piece])
            self._primary.flush()
        with self._wanting:
            try:
                self.record.remove(grains)
            except OSError as error:
                lba = (min(grains) << tracking.SHIFT) // self._primary.block_size
                raise block_device.MediumError(lba, True, os_error.reason(error)) from error


def _differing(offset: int, piece: memoryview, there: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the parts of `piece`, whole grains from byte `offset` on, that `there` has not, as (offset, part)."""
    wanted, found = bytes(piece), bytes(there)
    if wanted == found:
        return
    begin = end = 0
    for start in range(0, len(wanted), tracking.GRAIN):
        stop = min(start + tracking.GRAIN, len(wanted))
        if wanted[start:stop] == found[start:stop]:
            continue
        if start != end:
            if end > begin:
                yield offset + begin, piece[begin:end]
            begin = start
        end = stop
    yield offset + begin, piece[begin:end]
