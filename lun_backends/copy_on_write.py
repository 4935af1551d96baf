# SPDX-License-Identifier: Apache-2.0
"""Copy-on-write: the device that preserves every grain of the primary before its first overwrite.

Before new data touches a grain (`tracking`) that is not known to be preserved, the grain is copied from the primary to the current
write-once device, to the same address, and committed there.  Only then does the write go to the primary (rule 1,
lun_backends/README.md).  `BlockWritten` from that copy means that another writer was first: another node, or this one
before a restart.  The block then holds the pre-image, so the write goes on.

| grain          | in the tracker | in claims | a write to it                                                  |
| -------------- | -------------- | --------- | -------------------------------------------------------------- |
| not preserved  | no             | no        | claims it, copies it, commits, adds it to the tracker, writes  |
| being copied   | no             | yes       | waits for the claim to end, then looks again                   |
| preserved      | yes            | no        | writes                                                         |

Why this is right:

* A write stays inside the gate, without leaving it, from its last look at the tracker to the end of its write to the
  primary.  A barrier holds the gate, so no write can look at the old snapshot and then change data under the new one.
* A writer takes its claim before it reads the primary for the copy, and releases it after the commit.  So no write of
  this node can change a grain while it is read.
* Copying is outside the gate, so a barrier does not wait for commits.  If a new snapshot overtakes a copy, the copy
  still goes to the snapshot that it was begun for.  This is right: claims belong to the volume, not to the snapshot, so
  the grain cannot have changed.  Its writer then finds the grain missing in the new snapshot and copies it there, too.
  For this, the current snapshot is checked under the lock of the claims: nothing is claimed for a snapshot that is no
  longer current.
* No thread waits for a claim while it holds one, nor inside the gate.  A write that meets claims of other threads first
  copies and commits the grains that it could claim itself, and only then waits.  (The holder of the gate may wait,
  because copying needs no gate.)

Zeroes change nothing where the primary has a hole.  So a discard, or a write of zeroes, preserves only the grains that
have data in its range, and a discard of a hole is done at once.

The claims and the copying are in `preserving`.

Without a snapshot, `_known` is a range that contains every grain, so every write takes the same fast path.

While the volume is being rolled back (see `volumes.rollback_overlay`), an overlay answers reads.  A grain that it has
not settled yet is not known: a write to it takes the long way and settles it first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from lun_backends import block_device, tracking, write_gate
from lun_backends.block_device import Buffers, Extent, ExtentKind
from lun_backends.preserving import ErrorPolicy, Preserver, Side, WriteOnceSide, fail_writes
from lun_backends.tracking import SHIFT

_EVERYTHING = range(1 << 63)


class Overlay(Protocol):
    """The content of a volume whose primary is behind: there, the grains `pending` still have other content."""

    pending: tracking.BitMap

    def readv(self, offset: int, buffers: Buffers) -> None: ...

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool: ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...

    def settle(self, spans: Sequence[tuple[int, int]]) -> None:
        """Bring the grains of the (first, last) spans to the primary, for good.  Raise the errors of preserving and writing."""
        ...


class _Settled:
    """The grains that a write may go to at once while there is an overlay."""

    __slots__ = ("_covers", "_known", "_pending")

    def __init__(
        self,
        known: range | tracking.BitMap | _Settled,
        covers: Callable[[int, int], bool],
        pending: tracking.BitMap,
    ) -> None:
        self._known = known
        self._covers = covers
        self._pending = pending

    def __contains__(self, grain: int) -> bool:
        return grain in self._known and grain not in self._pending

    def contains_range(self, first: int, end: int) -> bool:
        """Return whether a write may go to all of the grains [first, end) at once."""
        return not self._pending.range_cardinality(first, end) and self._covers(first, end)


def _all(_first: int, _end: int) -> bool:
    return True


def _none(_first: int, _end: int) -> bool:
    return False


class CopyOnWrite(block_device.BlockDevice):
    """A device over `primary` that preserves grains in the armed write-once device.

    `chunk_size` is the most that it preserves of a range of that alignment, in bytes, when a write touches a part of it:
    where the device checksums less together (`BlockDevice.grain`), it preserves less.

    It owns neither the primary nor the write-once device; `close` does not close them.
    """

    def __init__(
        self,
        primary: block_device.BlockDevice,
        chunk_size: int,
        on_error: ErrorPolicy = fail_writes,
        copy_timeout: float | None = None,
    ) -> None:
        if chunk_size < tracking.GRAIN or chunk_size & (chunk_size - 1):
            raise ValueError(f"chunk size {chunk_size} is not a power-of-two number of grains")
        self.primary = primary
        self.size = primary.size
        self.block_size = primary.block_size
        self.physical_block_size = primary.physical_block_size
        self.chunk_size = chunk_size
        self.grains = tracking.count(primary.size)
        self.gate = write_gate.WriteGate()
        self.preserver = Preserver(primary, chunk_size, on_error, copy_timeout, self.disarm)
        self.counters = self.preserver.counters
        self._side: Side | None = None  # the preserver's side
        # The grains that need no copy: the tracker's bitmap, or all.  It changes together with `_side`, within `hold`.
        self._known: range | tracking.BitMap | _Settled = _EVERYTHING
        self._covers: Callable[[int, int], bool] = _all  # whether the grains [first, end) need none, likewise
        self._overlay: Overlay | None = None
        self._bar: Callable[[], None] | None = None  # see `bar`
        self._source: block_device.BlockDevice | Overlay = primary  # the device or overlay that answers reads
        self._closed = False

    # Arming ---------------------------------------------------------------------------------------------------------

    @property
    def tracker(self) -> tracking.Tracker | None:
        """The grains known to be preserved in the current snapshot; None without a snapshot."""
        return None if self._side is None else self._side.tracker

    @property
    def write_once_side(self) -> WriteOnceSide | None:
        """The device that copies go to; None without a snapshot."""
        return None if self._side is None else self._side.device

    @property
    def armed(self) -> tuple[WriteOnceSide, tracking.Tracker] | None:
        """The device that copies go to and its tracker, which belong together; None without a snapshot."""
        side = self._side
        return None if side is None else (side.device, side.tracker)

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Return the barrier of rule 7: no write is running while the context is open; `arm` and `disarm` belong inside."""
        return self.gate.hold()

    def arm(self, device: WriteOnceSide, tracker: tracking.Tracker | None = None) -> None:
        """Preserve into `device` from now on, starting from `tracker` (None: no grain is known).

        Call it only within `hold`, or before the first write.
        """
        together = min(max(device.grain, self.primary.physical_block_size, tracking.GRAIN), self.chunk_size)
        unit = 1 << (together - 1 >> tracking.SHIFT).bit_length()
        side = Side(device, tracking.Tracker(self.grains) if tracker is None else tracker, unit)
        self._leave_out_what_is_beyond(side)
        self._side = self.preserver.side = side
        self._look()

    def disarm(self) -> None:
        """Preserve no longer.  Call it only within `hold`, or from an `on_error` that invalidated the snapshot."""
        self._side = self.preserver.side = None
        self._look()

    def cover(self, overlay: Overlay) -> None:
        """Read from `overlay`, and let it settle grains before they are written to, until `uncover`.

        Call it only within `hold`, or before the first read.
        """
        self._overlay = overlay
        self._source = overlay
        self._look()

    def uncover(self) -> None:
        """Read from the primary again, after it has caught up with the overlay.  Call it only within `hold`."""
        self._overlay = None
        self._source = self.primary
        self._look()

    def bar(self, refuse: Callable[[], None] | None) -> None:
        """Call `refuse`, which may raise an error, before every write, until `bar(None)`.

        Call it within `hold`.  Otherwise a running write may be answered later although `refuse` never saw it.
        """
        self._bar = refuse
        self._look()

    def resized(self) -> None:
        """Take over the size of the primary after it has grown.  Call it only within `hold`."""
        self.grains = tracking.count(self.primary.size)
        if self._side is not None:
            self._side.tracker.grains = self.grains
            self._leave_out_what_is_beyond(self._side)
        self.size = self.preserver.size = self.primary.size

    def _leave_out_what_is_beyond(self, side: Side) -> None:
        """Mark grains beyond the snapshot's size as preserved: the volume has grown since it was taken."""
        first = tracking.count(side.device.size)
        if first < self.grains:
            side.tracker.add_range(first, self.grains - 1)

    def _look(self) -> None:
        """Set `_known` and `_covers` from bar, tracker and overlay."""
        if self._bar is not None or self._closed:
            self._known, self._covers = range(0), _none  # every write takes the long way
            return
        known: range | tracking.BitMap | _Settled = _EVERYTHING
        covers: Callable[[int, int], bool] = _all
        if self._side is not None:
            known = self._side.tracker.known
            covers = known.contains_range
        if self._overlay is not None:
            known = _Settled(known, covers, self._overlay.pending)
            covers = known.contains_range
        self._known, self._covers = known, covers

    # The block device -----------------------------------------------------------------------------------------------

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._source.readv(offset, buffers)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        return self._source.read_now(offset, length, buffers)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        first = offset >> SHIFT
        last = (offset + length - 1) >> SHIFT
        gate = self.gate
        gate.enter()
        try:
            if (first in self._known) if first == last else self._covers(first, last + 1):
                self.primary.writev(offset, buffers, fua=fua)
                return
        finally:
            gate.leave()
        spans = self.preserver.spans([(offset, length)])
        self._preserve_and(spans, lambda: self.primary.writev(offset, buffers, fua=fua))

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        first = offset >> SHIFT
        last = (offset + length - 1) >> SHIFT
        gate = self.gate
        if not gate.enter_now():
            return False
        try:
            if (first in self._known) if first == last else self._covers(first, last + 1):
                return self.primary.write_now(offset, length, buffers)
        finally:
            gate.leave()
        return False

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        spans: list[tuple[int, int]] = []
        changing: list[tuple[int, int]] = []

        def look() -> None:
            changing[:] = self.changed_by_zeroes(offset, length)
            spans[:] = self.preserver.spans(changing)

        def write() -> None:
            for start, count in changing if discard else [(offset, length)]:
                self.primary.write_zeroes(start, count, discard=discard, fua=fua)

        self._preserve_and(spans, write, look)

    def prepare_writes(self, ranges: Sequence[tuple[int, int]]) -> None:
        with contextlib.suppress(block_device.BlockDeviceError):  # only a hint: the write itself meets the error again
            self._prepare(self.preserver.spans(ranges))

    def prepare_now(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Copy what can be copied from page cache to page cache, on the caller's thread.

        A worker for each copy would cost more than the copy.  This leaves out grains that must be read from the disk,
        grains that are written in part, and copies that fail.  Their writes make the copies later, where waiting is
        allowed.
        """
        return self.preserver.preserve_now(ranges)

    def flush(self) -> None:
        self.primary.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._source.extents(offset, length)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[block_device.BlockDevice]:
        with self.gate.hold():
            yield _Held(self)

    def close(self) -> None:
        """Refuse writes from now on, and return when none is running."""
        if not self._closed:
            with self.gate.hold():
                self._closed = True
                self._side = None
                self.preserver.close()
                self._look()  # every write takes the long way and finds the device closed

    # Preserving -----------------------------------------------------------------------------------------------------

    def preserve(self, offset: int, length: int) -> None:
        """Preserve the grains of the range now, as a write to them would.  Raises PreserveFailed, DeviceClosed."""
        self.preserver.preserve(self.preserver.spans([(offset, length)]))

    def preserve_many(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Preserve the grains of many ranges, with one commit.  Raises PreserveFailed, DeviceClosed."""
        self.preserver.preserve(self.preserver.spans(ranges))

    def prepare_held(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Prepare a write of the gate's holder to the ranges.  Raise the errors of a write that cannot begin."""
        if (refuse := self._bar) is not None:
            refuse()
        self._prepare(self.preserver.spans(ranges))

    def _prepare(self, spans: Sequence[tuple[int, int]]) -> None:
        """Preserve the grains, and settle them if there is an overlay."""
        self.preserver.preserve(spans)
        overlay = self._overlay
        if overlay is not None:
            overlay.settle(spans)

    def changed_by_zeroes(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the (offset, length) parts of a range that zeroes change.  A hole reads as zeroes already.

        The caller is inside the gate and stays there until it has written the zeroes.  Another write may fill a hole
        meanwhile, but that write preserves the grain in the same snapshot first.  Raises OutOfRange, MediumError,
        DeviceClosed.
        """
        if self._overlay is not None and offset + length <= self.size:
            return [(offset, length)]  # the volume may have another content there than the primary's hole
        extents = self.primary.extents(offset, length)
        return [(extent.offset, extent.length) for extent in extents if extent.kind is not ExtentKind.HOLE]

    def _preserve_and(
        self, spans: Sequence[tuple[int, int]], write: Callable[[], None], look: Callable[[], None] | None = None
    ) -> None:
        """Preserve all grains of `spans`, then call `write`, inside the gate since the last look at the tracker.

        `look` sets `spans` anew in each stay inside the gate.
        """
        while True:
            if (refuse := self._bar) is not None:
                refuse()
            self.gate.enter()
            try:
                if self._closed:
                    raise block_device.DeviceClosed
                if look is not None:
                    look()
                if all(self._covers(first, last + 1) for first, last in spans):
                    write()
                    return
            finally:
                self.gate.leave()
            self._prepare(spans)


class _Held(block_device.BlockDevice):
    """The device for the holder of its gate: writes preserve grains, but do not enter the gate again."""

    def __init__(self, device: CopyOnWrite) -> None:
        self._device = device
        self.size = device.size
        self.block_size = device.block_size

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._device.readv(offset, buffers)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._device.prepare_held([(offset, block_device.total_length(buffers))])
        self._device.primary.writev(offset, buffers, fua=fua)

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        changing = self._device.changed_by_zeroes(offset, length)
        self._device.prepare_held(changing)
        for start, count in changing if discard else [(offset, length)]:
            self._device.primary.write_zeroes(start, count, discard=discard, fua=fua)

    def flush(self) -> None:
        self._device.primary.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._device.extents(offset, length)

    def close(self) -> None:
        """Do nothing: the owner of the device closes it."""
