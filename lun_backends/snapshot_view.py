# SPDX-License-Identifier: Apache-2.0
"""A volume as it was when a snapshot was taken, for reading only.

Snapshot *k* reads a block from the first of the write-once devices k, k+1, ... newest that has it.  If none has it, the
block did not change since, and comes from the primary (rule 8, lun_backends/README.md).  The guarantee: every read
returns the bytes of the snapshot's moment, whatever is written, snapshotted or deleted meanwhile.

    look up  ->  primary, once for the range  ->  look again  ->  devices that have a part of it

1. The chain's index tells in one lookup which settled device has a grain; the armed device is asked (`view_chain`).
2. The blocks that no device has come from the primary, with one read from the first of them to the last.
3. Reading the primary races with a write that preserves a block and then changes it.  So after the read, the armed
   device is asked again, and a copy found there wins (rule 3).  If the chain changed meanwhile, all starts again.  This
   is enough, because a copy is committed before the first byte of the new data reaches the primary (rule 1): a read that
   saw new data finds the copy.
4. The blocks that devices have are read from them, over what the primary had.

A grain that a device has only in part, or no longer, is looked for in one device after the other (`_walk`).

A snapshot leaves the chain while reads may still use it.  `Chain.replace` publishes the new chain, and returns when
every read that began with an older one has ended.  Only then may the caller close the device that left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import pyroaring

from lun_backends import block_device, tracking, view_index
from lun_backends.block_device import BlockDevice, Buffers, Extent, ExtentKind
from lun_backends.damage import OnDamage
from lun_backends.view_chain import Chain, Table

_WINDOW = 64 << 20  # bytes whose extents are found at a time: a slow caller must not keep a snapshot from being deleted
_LINKS_NOW = 100  # devices that an event loop asks; each takes 6 us
_PRIMARY = 1 << 62
"""In the place of a device's number: the primary, which comes after all devices."""

_Place = tuple[int, int, int]
"""(offset, length, number of the device or _PRIMARY)."""
_Read = Callable[[BlockDevice, int, int, Buffers], bool]
"""Reads (offset, length, buffers) of a device; returns False if that would wait and must not."""


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
            if not self._own.local:
                return False
            return self._read(offset, length, buffers, _now, now=True)
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

    def _read(self, offset: int, length: int, buffers: Buffers, read: _Read, *, now: bool = False) -> bool:
        """Read with `read`, and return False as soon as `read` returns False.

        With `now`, return False also if more devices would have to be asked than a loop has time for.
        """
        while True:
            table = self._chain.table
            own = table.numbers.get(self._own, -1)
            if own < 0 or self._closed:
                raise block_device.DeviceClosed
            asked = table.asked
            if len(asked) == 1 and (offset ^ offset + length - 1) < tracking.GRAIN and length:
                # Within one grain: the most frequent read.
                armed, place = asked[0], _PRIMARY
                if own < table.cover:
                    index = table.index
                    entry = index.entries.get(offset >> index.shift)
                    if entry is None or entry.upto < table.cover:
                        place = view_index.PART  # the general way makes an entry
                    elif entry.grains is not None:
                        bits = entry.grains[(offset & index.span - 1) >> tracking.SHIFT] >> own
                        if bits:
                            place = own + (bits & -bits).bit_length() - 1 if bits > 0 else view_index.PART
                device = table.devices[armed]
                if place == _PRIMARY and (armed < own or device.lacks(offset, length)):
                    if not read(self._primary, offset, length, buffers):
                        return False
                    if self._chain.table is table and (armed < own or device.lacks(offset, length)):  # rule 3
                        return True
                    continue
                if 0 <= place < armed:
                    try:
                        return read(table.devices[place], offset, length, buffers)
                    except block_device.BlankBlock:  # a commit was taken back
                        return self._walk(offset, length, buffers, read)
            if asked and asked[0] < own:
                asked = tuple(number for number in asked if number >= own)
            places = self._places(table, own, offset, length, now=now)
            if places is None or (now and len(asked) > _LINKS_NOW):
                return False
            if places and places[0][2] == view_index.PART:
                return (not now or len(table.links) <= _LINKS_NOW) and self._walk(offset, length, buffers, read)
            for number in asked:
                places = _ask(table.devices[number], number, places)
            blank = [place for place in places if place[2] == _PRIMARY]
            if blank:
                if not self._read_primary(blank, offset, length, buffers, read):
                    return False
                # Look again: copies that were made while the primary was read (rule 3).
                if self._chain.table is not table:
                    continue
                for number in asked:
                    blank = _ask(table.devices[number], number, blank)
                if len(places) == 1 == len(blank) and blank[0][2] == _PRIMARY:
                    return True
                places = [place for place in (*places, *blank) if place[2] != _PRIMARY]
            try:
                for start, count, number in places:
                    if not read(table.devices[number], start, count, _piece(buffers, offset, length, start, count)):
                        return False
            except block_device.BlankBlock:  # a commit was taken back, or the device has moved on
                return self._walk(offset, length, buffers, read)
            return True

    def _places(self, table: Table, own: int, offset: int, length: int, *, now: bool) -> list[_Place] | None:
        """Return the parts of a range by the settled device that has them, in order.

        The first place has number PART if every device has to be asked.  Return None if that would wait, with `now`.
        """
        if own >= table.cover:
            return [(offset, length, _PRIMARY)]
        index = table.index
        shift, entries = index.shift, index.entries
        region, at, end = offset >> shift, offset, offset + length
        places: list[_Place] = []
        begin, last = offset, -3
        while at < end:
            entry = entries.get(region)
            if entry is None or entry.upto < table.cover:
                if now and index.missing(table, region) > _LINKS_NOW:
                    return None
                entry = index.extend(table, region)
            grains, stop = entry.grains, (region + 1) << shift
            while at < stop and at < end:
                if grains is None:
                    number, upto = _PRIMARY, stop
                else:
                    bits = grains[(at & index.span - 1) >> tracking.SHIFT] >> own
                    if bits < 0:
                        return [(offset, length, view_index.PART)]
                    number = own + (bits & -bits).bit_length() - 1 if bits else _PRIMARY
                    upto = (at | tracking.GRAIN - 1) + 1
                if number != last:
                    if at > begin:
                        places.append((begin, at - begin, last))
                    begin, last = at, number
                at = upto
            region += 1
        places.append((begin, end - begin, last))
        return places

    def _read_primary(self, blank: Sequence[_Place], offset: int, length: int, buffers: Buffers, read: _Read) -> bool:
        """Read the blank places, and what is between them, from the primary, with one read if that is possible."""
        if len(blank) > 1:
            start = blank[0][0]
            count = blank[-1][0] + blank[-1][1] - start
            with contextlib.suppress(block_device.MediumError):  # it may be between them, where nobody needs it
                return read(self._primary, start, count, _piece(buffers, offset, length, start, count))
        return all(
            read(self._primary, start, count, _piece(buffers, offset, length, start, count))
            for start, count, _ in blank
        )

    def _walk(self, offset: int, length: int, buffers: Buffers, read: _Read) -> bool:
        """Read as `_read` does, but ask one device after the other."""
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


def _ask(device: BlockDevice, number: int, places: Sequence[_Place]) -> list[_Place]:
    """Ask a device for the parts of `places` that no older device has, and return all places."""
    after: list[_Place] = []
    for place in places:
        if place[2] <= number:
            after.append(place)
            continue
        if device.lacks(place[0], place[1]):
            after.append(place)
            continue
        for extent in device.extents(place[0], place[1]):
            after.append((extent.offset, extent.length, place[2] if extent.kind is ExtentKind.BLANK else number))
    return after


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
