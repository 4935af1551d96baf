# SPDX-License-Identifier: Apache-2.0
"""The view of a snapshot on any node of a shared volume: the step R of `cluster`'s README.md.

For each epoch of the node, and each change of the log, there is a new `SnapshotView` with the chain LUN(j) to LUN(e).
Its reads of the primary are admitted only in that epoch.  A read that is refused runs again in the newer one, with the
longer chain.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import ClassVar, TypeVar

from lun_backends import block_device, snapshot_view, view_chain
from lun_backends.block_device import BlockDevice, Buffers, Extent
from lun_backends.cluster import history
from lun_backends.cluster.history import Standing
from lun_backends.cluster.records import Type
from lun_backends.damage import OnDamage
from lun_backends.shared.admission import NotAdmitted
from lun_backends.shared.driver import Driver
from lun_backends.shared.primary import ViewedPrimary

T = TypeVar("T")

_WINDOW = 64 << 20  # bytes whose extents are found at a time
_FRESH = 5.0  # seconds to wait for a look at the log after an error


class SharedView(BlockDevice):
    """A snapshot for reading.  Raise SnapshotInvalid once it is deleted or invalid."""

    read_only: ClassVar[bool] = True

    def __init__(self, driver: Driver, primary: BlockDevice, snapshot: uuid.UUID) -> None:
        """Open the view of `snapshot`.  No device is asked before the first read."""
        self._driver = driver
        self._primary = primary
        self._snapshot = snapshot
        self._built: tuple[tuple[int, int], snapshot_view.SnapshotView] | None = None
        self._closed = False
        self.block_size = primary.block_size
        self.size = primary.size

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._again(lambda view: view.readv(offset, buffers))

    def read_checked(self, offset: int, buffers: Buffers, on_damage: OnDamage | None = None) -> None:
        self._again(lambda view: view.read_checked(offset, buffers, on_damage))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for start in range(offset, offset + length, _WINDOW):
            size = min(_WINDOW, offset + length - start)
            yield from self._again(lambda view, start=start, size=size: list(view.extents(start, size)))  # type: ignore[misc]

    def writev(self, offset: int, buffers: Buffers, *, fua: bool = False) -> None:
        raise block_device.WriteProtected

    def write_now(self, offset: int, length: int, buffers: Buffers) -> bool:
        raise block_device.WriteProtected

    def write_zeroes(self, offset: int, length: int, *, discard: bool, fua: bool = False) -> None:
        raise block_device.WriteProtected

    def flush(self) -> None:
        """Do nothing: there are no writes to wait for.  Raise DeviceClosed."""
        if self._closed:
            raise block_device.DeviceClosed

    def close(self) -> None:
        self._closed = True

    def _again(self, command: Callable[[snapshot_view.SnapshotView], T]) -> T:
        def run() -> T:
            began = time.monotonic()
            view = self._view()
            try:
                return command(view)
            except block_device.ReservationConflict:
                raise
            except block_device.BlockDeviceError:
                # A link may be gone, because another node deleted its snapshot and this node has not read that yet.
                version = self._version()
                self._driver.look()
                self._driver.wait_for(lambda: self._driver.read_at > began, _FRESH)
                if self._closed or self._version() == version:
                    raise
                raise NotAdmitted from None

        return self._driver.again(run)

    def _version(self) -> tuple[int, int]:
        return self._driver.life, self._driver.node.history.end

    def _view(self) -> snapshot_view.SnapshotView:
        """Return the view for the epoch in which the node is ARMED.  Raise NotReady, SnapshotInvalid, and more."""
        if self._closed:
            raise block_device.DeviceClosed
        driver = self._driver
        if not driver.admission.open:
            raise NotAdmitted
        version = self._version()
        built = self._built
        if built is not None and built[0] == version:
            return built[1]
        with driver.changed:
            version = self._version()
            epoch = driver.node.epoch
            identities = self._chain()
        links = [self._link(identity) for identity in identities]
        view = snapshot_view.SnapshotView(
            ViewedPrimary(driver, self._primary, epoch), view_chain.Chain(links), links[0]
        )
        self._built = version, view
        return view

    def _chain(self) -> tuple[uuid.UUID, ...]:
        node = self._driver.node
        with contextlib.suppress(history.Refused):
            return node.history.chain(self._snapshot, node.epoch)
        standing = node.history.standing(self._snapshot)
        if standing in (Standing.PENDING, Standing.TAKEN):
            raise block_device.NotReady(f"the snapshot is {standing.value}, and its fence is not complete")
        raise block_device.SnapshotInvalid(why_unreadable(node.history, self._snapshot))

    def _link(self, identity: uuid.UUID) -> BlockDevice:
        lun = self._driver.lun(identity)
        if lun is None:
            raise block_device.NotReady(f"write-once LUN {identity} is not visible")
        return lun.device


def why_unreadable(log: history.History, snapshot: uuid.UUID) -> str:
    """Return why a snapshot cannot be read, as the log says; empty if it can, or will be."""
    match log.standing(snapshot):
        case Standing.HIDDEN:
            return "it is being deleted"
        case Standing.DELETED:
            return "it was deleted"
        case Standing.INVALID:
            marks = [record for record in log.records if record.type is Type.INVALID]
            own = [record for record in marks if record.snapshot == snapshot]
            return ((own or marks)[0].reason if marks else "") or "it was invalidated"
    return ""
