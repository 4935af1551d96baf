# SPDX-License-Identifier: Apache-2.0
"""The devices below copy-on-write and below views: the primary and LUN(e), used only in the epoch that they belong to.

A node must not mix epochs: a copy that it puts into LUN(e), and the part of a view that it reads from the primary, were
read while it was ARMED in e.  So these devices enter the admission and look at the epoch.  Inside, the epoch stays,
because the node drains before it joins anew.  With 7h they also look at the log (README.md of `cluster`, W and R).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from lun_backends import block_device
from lun_backends.block_device import BlockDevice, Buffers, Extent
from lun_backends.cluster.history import Epoch
from lun_backends.preserving import WriteOnceSide
from lun_backends.shared.admission import NotAdmitted
from lun_backends.shared.driver import Driver

T = TypeVar("T")


def check_epoch(driver: Driver, epoch: Epoch) -> None:
    """Raise NotAdmitted unless the node is ARMED in that epoch.  The caller is inside the admission."""
    if driver.node.epoch is not epoch:
        raise NotAdmitted


class FencedPrimary(BlockDevice):
    """The primary below copy-on-write."""

    def __init__(self, driver: Driver, primary: BlockDevice) -> None:
        """Stand in front of `primary`; `close` does not close it."""
        self._driver = driver
        self._primary = primary
        self.size = primary.size
        self.block_size = primary.block_size
        self.physical_block_size = primary.physical_block_size

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._command(lambda: self._primary.readv(offset, buffers))

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        self._command(lambda: self._primary.writev(offset, buffers, fua=fua))

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        self._command(lambda: self._primary.write_zeroes(offset, length, discard=discard, fua=fua))

    def flush(self) -> None:
        self._command(self._primary.flush)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return iter(self._command(lambda: list(self._primary.extents(offset, length))))

    def close(self) -> None:
        """Do nothing: the owner of the primary closes it."""

    def _command(self, call: Callable[[], T]) -> T:
        driver = self._driver
        driver.admission.enter()
        life = driver.life  # inside, this is the registration in force
        try:
            return call()
        except NotAdmitted:
            raise
        except (block_device.ReservationConflict, block_device.NoAnswer):
            driver.refused(life)  # before leaving, so that the node drains the others, too
            raise
        finally:
            driver.admission.leave()


class ViewedPrimary(FencedPrimary):
    """The primary below a view whose chain ends with LUN(epoch)."""

    def __init__(self, driver: Driver, primary: BlockDevice, epoch: Epoch) -> None:
        """Stand in front of `primary` in that epoch."""
        super().__init__(driver, primary)
        self._epoch = epoch

    def _command(self, call: Callable[[], T]) -> T:
        def look() -> T:
            check_epoch(self._driver, self._epoch)
            result = call()
            if not self._driver.node.exclusive and self._driver.newer():
                raise block_device.ReservationConflict
            return result

        return super()._command(look)


class EpochSide:
    """LUN(epoch) below copy-on-write: the pre-images that are read during `put_many` are of that epoch."""

    commits_in_memory = False

    def __init__(self, driver: Driver, side: WriteOnceSide, epoch: Epoch) -> None:
        """Stand in front of `side`."""
        self._driver = driver
        self._side = side
        self.epoch = epoch

    @property
    def size(self) -> int:
        """Bytes."""
        return self._side.size

    @property
    def grain(self) -> int:
        """Bytes, as `BlockDevice.grain`."""
        return self._side.grain

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Return the extents of the LUN."""
        return self._side.extents(offset, length)

    def put_many(self, requests: Iterable[tuple[int, Buffers]]) -> Sequence[block_device.BlockWritten | None]:
        """Put as `WriteOnceSide.put_many`.  Raise NotAdmitted if the node has left the epoch."""
        driver = self._driver
        driver.admission.enter()
        life = driver.life
        try:
            check_epoch(driver, self.epoch)
            if driver.node.exclusive:
                return self._side.put_many(requests)
            read = [(offset, [memoryview(b"".join(buffers))]) for offset, buffers in requests]
            if driver.newer():  # once for the batch, after all its reads
                driver.refused(life)
                raise block_device.ReservationConflict
            return self._side.put_many(read)
        finally:
            driver.admission.leave()
