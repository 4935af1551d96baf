# SPDX-License-Identifier: Apache-2.0
"""The overlay that gives a volume a snapshot's content while its primary is still being rolled back.

The volume goes back at one instant, when the manifest that names the snapshot (`restoring`) is durable.  Before that
instant, it is unchanged.  From then on it has the snapshot's content, although no chunk is copied yet:

| chunk       | where it reads from  | a write to it                      | a crash                                            |
| ----------- | -------------------- | ---------------------------------- | -------------------------------------------------- |
| pending     | the snapshot's view  | settles it first                   | it is still pending, and settled again              |
| not pending | the primary          | like any other                     | -                                                  |

To settle a chunk is to write through copy-on-write, so that newer snapshots stay true (rule 8, lun_backends/README.md).
The overlay preserves the chunk in the newest snapshot, writes the view's content to the primary and makes that durable.
Then it takes the chunk out of the pending ones, durably.  Only then may an initiator write to it.  So a chunk that is
pending after a crash never has newer data than the snapshot's.  Chunks that have the right content already are only
taken out.

It is right because:

* At first, the chunks that this snapshot or any newer one has are pending: all chunks that changed since.  Blocks by
  which the volume has grown since are pending, too, and read as zeroes.
* During a rollback no snapshot is taken, deleted or invalidated, and the volume is not resized.  So the newest snapshot
  is the same throughout, and the view has every snapshot that it needs.
* All of this is durable whatever the volume's `durability` is.  During a rollback the volume is made of its snapshots,
  so they must be as good as the primary.
* Only the thread that settles a pending chunk writes to it.  One thread settles at a time, for all that wait.  It needs
  no gate, so the holder of the gate may settle.
* Data is compared with its checksums just before it is settled.  Damaged data is never settled, unless the
  administrator accepted it.
* A read may see that a chunk is pending, and the chunk may be settled and overwritten before the read asks the view.
  The view still has the snapshot's content (rule 3), and the read began before that write ended.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence

from lun_backends import block_device, tracking
from lun_backends.block_device import BlockDevice, Buffers, Extent, ExtentKind
from lun_backends.damage import Damage, OnDamage
from lun_backends.files import os_error
from lun_backends.volumes import pending_chunks

ROUND = 8 << 20
"""Bytes settled with one commit."""


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
    changed: tracking.BitMap, view: BlockDevice, newest: BlockDevice, primary: BlockDevice, chunk_size: int
) -> tracking.BitMap:
    """Return the chunks to settle.

    They are the chunks in `changed` that the newest snapshot covers, plus all chunks, except holes, by which the volume
    has grown since the snapshot of `view`.
    """
    pending: tracking.BitMap = changed.copy()
    pending.remove_range(-(-newest.size // chunk_size), 1 << 62)
    if primary.size > view.size:
        for extent in primary.extents(view.size, primary.size - view.size):
            if extent.kind is not ExtentKind.HOLE:
                end = extent.offset + extent.length
                pending.add_range(extent.offset // chunk_size, -(-end // chunk_size))
    return pending


class RollbackOverlay:
    """A rollback under way: the overlay over a volume's primary, which also brings the primary to its content."""

    def __init__(
        self,
        primary: BlockDevice,
        view: BlockDevice,
        record: pending_chunks.PendingChunks,
        chunk_size: int,
        preserve: Callable[[Sequence[int]], None],
    ) -> None:
        """Take over an open record.  `preserve` makes the newest snapshot preserve the given chunks."""
        self.record = record
        self.pending = record.chunks
        self.total = len(record.chunks)
        self.accept_damage = False
        """Whether damaged blocks of the snapshot are taken as they are; if not, reading and settling them fails."""
        self._primary = primary
        self._moment = Moment(view, primary.size)
        self._chunk_size = chunk_size
        self._preserve = preserve
        self._settling = threading.Lock()
        self._wanted = tracking.BitMap()
        self._wanting = threading.Lock()
        self._round = max(1, ROUND // chunk_size)
        self._buffer = memoryview(mmap.mmap(-1, self._round * chunk_size))  # page-aligned, for O_DIRECT
        self._there = memoryview(mmap.mmap(-1, chunk_size))

    def readv(self, offset: int, buffers: Buffers) -> None:
        """See the contract in `block_device`."""
        length = block_device.total_length(buffers)
        if offset + length > self._primary.size or self._is_settled(offset, length):
            self._primary.readv(offset, buffers)
            return
        for start, count, waiting in self._runs(offset, length):
            part = block_device.slice_buffers(buffers, start - offset, count)
            if not waiting:
                self._primary.readv(start, part)
            elif self.accept_damage:
                self._moment.read_checked(start, part, _accept)
            else:
                self._moment.readv(start, part)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        """See the contract in `block_device`."""
        if offset + length > self._primary.size or self._is_settled(offset, length):
            return self._primary.read_now(offset, length, buffers)
        for start, count, waiting in self._runs(offset, length):
            source = self._moment if waiting else self._primary
            if not source.read_now(start, count, block_device.slice_buffers(buffers, start - offset, count)):
                return False
        return True

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See the contract in `block_device`."""
        if offset + length > self._primary.size or self._is_settled(offset, length):
            yield from self._primary.extents(offset, length)
            return
        for start, count, waiting in self._runs(offset, length):
            yield from (self._moment if waiting else self._primary).extents(start, count)

    def settle(self, spans: Sequence[tuple[int, int]]) -> None:
        """Return when no chunk of the (first, last) `spans` is pending any longer.

        Raise PreserveFailed, and the errors of reading and writing.
        """
        for first, last in spans:
            at = first
            while (chunk := self._next(at)) is not None and chunk <= last:
                # A round at a time, so that a huge write does not make all others wait for all of it.
                batch = [pending for pending in self._first(chunk, self._round) if pending <= last]
                with self._wanting:
                    self._wanted.update(batch)
                with self._settling:
                    self._settle_wanted()
                at = chunk  # still pending if another thread tried for us and failed

    def settle_all(
        self, progress: Callable[[int, int], None] | None = None, cancelled: Callable[[], bool] | None = None
    ) -> bool:
        """Settle all chunks.  Return False if `cancelled` stopped it.  `progress` gets (bytes settled, bytes in all)."""
        while (chunk := self._next(0)) is not None:
            if cancelled is not None and cancelled():
                return False
            batch = self._first(chunk, self._round)
            self.settle([(batch[0], batch[-1])])
            if progress is not None:
                progress((self.total - len(self.pending)) * self._chunk_size, self.total * self._chunk_size)
        return True

    def _is_settled(self, offset: int, length: int) -> bool:
        end = -(-(offset + length) // self._chunk_size)
        return not self.pending.range_cardinality(offset // self._chunk_size, end)

    def _next(self, at: int) -> int | None:
        """Return the first pending chunk from `at` on."""
        with self._wanting:  # `pending` must not change under an iterator
            return next(self.pending.iter_equal_or_larger(at), None)

    def _first(self, at: int, count: int) -> list[int]:
        """Return up to `count` pending chunks from `at` on; at least `at` itself, which may have been settled meanwhile."""
        with self._wanting:
            return list(itertools.islice(self.pending.iter_equal_or_larger(at), count)) or [at]

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, whether pending) for the parts of a range."""
        end = offset + length
        while offset < end:
            chunk = offset // self._chunk_size
            waiting = chunk in self.pending
            chunk += 1
            while chunk * self._chunk_size < end and (chunk in self.pending) is waiting:
                chunk += 1
            stop = min(end, chunk * self._chunk_size)
            yield offset, stop - offset, waiting
            offset = stop

    def _settle_wanted(self) -> None:
        """Settle the chunks that any thread waits for, a round at a time."""
        while True:
            with self._wanting:
                self._wanted.intersection_update(self.pending)
                batch = list(itertools.islice(self._wanted, self._round))
                self._wanted.difference_update(tracking.BitMap(batch))
            if not batch:
                return
            self._settle_round(batch)

    def _settle_round(self, chunks: list[int]) -> None:
        """Bring the content of some chunks to the primary, durably.  One thread at a time does this."""
        size = self._primary.size
        places = [
            (chunk * self._chunk_size, min(self._chunk_size, size - chunk * self._chunk_size)) for chunk in chunks
        ]
        changed = []
        for index, (offset, length) in enumerate(places):
            piece = self._piece(index, length)
            self._moment.read_checked(offset, [piece], _accept if self.accept_damage else None)
            there = self._there[:length]
            self._primary.readv(offset, [there])
            if bytes(there) != bytes(piece):
                changed.append(index)
        if changed:
            self._preserve([chunks[index] for index in changed])
            for index in changed:
                offset, length = places[index]
                self._primary.writev(offset, [self._piece(index, length)])
            self._primary.flush()
        with self._wanting:
            try:
                self.record.remove(chunks)
            except OSError as error:
                lba = places[0][0] // self._primary.block_size
                raise block_device.MediumError(lba, True, os_error.reason(error)) from error

    def _piece(self, index: int, length: int) -> memoryview:
        """Return the place of a round's chunk in the buffer."""
        start = index * self._chunk_size
        return self._buffer[start : start + length]
