# SPDX-License-Identifier: Apache-2.0
"""The write-once devices of a volume in order, and the one lookup that tells which of them has a grain.

Snapshot *k* reads a block from the first of the devices k, k+1, ... newest that has it.  To ask each of them costs as
much as there are devices.  So the chain keeps an index (`view_index`) of its *settled* devices, and only the few others
are asked each time:

| device                                                  | a view                      | because                                 |
| ------------------------------------------------------- | --------------------------- | --------------------------------------- |
| armed: copy-on-write preserves into it                  | asks it, and asks it again  | it gets pre-images at any moment        |
| one that an initiator writes to, or that is invalid     | asks it, and asks it again  | see `BlockDevice.watch`                 |
| any other                                               | looks it up in the index    | it is settled                           |

A settled device may still get blocks, and no view need see them there:

* A copy that began before the device was settled may arrive late.  Until it has arrived or failed, no write changes the
  grain, and the write that does so preserves the same content in the device armed then.  So a view that misses the late
  copy finds the same bytes further on.
* A deletion moves blocks down from the next newer device.  While that one is in the chain, it has the same bytes.  When
  it leaves, its number means the older one from then on (`replace`).

Each device has a number, which grows from older to newer, for as long as it is in the chain.  A change of the chain
publishes a new `Table`, and a reader uses one table throughout.  If the table is still the same after the read of the
primary, the armed device was the same meanwhile, and is the only one that may have got a relevant copy (rule 3,
lun_backends/README.md).  If it is not, the read starts again.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Sequence

from lun_backends.block_device import BlockDevice
from lun_backends.view_index import Index

_POLL = 0.0005  # seconds; deleting is rare, so readers do not pay for a wake-up
_LEFT = 64  # numbers of devices that left, beyond as many as there are devices, before all are numbered anew


class Table:
    """The chain between two changes.  Only `index` gets more entries, and `devices` more devices at its end."""

    __slots__ = ("asked", "base", "cover", "devices", "index", "links", "numbers")

    def __init__(
        self,
        links: tuple[BlockDevice, ...],
        devices: list[BlockDevice],
        numbers: dict[BlockDevice, int],
        asked: tuple[int, ...],
        cover: int,
        index: Index,
    ) -> None:
        self.links = links
        self.devices = devices
        """By number.  The number of a device that left means the device that its blocks were moved to."""
        self.numbers = numbers
        self.asked = asked
        """The numbers of the devices that are asked each time, in order."""
        self.cover = cover
        """The index knows the devices below this number, except those that are asked."""
        self.base = numbers[links[0]] if links else 0
        """The number of the oldest device."""
        self.index = index


class Chain:
    """The write-once devices of a volume, oldest first.  The newest is armed, unless `arm` says otherwise.

    A reader puts a mark into `reading` before it looks at `table`.  `replace` sets `table`, then a fresh `reading`,
    then waits until the old one is empty.  A reader that marks the old `reading` after that sees the new table;
    `replace` waits for all others.
    """

    __slots__ = ("__weakref__", "_always", "_armed", "_changing", "reading", "table")

    def __init__(self, links: Sequence[BlockDevice] = ()) -> None:
        self._changing = threading.Lock()
        self._armed: BlockDevice | None = None
        self._always: set[BlockDevice] = set()  # devices that are asked each time for as long as they are here
        self.reading: collections.deque[None] = collections.deque()
        self.table = Table((), [], {}, (), 0, Index())
        for link in links:
            self.append(link)

    @property
    def links(self) -> tuple[BlockDevice, ...]:
        """The devices, oldest first."""
        return self.table.links

    def append(self, link: BlockDevice) -> None:
        """Add the device of a newer snapshot, which is armed now.  This waits for no read.

        Call it only while no write runs.
        """
        with self._changing:
            if not link.watch(self):
                self._always.add(link)
            table = self.table
            index = table.index
            if not table.links:
                index = Index(link.lookup)
            table.numbers[link] = len(table.devices)
            table.devices.append(link)
            self._publish((*table.links, link), table.devices, table.numbers, link, index)

    def arm(self, link: BlockDevice) -> None:
        """Note that copies go to `link` from now on.  Call it only while no write runs."""
        with self._changing:
            table = self.table
            if link is not self._armed and link in table.numbers:
                self._publish(table.links, table.devices, table.numbers, link, table.index)

    def ask(self, link: BlockDevice) -> None:
        """Ask `link` at every read from now on, because the index may become wrong about it."""
        with self._changing:
            table = self.table
            if link in table.numbers and link not in self._always:
                self._always.add(link)
                self._publish(table.links, table.devices, table.numbers, self._armed, table.index)

    def replace(self, links: Sequence[BlockDevice]) -> None:
        """Set the chain, and wait until all reads that began before have ended.

        `links` are devices that were in the chain, in the same order.  The next older device that stays has got all
        that a device had that leaves.
        """
        with self._changing:
            table = self.table
            kept = set(links)
            devices, numbers, index = list(table.devices), dict(table.numbers), table.index
            if any(table.devices[number] not in kept for number in table.asked):
                index = Index(index.span)  # it does not know what that device had, and where it is now
            self._always &= kept
            if len(devices) - len(table.links) > len(links) + _LEFT:
                devices, index = list(links), Index(index.span)
                numbers = {link: number for number, link in enumerate(links)}
            else:
                # The numbers up to that of the next device mean the same device: those that left meant it already.
                older = links[0] if links else None
                for at in [at for at, link in enumerate(table.links) if link not in kept]:
                    if at and table.links[at - 1] in kept:
                        older = table.links[at - 1]
                    begin = numbers.pop(table.links[at])
                    end = table.numbers[table.links[at + 1]] if at + 1 < len(table.links) else len(devices)
                    if older is not None:
                        devices[begin:end] = [older] * (end - begin)
                if not links:
                    devices, numbers, index = [], {}, Index(index.span)
            armed = self._armed if self._armed in kept else links[-1] if links else None
            self._publish(tuple(links), devices, numbers, armed, index)
            before, self.reading = self.reading, collections.deque()
        while before:
            time.sleep(_POLL)

    def _publish(
        self,
        links: tuple[BlockDevice, ...],
        devices: list[BlockDevice],
        numbers: dict[BlockDevice, int],
        armed: BlockDevice | None,
        index: Index,
    ) -> None:
        asked = {numbers[link] for link in self._always}
        cover = len(devices)
        if armed is not None:
            asked.add(numbers[armed])
            if numbers[armed] == len(devices) - 1:
                cover -= 1
        before = self._armed
        if before is not None and before is not armed and self.table.index is index:
            number = numbers.get(before, cover)
            if number < self.table.cover and number not in asked:
                index = Index(index.span)  # it may know what `before` had before it was armed, which is not all
        self._armed = armed
        self.table = Table(links, devices, numbers, tuple(sorted(asked)), cover, index)
