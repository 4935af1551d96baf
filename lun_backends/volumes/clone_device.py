# SPDX-License-Identifier: Apache-2.0
"""A writable device on top of a snapshot's view: what is written goes to a file of its own, the rest is read from the view.

The unit is the grain of 4 KiB (`tracking`).  The file is sparse, as large as the view, and has each grain at its own
address.

| grain  | is in `OwnedGrains` | a read         | a write of a part of it                             | a discard            |
| ------ | ------------------- | -------------- | --------------------------------------------------- | -------------------- |
| view's | no                  | from the view  | writes the whole grain, the rest of it as the view  | owns it, without data |
|        |                     |                | has it, and only then owns it                       |                      |
| own    | yes                 | from the file  | writes to the file                                  | frees its place      |

It has a volatile cache, like the volume: what a write was acknowledged for survives a killed daemon, and what was flushed
survives a power cut.  A grain never reads as zeroes, or as a mixture, in place of the view's content:

* a grain is owned only after all of it is in the file (`OwnedGrains.add` comes last);
* a power cut forgets that a grain is owned unless its data was synced before that was noted (`OwnedGrains.settle`); then
  the view answers again, as before the write.  Whatever the file has at its place, the next first write, or the discard,
  covers all of the grain.
* a read that found a grain not to be owned began before the write that owns it has ended.

Two writes to a grain that is not owned yet wait for each other (`_claims`); all others do not wait.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NoReturn

from lun_backends import block_device, flat, tracking, write_gate
from lun_backends.block_device import BlockDevice, Buffers, Extent, ExtentKind
from lun_backends.damage import OnDamage
from lun_backends.files import os_error, storage_io
from lun_backends.tracking import GRAIN, SHIFT
from lun_backends.volumes import owned_grains

_ZEROES = memoryview(bytes(GRAIN))


class CloneDevice(BlockDevice):
    """The device over `view`; it owns `data` and `owned`, and not the view.

    `limit` bounds the bytes of grains with data; None: the disk does.
    """

    def __init__(
        self, view: BlockDevice, data: flat.Flat, owned: owned_grains.OwnedGrains, limit: int | None = None
    ) -> None:
        self.size = view.size
        self.block_size = view.block_size
        self.physical_block_size = GRAIN
        self.local = view.local
        self.limit = limit
        self.gate = write_gate.WriteGate()
        self._view = view
        self._data = data
        self._owned = owned
        self._grains = owned.grains
        self._filled = _filled(data, owned.grains)  # the owned grains with data: a write to them needs no space
        self._taken = len(self._filled)  # grains, those of writes under way included
        self._claims = tracking.BitMap()  # grains that a write is about to own
        self._changed = threading.Condition(threading.Lock())
        self._flushing = threading.Lock()
        self._broken = ""  # why it is unknown what is durable
        self._closed = False

    # -- reading

    def readv(self, offset: int, buffers: Buffers) -> None:
        length = block_device.total_length(buffers)
        for start, count, own in self._runs(offset, length):
            part = buffers if count == length else block_device.slice_buffers(buffers, start - offset, count)
            (self._data if own else self._view).readv(start, part)

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        for start, count, own in self._runs(offset, length):
            part = buffers if count == length else block_device.slice_buffers(buffers, start - offset, count)
            if not (self._data if own else self._view).read_now(start, count, part):
                return False
        return True

    def read_checked(self, offset: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        length = block_device.total_length(buffers)
        for start, count, own in self._runs(offset, length):
            part = block_device.slice_buffers(buffers, start - offset, count)
            (self._data if own else self._view).read_checked(start, part, on_damage)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for start, count, own in self._runs(offset, length):
            yield from (self._data if own else self._view).extents(start, count)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield the (offset, length, whether it is own) parts of a range.  Raises OutOfRange, DeviceClosed."""
        self._check(offset, length)
        first, end = offset >> SHIFT, tracking.count(offset + length)
        own = self._grains.range_cardinality(first, end)
        if own in (0, end - first):
            if length:
                yield offset, length, bool(own)
            return
        stop = offset + length
        wanted = tracking.BitMap()
        wanted.add_range(first, end)
        wanted &= self._grains
        at = offset
        for start, count in tracking.bytes_of(wanted, self.size):
            begin = max(start, offset)
            if begin > at:
                yield at, begin - at, False
            at = min(start + count, stop)
            yield begin, at - begin, True
        if at < stop:
            yield at, stop - at, False

    # -- writing

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self.gate.enter()
        try:
            self.write_inside(offset, buffers)
        finally:
            self.gate.leave()
        if fua:
            self.flush()

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        if not self.gate.enter_now():
            return False
        try:
            if self._broken or offset + length > self.size:
                return False
            if not self._filled.contains_range(offset >> SHIFT, tracking.count(offset + length)):
                return False
            return self._data.write_now(offset, length, buffers)
        finally:
            self.gate.leave()

    def write_inside(self, offset: int, buffers: Buffers) -> None:
        """Write, inside the gate.  Raise the errors of `writev`."""
        length = block_device.total_length(buffers)
        self._check_write(offset, length)
        if not length:
            return
        first, end = offset >> SHIFT, tracking.count(offset + length)
        if self._filled.contains_range(first, end):
            self._data.writev(offset, buffers)
            return
        with self._claimed(first, end):
            begin, stop = first << SHIFT, min(end << SHIFT, self.size)
            head = self._beside(first, begin, offset - begin)
            tail = self._beside(end - 1, offset + length, stop - offset - length)
            with self._space(first, end):
                self._data.writev(offset - len(head), [piece for piece in (head, *buffers, tail) if len(piece)])
                self._own(first, end)

    def _beside(self, grain: int, offset: int, length: int) -> memoryview:
        """Return what the view has beside a write, in a grain that is not owned yet; nothing for one that is."""
        if not length or grain in self._grains:
            return _ZEROES[:0]
        beside = memoryview(bytearray(length))
        self._view.readv(offset, [beside])
        return beside

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self.gate.enter()
        try:
            self.zero_inside(offset, length)
        finally:
            self.gate.leave()
        if fua:
            self.flush()

    def zero_inside(self, offset: int, length: int) -> None:
        """Make a range zeroes, inside the gate.  Whole grains take no space.  Raise the errors of `writev`."""
        self._check_write(offset, length)
        for start, count in self._not_zero(offset, length):
            stop = start + count
            first, end = -(-start >> SHIFT), tracking.count(self.size) if stop == self.size else stop >> SHIFT
            if first >= end:
                edges = [(start, count)]
            else:
                edges = [(start, (first << SHIFT) - start), (end << SHIFT, stop - (end << SHIFT))]
                with self._claimed(first, end):
                    self._reserve(first, end)
                    begin = first << SHIFT
                    self._data.write_zeroes(begin, min(end << SHIFT, stop) - begin, discard=True)
                    with self._changed:
                        self._add(first, end)
                        self._taken -= self._filled.range_cardinality(first, end)
                        self._filled.remove_range(first, end)
            for at, left in edges:
                while left > 0:
                    step = min(left, GRAIN)
                    self.write_inside(at, [_ZEROES[:step]])
                    at += step
                    left -= step

    def _not_zero(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range that may be other than zeroes; a hole of the view needs no grain.

        They are extended to whole grains within the range, because the view's holes may begin anywhere.
        """
        end, done = offset + length, offset
        for extent in self.extents(offset, length):
            if extent.kind is ExtentKind.HOLE:
                continue
            start = max(done, extent.offset & -GRAIN, offset)
            stop = min(-(-(extent.offset + extent.length) // GRAIN) * GRAIN, end)
            if stop > start:
                yield start, stop - start
                done = stop

    @contextlib.contextmanager
    def _claimed(self, first: int, end: int) -> Iterator[None]:
        """Keep other writes out of the grains [first, end) unless these are owned and have data."""
        grains = tracking.BitMap()
        grains.add_range(first, end)
        with self._changed:
            self._changed.wait_for(lambda: self._claims.isdisjoint(grains))
            self._claims |= grains
        try:
            yield
        finally:
            with self._changed:
                self._claims -= grains
                self._changed.notify_all()

    @contextlib.contextmanager
    def _space(self, first: int, end: int) -> Iterator[None]:
        """Take the space of the grains [first, end) that have no data yet; give it back on an error.  Raises SpaceExhausted."""
        with self._changed:
            more = end - first - self._filled.range_cardinality(first, end)
            if self.limit is not None and (self._taken + more) << SHIFT > self.limit:
                raise block_device.SpaceExhausted((first << SHIFT) // self.block_size)
            self._taken += more
        try:
            self._reserve(first, end)
            yield
        except BaseException:
            with self._changed:
                self._taken -= more
            raise

    def _reserve(self, first: int, end: int) -> None:
        with self._changed:
            try:
                self._owned.reserve(first, end)
            except OSError as error:
                raise self._error(error, first) from error

    def _own(self, first: int, end: int) -> None:
        """Own the grains [first, end), whose data is in the file.  Raises MediumError, SpaceExhausted."""
        with self._changed:
            self._add(first, end)
            self._filled.add_range(first, end)

    def _add(self, first: int, end: int) -> None:
        """Own grains (lock held)."""
        if not self._grains.contains_range(first, end):
            try:
                self._owned.add(first, end)
            except OSError as error:
                raise self._error(error, first) from error

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[BlockDevice]:
        with self.gate.hold():
            yield _Held(self)

    # -- durability

    def flush(self) -> None:
        if self._closed:
            raise block_device.DeviceClosed
        with self._flushing:
            if self._broken:
                self._refuse_broken(0)
            with self._changed:
                grains = self._owned.unsettled()
            try:
                self._data.flush()
                if grains:
                    self._owned.settle(grains)
            except (block_device.MediumError, OSError) as error:
                # The kernel may have dropped the data, and reports success the next time.
                self._broken = os_error.reason(error) if isinstance(error, OSError) else error.reason
                with contextlib.suppress(OSError):
                    self._owned.distrust()
                self._refuse_broken(0)

    @property
    def used_bytes(self) -> int:
        """The bytes of the grains that have data of their own."""
        return self._taken << SHIFT

    @property
    def own_bytes(self) -> int:
        """The bytes that are no longer read from the view."""
        return len(self._grains) << SHIFT

    @property
    def broken(self) -> str:
        """Why it takes no writes any more; empty if it does."""
        return self._broken

    def close(self) -> None:
        """Flush and close.  The device is closed even if this raises MediumError."""
        if self._closed:
            return
        with self.gate.hold():
            try:
                if not self._broken:
                    self.flush()
            finally:
                self._closed = True
                self._owned.close()
                self._data.close()

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise block_device.DeviceClosed
        if offset + length > self.size:
            raise block_device.OutOfRange(max(offset, self.size) // self.block_size)

    def _check_write(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if self._broken:
            self._refuse_broken(offset // self.block_size)

    def _refuse_broken(self, lba: int) -> NoReturn:
        raise block_device.MediumError(
            lba, True, f"an earlier flush failed ({self._broken}); it takes no further writes"
        )

    def _error(self, error: OSError, grain: int) -> block_device.BlockDeviceError:
        lba = (grain << SHIFT) // self.block_size
        if error.errno in storage_io.NO_SPACE:
            return block_device.SpaceExhausted(lba)
        return block_device.MediumError(lba, True, os_error.reason(error))


class _Held(BlockDevice):
    """The device for the holder of its gate."""

    def __init__(self, device: CloneDevice) -> None:
        self._device = device
        self.size = device.size
        self.block_size = device.block_size

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._device.readv(offset, buffers)

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._device.write_inside(offset, buffers)
        if fua:
            self._device.flush()

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._device.zero_inside(offset, length)
        if fua:
            self._device.flush()

    def flush(self) -> None:
        self._device.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._device.extents(offset, length)

    def close(self) -> None:
        """Do nothing: the owner of the device closes it."""


def _filled(data: flat.Flat, grains: tracking.BitMap) -> tracking.BitMap:
    """Return which of the grains have data in the file."""
    found = tracking.BitMap()
    if grains:
        for extent in data.extents(0, data.size):
            if extent.kind is ExtentKind.DATA:
                found.add_range(extent.offset >> SHIFT, tracking.count(extent.offset + extent.length))
        found &= grains
    return found
