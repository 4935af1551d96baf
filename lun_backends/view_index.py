# SPDX-License-Identifier: Apache-2.0
"""The index of a chain: which of its settled devices have a grain, for all views of the chain together.

The volume is divided into regions.  The first read of a region asks every settled device what it has there; later ones
look it up.  When more devices are settled, only these are asked.  An entry has a number for each grain of the region:

| number   | bit *n*                                              |
| -------- | ---------------------------------------------------- |
| 0        | no device has any block of the grain                 |
| positive | the device with number *n* has the grain as a whole  |
| -1       | a device has a part of the grain: ask them all       |

A view of device *k* takes the lowest bit from *k* on.  The cost does not grow with the devices.

A set bit is only a hint: the device itself still refuses to read what it has not (a commit that failed is taken back).
A bit that is not set is a promise (`view_chain`).

The memory is bounded: the entries that were made first go first.
"""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Sequence
from typing import Protocol

from lun_backends import tracking
from lun_backends.block_device import BlockDevice, ExtentKind

SPAN = 1 << 20
"""Bytes of a region, unless the devices ask for less (`BlockDevice.lookup`)."""
MOST = 32 << 20
"""Bytes that the entries of one volume take in memory."""
_EMPTY = 200  # bytes of an entry without numbers
PART = -1
"""The number of a grain that has to be looked for in every device."""


class Entry:
    """The knowledge of a region: that of the devices below number `upto`; `grains` is None if they have nothing."""

    __slots__ = ("bytes", "grains", "upto")

    def __init__(self, upto: int, grains: list[int] | None) -> None:
        self.upto = upto
        self.grains = grains
        self.bytes = _EMPTY
        if grains is not None:
            self.bytes += sys.getsizeof(grains) + sum(
                map(sys.getsizeof, {id(grain): grain for grain in grains}.values())
            )


class Devices(Protocol):
    """The devices that entries are made of: `view_chain.Table`."""

    devices: list[BlockDevice]
    numbers: dict[BlockDevice, int]
    asked: tuple[int, ...]
    base: int
    cover: int


class Index:
    """The entries, by region.  Thread-safe."""

    __slots__ = ("_bytes", "_lock", "entries", "grains", "most", "shift", "span")

    def __init__(self, span: int = SPAN, most: int = MOST) -> None:
        self.span = span
        self.shift = span.bit_length() - 1
        self.grains = span >> tracking.SHIFT
        self.most = most
        self.entries: collections.OrderedDict[int, Entry] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """About how many bytes of memory the entries take."""
        return self._bytes

    def missing(self, devices: Devices, region: int) -> int:
        """Return how many numbers of devices `extend` would look at."""
        entry = self.entries.get(region)
        return max(0, devices.cover - (devices.base if entry is None else max(entry.upto, devices.base)))

    def extend(self, devices: Devices, region: int) -> Entry:
        """Return the entry of a region that knows all settled devices.  Raises the errors of `BlockDevice.extents`."""
        known = self.entries.get(region)
        first = devices.base if known is None else max(known.upto, devices.base)
        if known is not None and first >= devices.cover:
            return known
        grains = [0] * self.grains if known is None or known.grains is None else list(known.grains)
        for number in range(first, devices.cover):
            device = devices.devices[number]
            own = devices.numbers[device]
            # The number of a device that left means an older one.  It adds nothing if that one is looked at, too.
            if own not in devices.asked and (own == number or own < first):
                self._add(grains, device, 1 << number, region)
        pool: dict[int, int] = {}
        entry = Entry(devices.cover, [pool.setdefault(grain, grain) for grain in grains] if any(grains) else None)
        with self._lock:
            now = self.entries.get(region)
            if now is not None:
                if now.upto > entry.upto:
                    return entry  # another reader knew a longer chain
                self._bytes -= now.bytes
                del self.entries[region]
            self.entries[region] = entry
            self._bytes += entry.bytes
            while self._bytes > self.most and len(self.entries) > 1:
                self._bytes -= self.entries.popitem(last=False)[1].bytes
        return entry

    def _add(self, grains: list[int], device: BlockDevice, bit: int, region: int) -> None:
        """Set `bit` for what the device has of the region."""
        begin = region << self.shift
        end = min(begin + self.span, device.size)
        if begin >= end:
            return
        start = stop = begin
        for extent in device.extents(begin, end - begin):
            if extent.kind is not ExtentKind.BLANK:
                if extent.offset != stop:
                    self._add_range(grains, start - begin, stop - begin, device.size - begin, bit)
                    start = extent.offset
                stop = extent.offset + extent.length
        self._add_range(grains, start - begin, stop - begin, device.size - begin, bit)

    @staticmethod
    def _add_range(grains: list[int], start: int, stop: int, size: int, bit: int) -> None:
        """Set `bit` for the grains of the bytes [start, stop) of the region; the device ends at its byte `size`."""
        if start == stop:
            return
        first, end = start >> tracking.SHIFT, -(-stop >> tracking.SHIFT)
        if start & tracking.GRAIN - 1:
            grains[first] = PART
        if stop & tracking.GRAIN - 1 and stop != size:
            grains[end - 1] = PART
        for grain in range(first, end):
            grains[grain] |= bit


def lowest(grains: Sequence[int] | None, grain: int, own: int) -> int:
    """Return the lowest number from `own` on that has the grain of an entry; 0 bits mean -1, a part means -2."""
    bits = 0 if grains is None else grains[grain] >> own
    if bits < 0:
        return -2
    return own + (bits & -bits).bit_length() - 1 if bits else -1
