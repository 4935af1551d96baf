# SPDX-License-Identifier: Apache-2.0
"""The device that initiators of a node use: a shared volume, with copy-on-write below.

A command that meets the fence of a newer epoch runs again when the node has joined it: a write through copy-on-write
from the start, a read as it is.  It waits for the node at most the `patience` of the driver, then it ends with NotReady.

Nothing is ever done without waiting, because every command goes to another host.  `exclusive` is not supported: no
lock of this node keeps the others from writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lun_backends import block_device
from lun_backends.block_device import BlockDevice, Buffers, Extent
from lun_backends.cluster.node import State
from lun_backends.copy_on_write import CopyOnWrite
from lun_backends.shared.admission import NotAdmitted
from lun_backends.shared.driver import Driver


class SharedDevice(BlockDevice):
    """The volume on this node.  With `writes` False this node only reads."""

    def __init__(self, driver: Driver, primary: BlockDevice, below: CopyOnWrite, *, writes: bool) -> None:
        """Stack on `below`; plain reads go to `primary`.  `close` closes neither."""
        self._driver = driver
        self._primary = primary
        self._below = below
        self._writes = writes
        self._closed = False
        self.size = primary.size
        self.block_size = primary.block_size
        self.physical_block_size = primary.physical_block_size
        self.read_only = not writes  # type: ignore[misc] # a class variable elsewhere, an option of each instance here

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._read(lambda: self._primary.readv(offset, buffers))

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._write(lambda: self._below.writev(offset, buffers, fua=fua))

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._write(lambda: self._below.write_zeroes(offset, length, discard=discard, fua=fua))

    def prepare_writes(self, ranges: Sequence[tuple[int, int]]) -> None:
        if self._writes and not self._closed:
            self._below.prepare_writes(ranges)

    def flush(self) -> None:
        if self._writes:
            self._write(self._below.flush)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        found: list[Extent] = []

        def look() -> None:
            found[:] = self._primary.extents(offset, length)

        self._read(look)
        return iter(found)

    def close(self) -> None:
        """Refuse commands from now on."""
        self._closed = True

    def check_no_rollback(self) -> None:
        """Return when this node rolls the volume back no longer.  Raise NotReady after the driver's patience."""
        history = self._driver.node.history
        if history.rollback is not None and not self._driver.wait_for(
            lambda: history.rollback is None, self._driver.patience
        ):
            if self._driver.stopped:
                raise block_device.DeviceClosed
            raise block_device.NotReady("it is being rolled back")

    def _read(self, read: Callable[[], None]) -> None:
        # A plain read counts in nothing: it returns what the device has now, and nothing is derived from that.
        def command() -> None:
            if self._driver.node.state is State.OUT:
                raise NotAdmitted  # with 7h the device would answer
            self.check_no_rollback()
            read()

        self._run(command)

    def _write(self, write: Callable[[], None]) -> None:
        if not self._writes:
            raise block_device.WriteProtected
        self._run(write)

    def _run(self, command: Callable[[], None]) -> None:
        if self._closed:
            raise block_device.DeviceClosed
        self._driver.again(command)
