# SPDX-License-Identifier: Apache-2.0
"""A volume as it was when a snapshot was taken, for reading only.

Snapshot *k* reads a block from the first of the write-once devices k, k+1, ... newest that has it.  If none has it, the
block did not change since, and comes from the primary (rule 8, lun_backends/README.md).  The guarantee: every read
returns the bytes of the snapshot's moment, whatever is written, snapshotted or deleted meanwhile.

    k  ->  k+1  ->  ...  ->  newest  ->  primary        a block is blank: ask the next one | k  ->  k+1  ->  ...  ->
    newest  <------+           look again, from k on: a copy made meanwhile wins, the oldest of all

Reading the primary races with a write that preserves the block and then changes it.  So after the read, the block is
looked up again in the chain as it is *then*, and a copy found there wins (rule 3).  (A snapshot taken meanwhile made
the chain longer.)  This is enough, because a copy is committed before the first byte of the new data reaches the
primary (rule 1): a read that saw new data finds the copy.

A snapshot leaves the chain while reads may still use it.  `Chain.replace` publishes the new chain, and returns when
every read that began with an older one has ended.  Only then may the caller close the device that left.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import pyroaring

from lun_backends import block_device
from lun_backends.block_device import BlockDevice, Buffers, Extent, ExtentKind
from lun_backends.damage import OnDamage

_WINDOW = 64 << 20  # bytes whose extents are found at a time: a slow caller must not keep a snapshot from being deleted
_LINKS_NOW = 100  # links that an event loop asks; each takes 6 us, twice
_POLL = 0.0005  # seconds; deleting is rare, so readers do not pay for a wake-up

_Read = Callable[[BlockDevice, int, int, Buffers], bool]
"""Reads (offset, length, buffers) of a device; returns False if that would wait and must not."""


class Chain:
    """The write-once devices of a volume, oldest first, as an immutable tuple that is replaced as a whole.

    A reader puts a mark into `reading` before it looks at `links`.  `replace` sets `links`, then a fresh `reading`,
    then waits until the old one is empty.  A reader that marks the old `reading` after that sees the new links;
    `replace` waits for all others.
    """

    __slots__ = ("links", "reading")

    def __init__(self, links: Sequence[BlockDevice] = ()) -> None:
        self.links: tuple[BlockDevice, ...] = tuple(links)
        self.reading: collections.deque[None] = collections.deque()

    def append(self, link: BlockDevice) -> None:
        """Add the device of a newer snapshot.  This waits for no read."""
        self.links = (*self.links, link)

    def replace(self, links: Sequence[BlockDevice]) -> None:
        """Set the chain, and wait until all reads that began before have ended."""
        self.links = tuple(links)
        before, self.reading = self.reading, collections.deque()
        while before:
            time.sleep(_POLL)


class SnapshotView(BlockDevice):
    """The view of the snapshot whose own write-once device is `own`; it ends when `own` leaves the chain."""

    read_only: ClassVar[bool] = True

    def __init__(self, primary: BlockDevice, chain: Chain, own: BlockDevice) -> None:
        self.size = own.size
        self.block_size = own.block_size
        self._primary = primary
        self._chain = chain
        self._own = own
        self._closed = False

    def readv(self, offset: int, buffers: Buffers) -> None:
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        self._check(offset, length)
        reading = self._chain.reading
        reading.append(None)
        try:
            self._read(offset, length, buffers, _wait)
        finally:
            reading.pop()

    def read_checked(self, offset: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        def check(device: BlockDevice, at: int, _length: int, piece: Buffers) -> bool:
            device.read_checked(at, piece, on_damage)
            return True

        length = block_device.total_length(buffers)
        self._check(offset, length)
        reading = self._chain.reading
        reading.append(None)
        try:
            self._read(offset, length, buffers, check)
        finally:
            reading.pop()

    def read_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        self._check(offset, length)
        reading = self._chain.reading
        reading.append(None)
        try:
            links = self._chain.links
            if not self._own.local:
                return False
            if len(links) > _LINKS_NOW and self._own not in links[-_LINKS_NOW:]:
                return False  # asking them all takes as long as a disk does
            return self._read(offset, length, buffers, _now)
        finally:
            reading.pop()

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        raise block_device.WriteProtected

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        raise block_device.WriteProtected

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        raise block_device.WriteProtected

    def flush(self) -> None:
        """Do nothing: there are no writes to wait for.  Raises DeviceClosed."""
        if self._closed:
            raise block_device.DeviceClosed

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield DATA and HOLE: the extents that an export has to read, and those that it may leave out."""
        self._check(offset, length)
        waiting: Extent | None = None
        for start in range(offset, offset + length, _WINDOW):
            for extent in self._window(start, min(_WINDOW, offset + length - start)):
                if waiting is not None and waiting.kind is extent.kind:
                    waiting = Extent(waiting.offset, waiting.length + extent.length, extent.kind)
                    continue
                if waiting is not None:
                    yield waiting
                waiting = extent
        if waiting is not None:
            yield waiting

    def close(self) -> None:
        self._closed = True

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise block_device.OutOfRange(max(offset, self.size) // self.block_size)

    def _links(self) -> tuple[BlockDevice, ...]:
        """Return the devices to ask, in order: from the view's own to the newest.  Raises DeviceClosed."""
        links = self._chain.links
        if self._closed or self._own not in links:
            raise block_device.DeviceClosed
        return links[links.index(self._own) :]

    def _read(self, offset: int, length: int, buffers: Buffers, read: _Read) -> bool:
        """Read with `read`, and return False as soon as `read` returns False."""
        blank = self._read_links([(offset, length)], offset, length, buffers, read)
        if not blank:
            return blank is not None
        for start, count in blank:
            if not read(self._primary, start, count, _piece(buffers, offset, length, start, count)):
                return False
        # Look again: copies that were made while the primary was read (rule 3).
        return self._read_links(blank, offset, length, buffers, read) is not None

    def _read_links(
        self, blank: list[tuple[int, int]], offset: int, length: int, buffers: Buffers, read: _Read
    ) -> list[tuple[int, int]] | None:
        """Read the (offset, length) ranges `blank` from the first link that has them; return those that no link has.

        `buffers` hold `length` bytes from `offset` on.  Return None as soon as `read` returns False.  There may be
        thousands of links.
        """
        for link in self._links():
            left: list[tuple[int, int]] = []
            for start, count in blank:
                for extent in link.extents(start, count):
                    if extent.kind is ExtentKind.BLANK:
                        left.append((extent.offset, extent.length))
                        continue
                    piece = _piece(buffers, offset, length, extent.offset, extent.length)
                    if not read(link, extent.offset, extent.length, piece):
                        return None
            if not left:
                return left
            blank = left
        return blank

    def _window(self, offset: int, length: int) -> list[Extent]:
        reading = self._chain.reading
        reading.append(None)
        try:
            self._links()
            # In this order, as in a read: the links win over the earlier answer of the primary.
            extents = list(self._primary.extents(offset, length))
            size = self.block_size
            written = pyroaring.BitMap()  # blocks from `offset` on
            for link in self._links():
                for extent in link.extents(offset, length):
                    if extent.kind is not ExtentKind.BLANK:
                        first = (extent.offset - offset) // size
                        written.add_range(first, first + extent.length // size)
                if len(written) == length // size:
                    break
            data = [
                Extent(offset + first * size, (end - first) * size, ExtentKind.DATA) for first, end in _runs(written)
            ]
            return list(_overlay(extents, data))
        finally:
            reading.pop()


def _wait(device: BlockDevice, offset: int, _length: int, buffers: Buffers) -> bool:
    device.readv(offset, buffers)
    return True


def _now(device: BlockDevice, offset: int, length: int, buffers: Buffers) -> bool:
    return device.read_now(offset, length, buffers)


def _piece(buffers: Buffers, offset: int, length: int, start: int, count: int) -> Buffers:
    """Return the `count` bytes from `start` on of `buffers`, which hold the `length` bytes from `offset` on."""
    return buffers if count == length else block_device.slice_buffers(buffers, start - offset, count)


def _runs(numbers: pyroaring.BitMap) -> Iterator[tuple[int, int]]:
    """Yield [first, end) of the runs of neighbours."""
    end = 0
    last = numbers.max() if numbers else -1
    gaps = numbers.flip(0, last + 2)  # one behind the last number, too
    while end <= last:
        first = numbers.next_set_bit(end)
        end = gaps.next_set_bit(first)
        yield first, end


def _overlay(base: Sequence[Extent], data: Sequence[Extent]) -> Iterator[Extent]:
    """Yield `base` with every range of `data` turned into data; both are in order, `base` without gaps."""
    position = base[0].offset if base else 0
    upcoming = iter(data)
    over = next(upcoming, None)
    for extent in base:
        end = extent.offset + extent.length
        while position < end:
            while over is not None and over.offset + over.length <= position:
                over = next(upcoming, None)
            if over is not None and over.offset <= position:
                stop = min(end, over.offset + over.length)
                yield Extent(position, stop - position, ExtentKind.DATA)
            else:
                stop = end if over is None else min(end, over.offset)
                yield Extent(position, stop - position, extent.kind)
            position = stop
